// Stands in for switchyard-prep and switchyard-trainer in the agent's tests; a link with either
// name points at it. What it does is written in the job: data.chat_template holds
//   {"prep": "<mode>", "ranks": ["<mode of rank 0>", ...]}        missing: "ok"
// prep:    ok | exit:<code> (with 25 lines on stderr) | hang | stubborn (ignores SIGTERM) | mute |
// wordy
//          (a report of 200 kB)
// trainer: ok                    hello, 3 steps, a checkpoint by rank 0, done, exit 0
//          exit:<code>           25 lines on stderr, then exit
//          impatient             as ok, but does not wait for the checkpoint's result
//          error:<REASON>        error frame at step 12, exit 1
//          error_hang            error frame, then hang
//          silent                exit 0 without a done frame
//          obey                  waits for a stop frame (prints it), done stopped, exit 3
//          lonely                says that it was stopped though it was not
//          hang                  hello, "pid <pid>" on stdout, reads nothing more
//          stubborn              the same, ignoring SIGTERM
//          crash_on_stop         waits for the stop frame, then exits with 9
//          flood:<bytes>         FloodByte(i) on stdout and, half as many, on stderr, then as ok
//          error_late:<REASON>   the same 300 ms later, of rank 1 600 ms; ignores SIGTERM
//          grandchild_hang       a child in a session of its own ("pid <pid>"), then hang
//          grandchild            a child that holds the pipes (its pid on stdout), then exit:5
//          torn                  half a frame, then as ok
//          steps:<n>             n steps of 5 ms, each with a line on stdout, then done; rank 0
//          alone
//                                sends step frames
//          spin                  as steps:5, then spins
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "base/fd.h"
#include "base/json.h"
#include "tests/agent/flood.h"
#include "worker/link/frame.h"
#include "worker/link/messages.h"

namespace switchyard {
namespace {

Json Modes(const Json& job) {
  const Json* data = JsonFind(job, "data");
  const std::string text =
      data == nullptr ? "" : JsonGetOr<std::string>(*data, "chat_template", "").value_or("");
  return ParseJson(text.empty() ? "{}" : text, "modes").value();
}

int Number(absl::string_view mode, absl::string_view prefix) {
  int value = 0;
  absl::ConsumePrefix(&mode, prefix);
  if (!absl::SimpleAtoi(mode, &value)) std::abort();
  return value;
}

void ComplainInLines() {
  for (int i = 1; i <= 25; ++i) std::fprintf(stderr, "line %d\n", i);
}

[[noreturn]] void Hang() {
  while (true) ::pause();
}

int RunPrep(const std::string& config_path, const std::string& cache_dir) {
  const Json config = ReadJsonFile(config_path).value();
  const std::string mode =
      JsonGetOr<std::string>(Modes(*JsonFind(config, "job")), "prep", "ok").value();
  if (absl::StartsWith(mode, "exit:")) {
    ComplainInLines();
    return Number(mode, "exit:");
  }
  if (mode == "stubborn") ::signal(SIGTERM, SIG_IGN);
  if (mode == "stubborn" || mode == "hang") {
    std::fprintf(stderr, "reading rows\n");
    Hang();
  }
  if (mode == "mute") return 0;
  Json result;
  result["folder"] = cache_dir + "/digest";
  result["cached"] = false;
  result["report"] = Json{{"train", Json{{"rows", 120}, {"tokens", 1000}}}};
  if (mode == "wordy") result["report"]["histogram"] = std::string(200'000, 'x');
  std::printf("%s\n", DumpJson(result).c_str());
  return 0;
}

class FakeTrainer {
 public:
  explicit FakeTrainer(int fd) : link_(UniqueFd(fd)) {}

  int Run() {
    const Json frame = link_.Receive(absl::Minutes(1)).value();
    std::printf("%s\n", DumpJson(frame).c_str());
    std::fflush(stdout);
    const AgentFrame first = ParseAgentFrame(frame).value();
    config_ = std::get<ConfigFrame>(first);
    const Json modes = Modes(config_.job);
    std::string mode = "ok";
    if (const Json* ranks = JsonFind(modes, "ranks"); ranks != nullptr) {
      mode = (*ranks)[static_cast<size_t>(config_.rank)].get<std::string>();
    }
    if (mode == "stubborn") ::signal(SIGTERM, SIG_IGN);
    Send(HelloFrame{config_.rank, ::getpid()});
    return Act(mode);
  }

 private:
  int Act(const std::string& mode) {
    if (absl::StartsWith(mode, "exit:")) {
      ComplainInLines();
      return Number(mode, "exit:");
    }
    if (absl::StartsWith(mode, "error_late:")) {
      ::signal(SIGTERM, SIG_IGN);
      ::usleep(300'000 * static_cast<unsigned>(1 + config_.rank));
      return Act("error:" + mode.substr(std::string("error_late:").size()));
    }
    if (mode == "grandchild_hang") {
      const pid_t child = ::fork();
      if (child == 0) {
        ::setsid();
        Hang();
      }
      std::printf("pid %d\n", child);
      std::fflush(stdout);
      Hang();
    }
    if (absl::StartsWith(mode, "error")) {
      absl::string_view reason = mode;
      const bool hangs = !absl::ConsumePrefix(&reason, "error:");
      Send(ErrorFrame{hangs ? FailureReason::kStorageIo : ParseFailureReason(reason).value(),
                      "what went wrong", 12});
      if (hangs) Hang();
      return kExitError;
    }
    if (mode == "silent") return 0;
    if (mode == "lonely") {
      Send(DoneFrame{1, true});
      return kExitStopped;
    }
    if (mode == "hang" || mode == "stubborn") {
      std::printf("pid %d\n", ::getpid());
      std::fflush(stdout);
      Hang();
    }
    if (mode == "obey" || mode == "crash_on_stop") {
      absl::StatusOr<Json> frame = link_.Receive(absl::InfiniteDuration());
      if (!frame.ok() || mode == "crash_on_stop") return 9;
      std::printf("%s\n", DumpJson(*frame).c_str());
      Send(DoneFrame{5, true});
      return kExitStopped;
    }
    if (absl::StartsWith(mode, "flood:")) {
      const size_t size = static_cast<size_t>(Number(mode, "flood:"));
      WriteFlood(STDOUT_FILENO, size);
      WriteFlood(STDERR_FILENO, size / 2);
    }
    if (mode == "grandchild") {
      const pid_t child = ::fork();
      if (child == 0) Hang();
      std::printf("%d\n", child);
      std::fflush(stdout);
      return 5;
    }
    if (mode == "torn") {
      [[maybe_unused]] const ssize_t n = ::write(link_.fd(), "\x40\0\0\0{", 5);
      return 6;
    }
    if (mode == "spin" || absl::StartsWith(mode, "steps:")) {
      RunSteps(mode == "spin" ? 5 : Number(mode, "steps:"));
      for (volatile bool forever = mode == "spin"; forever;) {
      }
      Send(DoneFrame{1, false});
      return kExitDone;
    }
    return Train(/*waits=*/mode != "impatient");
  }

  void RunSteps(int count) {
    if (config_.rank == 0) Send(PhaseFrame{"training", ""});
    for (int i = 1; i <= count; ++i) {
      ::usleep(5000);
      std::printf("line %d\n", i);
      std::fflush(stdout);
      if (config_.rank != 0) continue;
      StepFrame step;
      step.step = i;
      step.total_steps = count;
      step.loss = 1.0 / i;
      step.step_seconds = 0.005;
      step.rank_busy_seconds = {0.004, 0.005};
      Send(step);
    }
  }

  int Train(bool waits) {
    if (config_.rank == 0) {
      Send(PhaseFrame{"training", ""});
      PlanFrame plan;
      plan.weights = plan.total = 2'000'000'000;
      Send(plan);
      for (int i = 1; i <= 3; ++i) {
        StepFrame step;
        step.step = i;
        step.total_steps = 3;
        step.loss = 4.0 - i;
        step.tokens_per_second = 1000;
        step.memory_bytes = 1 << 20;
        step.checkpoint_failures = 1;
        step.phase_seconds = {{"checkpoint", 0.5}};
        Send(step);
      }
      Send(ValidationFrame{3, "wiki", 1.5, 1000});
      Send(WarningFrame{"a warning"});
      CheckpointFrame checkpoint;
      checkpoint.step = 3;
      checkpoint.path = config_.job_dir + "/staging/1/step-3";
      checkpoint.manifest_crc32c = 77;
      checkpoint.final = true;
      checkpoint.loss = 1.0;
      checkpoint.validation_loss = 1.5;
      Send(checkpoint);
      if (!waits) {
        Send(DoneFrame{3, false});
        return kExitDone;
      }
      const AgentFrame frame =
          ParseAgentFrame(link_.Receive(absl::InfiniteDuration()).value()).value();
      const auto* result = std::get_if<CheckpointResultFrame>(&frame);
      if (result == nullptr) return 8;
      std::printf("committed ok=%d path=%s error=%s\n", result->ok, result->path.c_str(),
                  result->error.c_str());
      if (!result->ok) {
        Send(ErrorFrame{FailureReason::kCheckpointInvalid, result->error, 3});
        return kExitError;
      }
    }
    Send(DoneFrame{3, false});
    return kExitDone;
  }

  void Send(const RankFrame& frame) {
    if (!link_.Send(ToJson(frame)).ok()) std::abort();
  }
  static void WriteFlood(int fd, size_t size) {
    std::string data(size, '\0');
    for (size_t i = 0; i < size; ++i) data[i] = FloodByte(i);
    if (!WriteAll(fd, data, "flood").ok()) std::abort();
  }

  FrameChannel link_;
  ConfigFrame config_;
};

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  const std::vector<std::string> args(argv + 1, argv + argc);
  if (args.size() == 5 && args[0] == "run" && args[1] == "--config" && args[3] == "--cache-dir") {
    return switchyard::RunPrep(args[2], args[4]);
  }
  if (args.size() == 2 && args[0] == "--link-fd") {
    return switchyard::FakeTrainer(switchyard::Number(args[1], "")).Run();
  }
  std::fprintf(stderr, "unexpected arguments\n");
  return 64;
}

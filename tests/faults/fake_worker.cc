// Stands in for switchyard-prep and switchyard-trainer in the fault tests: real processes, frames
// and checkpoint folders as in docs/contracts.md, but a step only waits and counts, so that
// thousands of jobs and kills fit into minutes. A link with either name points at it.
//
// What it does is written in the job, data.chat_template:
//   {"step_ms": 10, "prep_ms": 0, "pad_bytes": 0, "faults": [
//      {"attempt": 1, "rank": 0, "step": 5, "do": "exit:7"}, ...]}   rank -1, attempt 0: any
//   do: exit:<code>    after a line on stderr
//       signal:<n>     kills itself
//       spin           burns the CPU, makes no step, reads nothing: a hung collective
//       slow:<factor>  this and later steps take so many times longer
//       memory:<MiB>   touches so much more memory
//       flood:<MiB>    writes that much on stdout: long lines, bytes of all values
//       error:<REASON> error frame, exit 1
//
// The job's model is one number, a checksum over the steps done: a checkpoint holds it, so that a
// step lost or done twice shows. Each process appends one line per step to
// <job_dir>/trace/rank-<r>.log, in one write:
//   <CLOCK_BOOTTIME ns> <wall us> <attempt> <pid> <what> <step>
// what: begin, step, checkpoint, committed, refused, end, overlap. Rank r holds a lock on
// <job_dir>/trace/rank-<r>.lock while it lives, and the seconds that its last step took are in it;
// "overlap" says that another process holds it: two attempts of one job run at the same time.
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/types/optional.h"
#include "base/crc32c.h"
#include "base/fd.h"
#include "base/json.h"
#include "worker/link/frame.h"
#include "worker/link/messages.h"

namespace switchyard {
namespace {

[[noreturn]] void Die(absl::string_view what, const absl::Status& status) {
  std::fprintf(stderr, "fake worker: %s: %s\n", std::string(what).c_str(),
               status.ToString().c_str());
  ::_exit(70);
}
void Need(absl::string_view what, const absl::Status& status) {
  if (!status.ok()) Die(what, status);
}

Json Plan(const Json& job) {
  const Json* data = JsonFind(job, "data");
  const std::string text =
      data == nullptr ? "" : JsonGetOr<std::string>(*data, "chat_template", "").value_or("");
  return ParseJson(text.empty() ? "{}" : text, "plan").value();
}

int64_t BootNanos() {
  timespec now;
  ::clock_gettime(CLOCK_BOOTTIME, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

int RunPrep(const std::string& config_path, const std::string& cache_dir) {
  const Json config = ReadJsonFile(config_path).value();
  const Json plan = Plan(*JsonFind(config, "job"));
  absl::SleepFor(absl::Milliseconds(JsonGetOr<int64_t>(plan, "prep_ms", 0).value()));
  const std::string folder = cache_dir + "/fake";
  Need("make the cache", MakeFolders(folder));
  const Json result{{"folder", folder},
                    {"cached", false},
                    {"report", Json{{"train", Json{{"packed_rows", 10}, {"tokens", 1000}}}}}};
  std::printf("%s\n", DumpJson(result).c_str());
  return 0;
}

class FakeTrainer {
 public:
  explicit FakeTrainer(int fd) : link_(UniqueFd(fd)) {}

  int Run() {
    config_ =
        std::get<ConfigFrame>(ParseAgentFrame(link_.Receive(absl::Minutes(1)).value()).value());
    plan_ = Plan(config_.job);
    const Json* batch = JsonFind(config_.job, "batch");
    total_steps_ = Number(*batch, "max_steps");
    if (const Json* checkpoint = JsonFind(config_.job, "checkpoint"); checkpoint != nullptr) {
      every_steps_ = Number(*checkpoint, "every_steps");
    }
    step_time_ = absl::Milliseconds(JsonGetOr<int64_t>(plan_, "step_ms", 10).value());
    OpenTrace();
    if (!config_.resume_from.empty()) Load(config_.resume_from);
    Note("begin");
    Send(HelloFrame{config_.rank, ::getpid()});
    if (rank0()) Send(PhaseFrame{"training", ""});
    return Train();
  }

 private:
  bool rank0() const { return config_.rank == 0; }

  // int64 fields are strings in protobuf's JSON.
  static int64_t Number(const Json& object, const char* key) {
    int64_t value = 0;
    const std::string text = JsonGetOr<std::string>(object, key, "0").value();
    if (!absl::SimpleAtoi(text, &value)) Die(key, absl::InvalidArgumentError(text));
    return value;
  }

  void OpenTrace() {
    const std::string folder = config_.job_dir + "/trace";
    Need("make the trace", MakeFolders(folder));
    const std::string path = absl::StrCat(folder, "/rank-", config_.rank);
    trace_.Reset(::open((path + ".log").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
    lock_.Reset(::open((path + ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    if (!trace_.valid() || !lock_.valid()) Die("open the trace", ErrnoStatus("open", path, errno));
    if (::flock(lock_.get(), LOCK_EX | LOCK_NB) != 0) Note("overlap");
  }

  void Note(const char* what) {
    const std::string line =
        absl::StrFormat("%d %d %d %d %s %d\n", BootNanos(), absl::ToUnixMicros(absl::Now()),
                        config_.attempt, ::getpid(), what, step_);
    // A full disk loses the trace, not the job: the checks then see a shorter trace.
    WriteAll(trace_.get(), line, "trace").IgnoreError();
  }

  int Train() {
    while (step_ < total_steps_) {
      if (const absl::optional<int> exit = TakeOrders(step_time_); exit.has_value()) return *exit;
      Misbehave(step_ + 1);
      step_ += 1;
      state_ = Crc32c(state_, &step_, sizeof(step_));
      const std::string line = absl::StrFormat("attempt %d rank %d step %d state %08x\n",
                                               config_.attempt, config_.rank, step_, state_);
      Need("log", WriteAll(STDOUT_FILENO, line, "stdout"));
      Note("step");
      NoteBusy();
      if (!rank0()) continue;
      StepFrame frame;
      frame.step = step_;
      frame.total_steps = total_steps_;
      frame.loss = 4.0 / static_cast<double>(step_);
      frame.tokens = 100;
      frame.step_seconds = absl::ToDoubleSeconds(step_time_);
      frame.rank_busy_seconds = BusySeconds();
      Send(frame);
      if (every_steps_ > 0 && step_ % every_steps_ == 0 && step_ < total_steps_) Save(false);
    }
    if (rank0()) {
      Save(true);
      if (!AwaitResult(absl::Seconds(60))) {
        Send(ErrorFrame{FailureReason::kCheckpointInvalid, "the last checkpoint was refused",
                        step_});
        return kExitError;
      }
    }
    Note("end");
    Send(DoneFrame{step_, false});
    return kExitDone;
  }

  // In a training rank 0 gathers these; here every rank leaves its own in its lock file.
  void NoteBusy() {
    const double seconds = absl::ToDoubleSeconds(step_time_);
    if (::pwrite(lock_.get(), &seconds, sizeof(seconds), 0) != sizeof(seconds)) {
      Note("unsaid");  // a full disk: rank 0 goes by what was there before
    }
  }

  // Of all ranks; empty as long as one of them has not made a step.
  std::vector<double> BusySeconds() const {
    std::vector<double> busy(static_cast<size_t>(config_.world_size));
    for (int rank = 0; rank < config_.world_size; ++rank) {
      const std::string path = absl::StrCat(config_.job_dir, "/trace/rank-", rank, ".lock");
      const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
      double& seconds = busy[static_cast<size_t>(rank)];
      if (!fd.valid() || ::pread(fd.get(), &seconds, sizeof(seconds), 0) != sizeof(seconds)) {
        return {};
      }
    }
    return busy;
  }

  // Waits for `time` and looks at what the agent says; an exit code when the work ends.
  absl::optional<int> TakeOrders(absl::Duration time) {
    const int64_t end = BootNanos() + absl::ToInt64Nanoseconds(time);
    while (true) {
      const absl::Duration left = absl::Nanoseconds(std::max<int64_t>(0, end - BootNanos()));
      const absl::StatusOr<Json> message = link_.Receive(left);
      if (absl::IsDeadlineExceeded(message.status())) return absl::nullopt;
      if (!message.ok()) return Stop(/*checkpoint=*/false);  // the link is closed
      const AgentFrame frame = ParseAgentFrame(*message).value();
      if (const auto* result = std::get_if<CheckpointResultFrame>(&frame)) {
        TakeResult(*result);
      } else if (const auto* stop = std::get_if<StopFrame>(&frame)) {
        return Stop(stop->checkpoint);
      }
    }
  }

  int Stop(bool checkpoint) {
    if (checkpoint && rank0() && step_ > saved_step_) {
      Save(false);
      AwaitResult(absl::Seconds(5));
    }
    Note("end");
    link_.Send(ToJson(RankFrame(DoneFrame{step_, true}))).IgnoreError();
    return kExitStopped;
  }

  void TakeResult(const CheckpointResultFrame& result) {
    if (result.step == saved_step_) result_ok_ = result.ok;
    Note(result.ok ? "committed" : "refused");
  }

  // Whether the last checkpoint was committed.
  bool AwaitResult(absl::Duration timeout) {
    const int64_t end = BootNanos() + absl::ToInt64Nanoseconds(timeout);
    while (!result_ok_.has_value() && BootNanos() < end) {
      const absl::StatusOr<Json> message = link_.Receive(absl::Nanoseconds(end - BootNanos()));
      if (!message.ok()) return false;
      const AgentFrame frame = ParseAgentFrame(*message).value();
      if (const auto* result = std::get_if<CheckpointResultFrame>(&frame)) TakeResult(*result);
    }
    return result_ok_.value_or(false);
  }

  void Misbehave(int64_t step) {
    const Json* faults = JsonFind(plan_, "faults");
    if (faults == nullptr) return;
    for (const Json& fault : *faults) {
      const int64_t attempt = JsonGetOr<int64_t>(fault, "attempt", 0).value();
      const int64_t rank = JsonGetOr<int64_t>(fault, "rank", -1).value();
      if ((attempt != 0 && attempt != config_.attempt) || (rank >= 0 && rank != config_.rank) ||
          JsonGetOr<int64_t>(fault, "step", 1).value() != step) {
        continue;
      }
      Do(JsonGet<std::string>(fault, "do").value());
    }
  }

  void Do(const std::string& what) {
    const std::vector<std::string> parts = absl::StrSplit(what, absl::MaxSplits(':', 1));
    int64_t number = 0;
    if (parts.size() == 2 && parts[0] != "error" && !absl::SimpleAtoi(parts[1], &number)) {
      Die(what, absl::InvalidArgumentError("no number"));
    }
    if (parts[0] == "exit") {
      std::fprintf(stderr, "RuntimeError: planned failure at step %d\n",
                   static_cast<int>(step_ + 1));
      ::_exit(static_cast<int>(number));
    } else if (parts[0] == "signal") {
      ::kill(::getpid(), static_cast<int>(number));
    } else if (parts[0] == "spin") {
      while (BootNanos() > 0) {
      }
    } else if (parts[0] == "slow") {
      step_time_ = step_time_ * number;
    } else if (parts[0] == "memory") {
      const size_t size = static_cast<size_t>(number) << 20;
      char* const block = static_cast<char*>(std::malloc(size));
      for (size_t i = 0; block != nullptr && i < size; i += 4096) block[i] = 1;
      ballast_.push_back(block);
    } else if (parts[0] == "flood") {
      Flood(static_cast<size_t>(number) << 20);
    } else if (parts[0] == "error") {
      Send(ErrorFrame{ParseFailureReason(parts[1]).value(), "planned", step_ + 1});
      ::_exit(kExitError);
    } else {
      Die(what, absl::InvalidArgumentError("unknown"));
    }
  }

  static void Flood(size_t size) {
    std::string block(1 << 20, '\0');
    for (size_t i = 0; i < block.size(); ++i) block[i] = static_cast<char>((i * 7919) >> 3);
    for (size_t done = 0; done < size; done += block.size()) {
      Need("flood", WriteAll(STDOUT_FILENO, block, "stdout"));
    }
    Need("flood", WriteAll(STDOUT_FILENO, "\n", "stdout"));
  }

  // ---- checkpoints ----

  void Load(const std::string& folder) {
    const Json state = ReadJsonFile(folder + "/switchyard/state.json").value();
    step_ = saved_step_ = JsonGet<int64_t>(state, "step").value();
    state_ = static_cast<uint32_t>(JsonGet<int64_t>(state, "state").value());
  }

  static absl::Status WriteFile(const std::string& path, const std::string& data) {
    UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (!fd.valid()) return ErrnoStatus("create", path, errno);
    absl::Status status = WriteAll(fd.get(), data, path);
    if (status.ok() && ::fsync(fd.get()) != 0) status = ErrnoStatus("fsync", path, errno);
    return status;
  }

  void Save(bool final) {
    const std::string folder =
        absl::StrCat(config_.job_dir, "/staging/", config_.attempt, "/step-", step_);
    const std::string weights =
        absl::StrFormat("state %08x\n", state_) +
        std::string(static_cast<size_t>(JsonGetOr<int64_t>(plan_, "pad_bytes", 0).value()), 'x');
    const std::string state =
        DumpJson(Json{{"version", 1}, {"step", step_}, {"state", int64_t{state_}}});
    Json files = Json::array();
    for (const auto& [name, data] :
         {std::pair<const char*, const std::string&>{"model.safetensors", weights},
          {"switchyard/state.json", state}}) {
      files.push_back(Json{{"name", name},
                           {"size", data.size()},
                           {"crc32c", absl::StrFormat("%08x", Crc32c(data))}});
    }
    const std::string manifest = DumpJson(Json{{"version", 1},
                                               {"job", config_.job_name},
                                               {"job_uid", config_.job_uid},
                                               {"attempt", config_.attempt},
                                               {"step", step_},
                                               {"final", final},
                                               {"world_size", config_.world_size},
                                               {"ep_size", 1},
                                               {"loss", 1.0},
                                               {"validation_loss", nullptr},
                                               {"files", files}});
    absl::Status status = MakeFolders(folder + "/switchyard");
    if (status.ok()) status = WriteFile(folder + "/model.safetensors", weights);
    if (status.ok()) status = WriteFile(folder + "/switchyard/state.json", state);
    if (status.ok()) status = WriteFile(folder + "/switchyard/manifest.json", manifest);
    if (status.ok()) status = SyncFolder(folder + "/switchyard");
    if (status.ok()) status = SyncFolder(folder);
    if (!status.ok()) {
      Send(ErrorFrame{
          absl::IsResourceExhausted(status) ? FailureReason::kDiskFull : FailureReason::kStorageIo,
          std::string(status.message()), step_});
      ::_exit(kExitError);
    }
    Note("checkpoint");
    saved_step_ = step_;
    result_ok_.reset();
    CheckpointFrame frame;
    frame.step = step_;
    frame.path = folder;
    frame.manifest_crc32c = Crc32c(manifest);
    frame.final = final;
    frame.loss = 1.0;
    Send(frame);
  }

  void Send(const RankFrame& frame) {
    if (!link_.Send(ToJson(frame)).ok()) {
      Note("end");
      ::_exit(kExitStopped);  // the agent is gone
    }
  }

  FrameChannel link_;
  ConfigFrame config_;
  Json plan_;
  UniqueFd trace_, lock_;
  int64_t total_steps_ = 0, every_steps_ = 0;
  absl::Duration step_time_;
  int64_t step_ = 0, saved_step_ = 0;
  uint32_t state_ = 0;
  absl::optional<bool> result_ok_;  // of the last checkpoint
  std::vector<char*> ballast_;
};

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  const std::vector<std::string> args(argv + 1, argv + argc);
  ::signal(SIGPIPE, SIG_IGN);
  if (args.size() == 5 && args[0] == "run" && args[1] == "--config" && args[3] == "--cache-dir") {
    return switchyard::RunPrep(args[2], args[4]);
  }
  int fd = -1;
  if (args.size() == 2 && args[0] == "--link-fd" && absl::SimpleAtoi(args[1], &fd)) {
    return switchyard::FakeTrainer(fd).Run();
  }
  std::fprintf(stderr, "unexpected arguments\n");
  return 64;
}

// switchyard-trainer: one rank of one attempt. Flags and wiring; no logic.
#include <ATen/Parallel.h>
#include <malloc.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/log.h"
#include "base/thread.h"
#include "worker/link/frame.h"
#include "worker/link/messages.h"
#include "worker/trainer/config.h"
#include "worker/trainer/control.h"
#include "worker/trainer/failure.h"
#include "worker/trainer/parallel/c10d_comm.h"
#include "worker/trainer/trainer.h"

namespace switchyard {
namespace {

constexpr int kExitUsage = 2;
constexpr char kHelp[] =
    "switchyard-trainer: trains one rank of one attempt of a job.\n"
    "  --link-fd N     started by an agent: frames over the connected socket N\n"
    "  --config FILE   alone: the config frame's JSON from FILE, frames as JSON lines on stdout;\n"
    "                  checkpoints stay in <job_dir>/staging\n"
    "Exactly one of both. Contracts: docs/contracts.md. Exit codes: 0 done, 1 failed, 2 usage,\n"
    "3 stopped by request.\n"
#if defined(SY_CUDA)
    "CUDA: yes\n";
#else
    "CUDA: no\n";
#endif

Control* g_control = nullptr;

void OnTerminate(int) { g_control->RequestStop(/*checkpoint=*/true); }

struct Flags {
  int link_fd = -1;
  std::string config;
};

// Empty: good. Else what is wrong with the command line.
std::string ParseFlags(int argc, char** argv, Flags* flags, bool* help) {
  for (int i = 1; i < argc; ++i) {
    absl::string_view arg = argv[i];
    if (arg == "--help") {
      *help = true;
      return "";
    }
    std::string name(arg), value;
    if (const size_t equals = arg.find('='); equals != absl::string_view::npos) {
      name = std::string(arg.substr(0, equals));
      value = std::string(arg.substr(equals + 1));
    } else if (i + 1 < argc) {
      value = argv[++i];
    }
    if (name == "--config") {
      flags->config = value;
    } else if (name == "--link-fd") {
      if (!absl::SimpleAtoi(value, &flags->link_fd) || flags->link_fd < 0) {
        return absl::StrCat("--link-fd: \"", value, "\" is not a descriptor");
      }
    } else {
      const char initial = name.size() > 2 ? name[2] : ' ';
      const char* near = initial == 'l' ? "--link-fd" : initial == 'h' ? "--help" : "--config";
      return absl::StrCat("unknown flag ", name, "; did you mean ", near, "?");
    }
  }
  if ((flags->link_fd >= 0) == !flags->config.empty()) {
    return "give one of --link-fd and --config";
  }
  return "";
}

// Where frames come from and go to.
struct Wire {
  std::unique_ptr<FrameChannel> channel;  // null: stdout
  void Send(const RankFrame& frame) const {
    if (channel == nullptr) {
      std::cout << DumpJson(ToJson(frame)) << std::endl;
      return;
    }
    // The reader notices a closed link and stops the training; here it is only noted.
    if (const absl::Status sent = channel->Send(ToJson(frame)); !sent.ok()) {
      SY_LOG(WARNING) << "frame not sent: " << sent;
    }
  }
};

ConfigFrame ReceiveConfig(const Flags& flags, const Wire& wire) {
  const Json json = OrThrow(wire.channel == nullptr ? ReadJsonFile(flags.config)
                                                    : wire.channel->Receive(absl::Seconds(60)));
  AgentFrame frame = OrThrow(ParseAgentFrame(json));
  auto* config = std::get_if<ConfigFrame>(&frame);
  if (config == nullptr) {
    throw TrainError(FailureReason::kConfigInvalid, "the first frame is not a config");
  }
  return std::move(*config);
}

// Turns the agent's frames into orders until the link closes, which is one too.
void ReadLink(FrameChannel& channel, Control& control, const StopToken& token) {
  while (!token.StopRequested()) {
    const absl::StatusOr<Json> json = channel.Receive(absl::Milliseconds(500));
    if (absl::IsDeadlineExceeded(json.status())) continue;
    const absl::StatusOr<AgentFrame> frame =
        json.ok() ? ParseAgentFrame(*json) : absl::StatusOr<AgentFrame>(json.status());
    if (!frame.ok()) {
      SY_LOG(WARNING) << "link ended, stopping without a checkpoint: " << frame.status();
      control.RequestStop(/*checkpoint=*/false);
      return;
    }
    if (const auto* stop = std::get_if<StopFrame>(&*frame)) {
      SY_LOG(INFO) << "asked to stop reason=" << stop->reason << " checkpoint=" << stop->checkpoint;
      control.RequestStop(stop->checkpoint);
    } else if (const auto* result = std::get_if<CheckpointResultFrame>(&*frame)) {
      control.AddCheckpointResult(*result);
    }
  }
}

// Without these a trainer on the CPU grows for hundreds of steps. glibc raises its mmap threshold
// to the largest block ever freed and then keeps ragged tensors in a heap that fragments; oneDNN
// keeps compiled code for 1024 shapes, and every number of rows an expert gets is another shape.
void BoundHostMemory() {
  mallopt(M_MMAP_THRESHOLD, 4 << 20);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);  // else every step faults its pages in again
  setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64", /*overwrite=*/0);
}

int RunTrainer(const Flags& flags) {
  BoundHostMemory();
  static Control control;  // outlives the signal handler
  g_control = &control;
  struct sigaction action = {};
  action.sa_handler = OnTerminate;
  action.sa_flags = SA_RESTART;
  sigaction(SIGTERM, &action, nullptr);

  Wire wire;
  if (flags.link_fd >= 0) wire.channel = std::make_unique<FrameChannel>(UniqueFd(flags.link_fd));
  try {
    const ConfigFrame frame =
        Blame(FailureReason::kConfigInvalid, [&] { return ReceiveConfig(flags, wire); });
    const std::string prefix = absl::StrCat("rank ", frame.rank, " ");
    SetLogPrefix(prefix.c_str());
    wire.Send(HelloFrame{frame.rank, getpid()});
    const TrainConfig config =
        Blame(FailureReason::kConfigInvalid, [&] { return OrThrow(ReadTrainConfig(frame)); });
    if (const std::vector<std::string> faults = config.Validate(); !faults.empty()) {
      throw TrainError(FailureReason::kConfigInvalid, absl::StrJoin(faults, "; "));
    }
    at::set_num_interop_threads(1);

    TrainerEnvironment environment;
    environment.make_comms = [&](const Mesh& mesh) {
      C10dOptions options;
      options.master_address = config.run.master_address;
      options.master_port = static_cast<int>(config.run.master_port);
      options.timeout = config.parallel.collective_timeout;
      options.cuda = config.run.device != "cpu";
      options.gang = absl::StrCat(config.run.job_uid, ".", config.run.attempt);
      return MakeC10dComms(mesh, options);
    };
    environment.report = [&wire](const RankFrame& report) { wire.Send(report); };
    environment.control = &control;
    environment.clock = &RealClock::Get();
    if (wire.channel == nullptr) environment.commit_timeout = absl::ZeroDuration();
    Thread reader;
    if (wire.channel != nullptr) {
      reader =
          Thread("link", [&](const StopToken& token) { ReadLink(*wire.channel, control, token); });
    }
    return Train(config, environment).stopped ? kExitStopped : kExitDone;
  } catch (const std::exception& e) {
    ErrorFrame error = DescribeFailure(e);
    error.step = control.steps_done.load();
    SY_LOG(ERROR) << error.message << " reason=" << Name(error.reason) << " step=" << error.step;
    wire.Send(error);
    return kExitError;
  }
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  switchyard::Flags flags;
  bool help = false;
  const std::string fault = switchyard::ParseFlags(argc, argv, &flags, &help);
  if (help) {
    std::fputs(switchyard::kHelp, stdout);
    return 0;
  }
  if (!fault.empty()) {
    std::fprintf(stderr, "switchyard-trainer: %s\n%s", fault.c_str(), switchyard::kHelp);
    return switchyard::kExitUsage;
  }
  return switchyard::RunTrainer(flags);
}

#include "tests/simulation/history.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/api/convert.h"
#include "server/error.h"
#include "tests/simulation/checker.h"
#include "tests/simulation/coordinator.h"
#include "tests/simulation/network.h"
#include "tests/simulation/node.h"
#include "tests/simulation/trainers.h"
#include "tests/simulation/world.h"

namespace switchyard::simulation {
namespace {

// Faults stop after this long; a history that is not over as long again is stuck.
constexpr absl::Duration kFaultsFor = absl::Minutes(40);
constexpr absl::Duration kPatience = absl::Hours(6);

class History {
 public:
  explicit History(const HistoryOptions& options);
  HistoryResult Run();

 private:
  CoordinatorOptions MakeCoordinatorOptions();
  void AddNodes();
  void AddJobs();
  // Calls again until the answer is one of the coordinator's, not of the network or a full disk.
  void Ask(const std::string& name, std::function<absl::Status()> call,
           std::function<void(const absl::Status&)> done);
  void Submit(int number);
  void Cancel(const JobId& id);
  void Pause(const JobId& id);
  void Resume(const JobId& id);
  void Schedule(const std::string& node, NodeScheduling scheduling);

  void NextFault();
  void FaultCoordinator();
  void FaultNode(SimNode& node);
  void FaultNetwork(SimNode& node);
  void FaultStore();
  void FaultCheckpoint();
  // Reboots, or kills the agent, so many times, some seconds after each start.
  void Flap(SimNode& node, int times);
  void Heal();
  std::string FirstStuck();
  void Supervise();
  Random& random() { return world_.random(); }
  SimNode& AnyNode() {
    return *nodes_[static_cast<size_t>(random().Range(0, static_cast<int>(nodes_.size()) - 1))];
  }

  const HistoryOptions options_;
  World world_;
  LeaseConfig lease_;  // before the coordinator, which takes it
  SimCoordinator coordinator_;
  Network network_;
  Trainers trainers_;
  Checker checker_;
  Cluster cluster_;
  Link user_link_;
  std::vector<std::unique_ptr<SimNode>> nodes_;
  int num_submitted_ = 0;  // acknowledged
  int max_ranks_ = 1;
  bool faults_on_ = true;
  double fault_pace_ = 1;  // seconds between two faults, on average
};

History::History(const HistoryOptions& options)
    : options_(options),
      world_(options.seed, options.verbose),
      coordinator_(world_, MakeCoordinatorOptions()),
      network_(world_, coordinator_),
      trainers_(world_),
      checker_(world_, trainers_),
      cluster_{world_,
               network_,
               coordinator_,
               trainers_,
               [this](const Part& part) { checker_.OnPartStarted(coordinator_.database(), part); },
               [this](const SimNode& node, const AttemptId& attempt) {
                 checker_.OnEndAcknowledged(coordinator_.database(), node, attempt);
               }} {
  coordinator_.SetObserver(
      {[this](Store& store, const ChangeSet& changes) { checker_.OnCommit(store, changes); },
       [this](Store& store) {
         checker_.OnRestored(store);
         checker_.SetRecovering(true);
       },
       [this] { checker_.SetRecovering(false); }});
  user_link_.loss = 0.05;
  fault_pace_ = absl::ToDoubleSeconds(random().Spread(absl::Seconds(5), absl::Seconds(60)));
}

CoordinatorOptions History::MakeCoordinatorOptions() {
  CoordinatorOptions options;
  options.folder = options_.folder + "/state";
  options.artifact_root = options_.folder + "/artifacts";
  const int kind = random().Range(0, 2);
  lease_.ttl = kind == 0 ? absl::Seconds(20) : absl::Seconds(kind == 1 ? 45 : 120);
  // Up to the most that the configuration lets through.
  lease_.heartbeat = random().Spread(absl::Seconds(2), lease_.ttl / 3);
  options.lease = lease_;
  options.retry_backoff = random().Spread(absl::Seconds(1), absl::Seconds(10));
  options.tick = random().Chance(0.2) ? absl::Milliseconds(250) : absl::Seconds(3);
  return options;
}

void History::AddNodes() {
  const int num_nodes = random().Range(3, 7);
  int devices = 0;
  for (int i = 0; i < num_nodes; ++i) {
    const int num_devices = random().Range(2, 4);
    devices += num_devices;
    nodes_.push_back(std::make_unique<SimNode>(cluster_, absl::StrCat("node-", i), num_devices,
                                               /*num_boots_before=*/0));
    SimNode& node = *nodes_.back();
    node.link().loss = random().Chance(0.5) ? 0.002 : 0.05;
    world_.After(random().Spread(absl::Milliseconds(10), absl::Seconds(30)),
                 [&node] { node.StartAgent(); });
  }
  max_ranks_ = devices;
}

// ---- users ----

void History::AddJobs() {
  absl::Duration when;
  for (int i = 0; i < options_.num_jobs; ++i) {
    when += random().Spread(absl::Milliseconds(10), absl::Seconds(20));
    world_.At(when, [this, i] { Submit(i); });
  }
}

void History::Ask(const std::string& name, std::function<absl::Status()> call,
                  std::function<void(const absl::Status&)> done) {
  network_.Call(user_link_, absl::Seconds(10), call,
                [this, name, call, done](const absl::Status& status) {
                  if (absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
                      absl::IsResourceExhausted(status)) {
                    world_.Tally(absl::StrCat("user: ", name, " tried again"));
                    world_.After(random().Between(absl::Milliseconds(200), absl::Seconds(10)),
                                 [this, name, call, done] { Ask(name, call, done); });
                    return;
                  }
                  world_.Tally(absl::StrCat("user: ", name, " answered ",
                                            status.ok() ? "OK" : GetErrorDetails(status).reason));
                  done(status);
                });
}

void History::Submit(int number) {
  v1::JobSpec spec;
  const int ranks = random().Chance(0.7) ? random().Range(1, 2) : random().Range(1, 6);
  spec.set_seed(static_cast<uint32_t>(random().Next()));
  spec.mutable_parallel()->set_num_ranks(std::min(ranks, max_ranks_));
  spec.mutable_retry()->set_max_retries(random().Range(0, 8));
  spec.mutable_checkpoint()->set_save_optimizer(random().Chance(0.8));
  spec.mutable_checkpoint()->set_keep_last(random().Range(0, 2));
  if (random().Chance(0.3)) spec.mutable_schedule()->set_priority(random().Range(-2, 2));
  if (random().Chance(0.1)) {
    spec.mutable_schedule()->mutable_max_run_time()->set_seconds(random().Range(20, 300));
  }
  JobRecord job;
  job.id = JobId(absl::StrCat("projects/p/jobs/j", number));
  job.uid = absl::StrCat("uid-", number);
  job.project = std::string("p");  // GCC 12 warns of an assigned literal
  job.spec = spec.SerializeAsString();
  job.needs = NeedsOf(spec);
  const RequestKey key{"p", "CreateJob", absl::StrCat("submit-", number), job.spec};
  Ask(
      "submit", [this, job, key] { return coordinator_.store().CreateJob(job, key).status(); },
      [this, id = job.id](const absl::Status& status) {
        if (!status.ok()) {
          world_.Violate(absl::StrCat("CreateJob: ", status.ToString()));
          return;
        }
        checker_.Acknowledged(id);
        ++num_submitted_;
        const absl::Duration later = random().Spread(absl::Milliseconds(100), absl::Minutes(3));
        const double dice = random().Unit();
        if (dice < 0.10) world_.After(later, [this, id] { Cancel(id); });
        if (dice > 0.80) world_.After(later, [this, id] { Pause(id); });
      });
}

void History::Cancel(const JobId& id) {
  const absl::Duration grace = random().Spread(absl::Seconds(1), absl::Seconds(60));
  const RequestKey key{"p", "CancelJob", absl::StrCat("cancel-", id.value()), ""};
  Ask(
      "cancel",
      [this, id, grace, key] { return coordinator_.store().CancelJob(id, grace, key).status(); },
      [](const absl::Status&) {});
}

void History::Pause(const JobId& id) {
  const absl::Duration grace = random().Spread(absl::Seconds(1), absl::Seconds(60));
  const RequestKey key{"p", "PauseJob", absl::StrCat("pause-", id.value()), ""};
  Ask(
      "pause",
      [this, id, grace, key] { return coordinator_.store().PauseJob(id, grace, key).status(); },
      [this, id](const absl::Status& status) {
        if (!status.ok()) return;
        world_.After(random().Spread(absl::Milliseconds(10), absl::Minutes(3)),
                     [this, id] { Resume(id); });
      });
}

void History::Resume(const JobId& id) {
  // A new request each time: what was refused is asked anew.
  const RequestKey key{"p", "ResumeJob", absl::StrCat("resume-", random().Next()), ""};
  Ask(
      "resume", [this, id, key] { return coordinator_.store().ResumeJob(id, key).status(); },
      [this, id](const absl::Status& status) {
        if (status.ok() || GetErrorDetails(status).reason == "JOB_FINAL") return;
        world_.After(absl::Seconds(20), [this, id] { Resume(id); });
      });
}

void History::Schedule(const std::string& node, NodeScheduling scheduling) {
  const absl::Duration grace = random().Spread(absl::Seconds(1), absl::Seconds(60));
  Ask(
      absl::StrCat("node scheduling ", static_cast<int>(scheduling)),
      [this, node, scheduling, grace] {
        return coordinator_.store()
            .SetNodeScheduling(NodeId(node), scheduling, grace, "operator", "simulated")
            .status();
      },
      [](const absl::Status&) {});
}

// ---- faults ----

void History::NextFault() {
  world_.After(absl::Seconds(fault_pace_ * 2 * random().Unit()), [this] {
    if (!faults_on_) return;
    const double dice = random().Unit();
    if (dice < 0.18) {
      FaultCoordinator();
    } else if (dice < 0.25) {
      FaultStore();
    } else if (dice < 0.30) {
      SimNode& node = AnyNode();
      world_.Count("fault: node cordoned or drained");
      Schedule(node.name(),
               random().Chance(0.5) ? NodeScheduling::kCordoned : NodeScheduling::kDraining);
      world_.After(random().Spread(absl::Seconds(1), absl::Minutes(4)),
                   [this, &node] { Schedule(node.name(), NodeScheduling::kActive); });
    } else if (dice < 0.34) {
      FaultCheckpoint();
    } else if (dice < 0.70) {
      FaultNode(AnyNode());
    } else {
      FaultNetwork(AnyNode());
    }
    NextFault();
  });
}

void History::FaultCoordinator() {
  switch (random().Range(0, 6)) {
    case 0:
      world_.Count("fault: coordinator killed");
      coordinator_.Kill();
      break;
    case 1:
    case 2:
      world_.Count("fault: coordinator to be killed within a write");
      coordinator_.KillAtStatement(random().Range(0, 120));
      break;
    case 3:
      world_.Count("fault: coordinator to be killed after a commit");
      coordinator_.KillAfterCommit();
      break;
    case 4:
      world_.Count("fault: coordinator stopped");
      coordinator_.Pause(world_.now() + random().Spread(absl::Seconds(0.1), absl::Minutes(4)));
      break;
    case 5:
      world_.Count("fault: coordinator to be killed in a publication");
      coordinator_.KillInPublication();
      break;
    case 6:
      world_.Count("fault: wall clock jumps");
      world_.clock().JumpWall(random().Between(-absl::Hours(2), absl::Hours(26)));
      break;
  }
}

void History::FaultStore() {
  if (random().Chance(0.5)) {
    world_.Count("fault: disk of the coordinator full");
    coordinator_.SetDiskFull(true);
    world_.After(random().Spread(absl::Seconds(0.1), absl::Minutes(3)),
                 [this] { coordinator_.SetDiskFull(false); });
  } else {
    world_.Count("fault: next commit fails");
    coordinator_.FailNextCommit();
  }
}

void History::FaultCheckpoint() {
  if (coordinator_.database() == nullptr) return;
  const auto jobs = coordinator_.database()->JobsIn(
      {JobState::kQueued, JobState::kStarting, JobState::kRunning, JobState::kStopping});
  if (!jobs.ok() || jobs->empty()) return;
  const JobRecord& job =
      (*jobs)[static_cast<size_t>(random().Range(0, static_cast<int>(jobs->size()) - 1))];
  const auto checkpoints = coordinator_.database()->ListCheckpoints(job.id, 0, 10);
  if (!checkpoints.ok() || checkpoints->empty()) return;
  if (DamageCheckpoint(checkpoints->front().path, random())) {
    world_.Count("fault: checkpoint damaged");
  }
}

void History::Flap(SimNode& node, int times) {
  if (!faults_on_ || times == 0) return;
  if (random().Chance(0.7)) {
    if (random().Chance(0.5)) network_.Replay(node.link());
    node.Reboot();
  } else {
    node.KillAgent();
  }
  const absl::Duration down = random().Spread(absl::Milliseconds(100), absl::Seconds(10));
  world_.After(down, [&node] { node.StartAgent(); });
  world_.After(down + random().Spread(absl::Seconds(2), absl::Minutes(1)),
               [this, &node, times] { Flap(node, times - 1); });
}

void History::FaultNode(SimNode& node) {
  const absl::Duration down = random().Spread(absl::Milliseconds(100), absl::Minutes(4));
  switch (random().Range(0, 9)) {
    case 0:
    case 1:
    case 2:
      world_.Count("fault: agent killed");
      node.KillAgent();
      world_.After(down, [&node] { node.StartAgent(); });
      break;
    case 3:
      world_.Count("fault: agent stopped");
      node.StopAgent(world_.now() + down);
      break;
    case 4:
      world_.Count("fault: machine frozen");
      node.Freeze(world_.now() + down);
      break;
    case 5:
      world_.Count("fault: machine rebooted");
      node.Reboot();
      world_.After(down, [&node] { node.StartAgent(); });
      break;
    case 6: {
      world_.Count("fault: trainers killed");
      for (const auto& [id, part] : node.disk().parts) {
        if (part->alive) node.KillPart(part, absl::ZeroDuration(), "killed by a fault");
      }
      break;
    }
    case 7:
      world_.Count("fault: disk of an agent full");
      node.disk().full = true;
      world_.After(down, [&node] { node.disk().full = false; });
      break;
    case 8:
      world_.Count("fault: agent terminated");
      node.TerminateAgent(random().Spread(absl::Seconds(1), absl::Seconds(30)));
      world_.After(down + absl::Minutes(1), [&node] { node.StartAgent(); });
      break;
    case 9:
      world_.Count("fault: machine flaps");
      Flap(node, random().Range(2, 6));
      break;
  }
}

void History::FaultNetwork(SimNode& node) {
  const absl::Duration down = random().Spread(absl::Milliseconds(100), absl::Minutes(5));
  const int way = random().Range(0, 3);
  if (way == 3) {
    // The coordinator hears of the node for the last time, but its answer comes much later, and
    // nothing more gets to it until the lease is over.
    world_.Count("fault: link cut downwards, then upwards; answers are held back");
    node.link().cut_down = true;
    world_.After(random().Between(absl::ZeroDuration(), 2 * lease_.heartbeat),
                 [&node] { node.link().cut_up = true; });
    world_.After(random().Between(absl::Seconds(1), lease_.ttl),
                 [&node] { node.link().cut_down = false; });
    world_.After(random().Between(lease_.ttl, 3 * lease_.ttl),
                 [&node] { node.link().cut_up = node.link().cut_down = false; });
    return;
  }
  world_.Count(way == 0   ? "fault: link cut"
               : way == 1 ? "fault: link cut upwards"
                          : "fault: link cut downwards");
  if (way != 2) node.link().cut_up = true;
  if (way != 1) node.link().cut_down = true;
  world_.After(down, [&node] { node.link().cut_up = node.link().cut_down = false; });
}

void History::Heal() {
  faults_on_ = false;
  world_.Trace("faults stop");
  coordinator_.SetDiskFull(false);
  for (const std::unique_ptr<SimNode>& node : nodes_) {
    node->disk().full = false;
    node->link().cut_up = node->link().cut_down = false;
    node->link().loss = 0;
  }
  Supervise();
}

// What systemd does on every machine: processes that are gone start again. And what an operator
// does who looks from time to time: an order to cordon may have come twice, the second time late.
void History::Supervise() {
  for (const std::unique_ptr<SimNode>& node : nodes_) {
    node->StartAgent();
    Schedule(node->name(), NodeScheduling::kActive);
  }
  world_.After(absl::Minutes(5), [this] { Supervise(); });
}

// The oldest job that has not ended, for people.
std::string History::FirstStuck() {
  if (coordinator_.database() == nullptr) return "; the coordinator is down";
  const auto jobs =
      coordinator_.database()->JobsIn({JobState::kQueued, JobState::kStarting, JobState::kRunning,
                                       JobState::kStopping, JobState::kPaused});
  if (!jobs.ok() || jobs->empty()) return "; none is stored";
  const JobRecord& job = jobs->front();
  return absl::StrCat("; ", job.id.value(), " is ", Name(job.state), ": ", job.message);
}

HistoryResult History::Run() {
  AddNodes();
  AddJobs();
  coordinator_.Start();
  NextFault();
  world_.At(kFaultsFor, [this] {
    if (faults_on_) Heal();
  });
  const auto over = [this] {
    return num_submitted_ == options_.num_jobs && checker_.AllFinal() &&
           checker_.num_known() == options_.num_jobs;
  };
  while (world_.violation().empty() && !over()) {
    if (!world_.Step() || world_.now() > kFaultsFor + kPatience) {
      world_.Violate(absl::StrCat(checker_.num_known() - checker_.num_final(),
                                  " jobs did not end though all faults have", FirstStuck()));
    }
  }
  if (world_.violation().empty() && coordinator_.database() != nullptr) {
    checker_.OnRestored(*coordinator_.database());
    checker_.CheckAll(*coordinator_.database());
  }
  HistoryResult result;
  result.violation = world_.violation();
  result.num_lives = checker_.num_final();
  result.num_steps = world_.num_steps();
  result.simulated_seconds = absl::ToDoubleSeconds(world_.now());
  result.digest = world_.digest();
  result.counts = world_.counts();
  return result;
}

}  // namespace

HistoryResult RunHistory(const HistoryOptions& options) { return History(options).Run(); }

}  // namespace switchyard::simulation

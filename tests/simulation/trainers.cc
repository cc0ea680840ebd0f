#include "tests/simulation/trainers.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/crc32c.h"
#include "base/fd.h"
#include "tests/simulation/node.h"

namespace switchyard::simulation {
namespace {

// How long a collective waits for a rank that does not come.
constexpr absl::Duration kCollectiveTimeout = absl::Seconds(60);
constexpr absl::Duration kWatchdog = absl::Minutes(3);
// How long the ranks wait for the publication of their last checkpoint.
constexpr absl::Duration kCommitTimeout = absl::Minutes(10);

void WriteWhole(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
}

std::string ReadWhole(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// Whether Checkpoint wrote this, and nothing has damaged it.
bool IsWhole(const std::string& folder, int64_t step) {
  const std::string weights = ReadWhole(folder + "/model.safetensors");
  return absl::StartsWith(weights, "weights of ") &&
         absl::EndsWith(weights, absl::StrCat("/", step)) &&
         !ReadWhole(folder + "/switchyard/manifest.json").empty();
}

}  // namespace

bool DamageCheckpoint(const std::string& folder, Random& random) {
  const std::string path = folder + "/model.safetensors";
  std::string weights = ReadWhole(path);
  if (weights.empty()) return false;  // on its way out
  switch (random.Range(0, 2)) {
    case 0:
      weights.pop_back();
      break;
    case 1:
      weights[0] = static_cast<char>(weights[0] ^ 1);
      break;
    case 2:
      return ::unlink((folder + "/switchyard/manifest.json").c_str()) == 0;
  }
  WriteWhole(path, weights);
  return true;
}

const std::vector<std::shared_ptr<Part>>& Trainers::alive(const JobId& job) { return alive_[job]; }

void Trainers::Join(const std::shared_ptr<Part>& part) {
  std::shared_ptr<Gang>& gang = gangs_[part->id];
  if (gang == nullptr) {
    Random& random = world_.random();
    gang = std::make_shared<Gang>();
    gang->id = part->id;
    gang->num_nodes = part->assign.num_nodes();
    const std::string& from = part->assign.resume_from();
    int64_t resumed = 0;
    if (const size_t at = from.rfind("step-"); at != std::string::npos) {
      if (absl::SimpleAtoi(from.substr(at + 5), &resumed)) world_.Count("trainers: resumed");
    }
    gang->step = resumed;
    gang->last_step = static_cast<int64_t>(part->assign.spec().seed() % 6) + 2;
    gang->checkpoint_every = random.Range(1, 4);
    gang->step_time = random.Spread(absl::Milliseconds(200), absl::Seconds(8));
    gang->waiting_since = absl::InfiniteDuration();
    gang->fate_step = gang->step + random.Range(0, 5);
    const double dice = random.Unit();
    gang->fate = dice < 0.10   ? Fate::kCrash
                 : dice < 0.14 ? Fate::kHang
                 : dice < 0.15 ? Fate::kBadData
                 : dice < 0.16 ? Fate::kNoFinalCheckpoint
                 : dice < 0.18 ? Fate::kTornCheckpoint
                               : Fate::kFinish;
    if (!from.empty() && !IsWhole(from, resumed)) gang->fate = Fate::kCannotResume;
    world_.After(gang->step_time, [this, gang] { Tick(gang); });
  }
  gang->parts.push_back(part);
  alive_[part->id.job].push_back(part);
}

void Trainers::Ended(Part& part) {
  std::vector<std::shared_ptr<Part>>& alive = alive_[part.id.job];
  alive.erase(std::remove_if(alive.begin(), alive.end(),
                             [&](const std::shared_ptr<Part>& p) { return p.get() == &part; }),
              alive.end());
}

void Trainers::Committed(const AttemptId& id, int64_t step, bool ok) {
  const auto it = gangs_.find(id);
  if (it == gangs_.end() || it->second->over) return;
  Gang& gang = *it->second;
  if (!ok) {
    EndAll(gang, {false, v1::CHECKPOINT_INVALID, "the coordinator refused a checkpoint"});
    return;
  }
  if (gang.uncommitted == step) gang.uncommitted.reset();
}

void Trainers::EndAll(Gang& gang, const PartEnd& end) {
  gang.over = true;
  for (const std::shared_ptr<Part>& part : gang.parts) {
    if (part->alive) part->node.EndPart(*part, end);
  }
}

void Trainers::Tick(const std::shared_ptr<Gang>& gang) {
  if (gang->over) return;
  Step(*gang);
  const bool any = std::any_of(gang->parts.begin(), gang->parts.end(),
                               [](const std::shared_ptr<Part>& p) { return p->alive; });
  if (gang->over || !any) {
    gang->over = true;
    return;
  }
  world_.After(gang->step_time, [this, gang] { Tick(gang); });
}

void Trainers::Step(Gang& gang) {
  // A collective needs every rank.
  const bool complete =
      static_cast<int>(gang.parts.size()) == gang.num_nodes &&
      std::all_of(gang.parts.begin(), gang.parts.end(),
                  [](const std::shared_ptr<Part>& p) { return p->alive && !p->node.frozen(); });
  if (!complete) {
    if (gang.waiting_since == absl::InfiniteDuration()) gang.waiting_since = world_.now();
    if (world_.now() - gang.waiting_since < kCollectiveTimeout) return;
    for (const std::shared_ptr<Part>& part : gang.parts) {
      if (part->alive && !part->node.frozen()) {
        part->node.EndPart(*part, {false, v1::NCCL_ERROR, "a collective timed out"});
      }
    }
    return;
  }
  if (gang.hung) {
    // The watchdog of their agent ends it, should nobody else.
    if (world_.now() - gang.waiting_since > kWatchdog) {
      EndAll(gang, {false, v1::HANG, "no step for three minutes"});
    }
    return;
  }
  if (gang.uncommitted) {
    if (gang.waiting_since == absl::InfiniteDuration()) gang.waiting_since = world_.now();
    if (world_.now() - gang.waiting_since > kCommitTimeout) {
      EndAll(gang, {false, v1::STORAGE_IO, "the last checkpoint was not published in time"});
    }
    return;
  }
  gang.waiting_since = absl::InfiniteDuration();
  if (gang.fate == Fate::kCannotResume) {  // damaged since the coordinator looked at it
    world_.Count("trainers: a damaged checkpoint refused");
    EndAll(gang, {false, v1::CHECKPOINT_INVALID, "the checkpoint to resume from is damaged"});
    return;
  }
  const bool stop = std::any_of(gang.parts.begin(), gang.parts.end(),
                                [](const std::shared_ptr<Part>& p) { return p->stop; });
  if (stop) {
    const bool save =
        std::any_of(gang.parts.begin(), gang.parts.end(),
                    [](const std::shared_ptr<Part>& p) { return p->stop_checkpoint; });
    for (const std::shared_ptr<Part>& part : gang.parts) {
      if (part->stop) part->stop_checkpoint = false;
    }
    if (save && gang.step > 0) {
      world_.Count("trainers: checkpoint on a stop");
      Checkpoint(gang, false);
      return;
    }
    // All ranks agree to stop, also where only one was told.
    world_.Count("trainers: stopped at a step");
    EndAll(gang, {true, v1::FAILURE_REASON_UNSPECIFIED, ""});
    return;
  }
  if (gang.fate == Fate::kHang && gang.step >= gang.fate_step) {
    world_.Count("trainers: hang");
    gang.hung = true;
    gang.waiting_since = world_.now();
    return;
  }
  if (gang.step >= gang.fate_step) {
    if (gang.fate == Fate::kCrash || gang.fate == Fate::kBadData) {
      Part& first = *gang.parts[static_cast<size_t>(
          world_.random().Range(0, static_cast<int>(gang.parts.size()) - 1))];
      const bool bad = gang.fate == Fate::kBadData;
      world_.Count(bad ? "trainers: bad data" : "trainers: crash");
      gang.fate = Fate::kFinish;
      first.node.EndPart(
          first, {false, bad ? v1::DATA_INVALID : v1::TRAINER_SIGNAL, "simulated end of a rank"});
      return;
    }
  }
  const bool last = gang.step >= gang.last_step;
  if (!last) {
    ++gang.step;
    for (const std::shared_ptr<Part>& part : gang.parts) {
      if (part->assign.node_rank() == 0) {
        part->frames.push_back({RankFrame::Kind::kStep, gang.step, false, "", 0});
        part->node.TellAgent(part);
      }
    }
    if (gang.step < gang.last_step && gang.step % gang.checkpoint_every != 0) return;
    Checkpoint(gang, gang.step == gang.last_step);
    return;
  }
  if (!gang.final_written) {
    // Resumed from its last step, it has nothing to train, but must leave a final checkpoint.
    Checkpoint(gang, true);
    return;
  }
  world_.Count("trainers: finished");
  EndAll(gang, {true, v1::FAILURE_REASON_UNSPECIFIED, ""});
}

void Trainers::Checkpoint(Gang& gang, bool final) {
  if (final) gang.final_written = true;
  if (final && gang.fate == Fate::kNoFinalCheckpoint) {
    world_.Count("trainers: no final checkpoint");
    return;
  }
  for (const std::shared_ptr<Part>& part : gang.parts) {
    if (part->assign.node_rank() != 0) continue;
    RankFrame frame{RankFrame::Kind::kCheckpoint, gang.step, final, "", 0};
    frame.staging_path =
        absl::StrCat(part->assign.job_dir(), "/staging/", gang.id.number, "/step-", gang.step);
    const std::string weights = absl::StrCat("weights of ", gang.id.number, "/", gang.step);
    const std::string manifest = absl::StrFormat(
        R"({"version":1,"step":%d,"job":"%s","attempt":%d,"files":[{"name":"model.safetensors","size":%d,"crc32c":"%08x"}]})",
        gang.step, gang.id.job.value(), gang.id.number, weights.size(), Crc32c(weights));
    frame.crc = Crc32c(manifest);
    const bool torn = gang.fate == Fate::kTornCheckpoint && gang.step >= gang.fate_step && !final;
    if (torn) {
      world_.Count("trainers: torn checkpoint");
      gang.fate = Fate::kFinish;
    }
    if (!MakeFolders(frame.staging_path + "/switchyard").ok()) world_.Violate("mkdir failed");
    WriteWhole(frame.staging_path + "/model.safetensors", torn ? weights.substr(3) : weights);
    WriteWhole(frame.staging_path + "/switchyard/manifest.json", manifest);
    world_.Count("trainers: checkpoint written");
    if (final) gang.uncommitted = gang.step;
    part->frames.push_back(std::move(frame));
    part->node.TellAgent(part);
  }
}

}  // namespace switchyard::simulation

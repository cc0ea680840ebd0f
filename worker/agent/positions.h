// How far the agent has come with the files of an attempt: "positions" in its folder, a mapped
// file, so that a killed agent's successor goes on exactly there.
#ifndef SWITCHYARD_WORKER_AGENT_POSITIONS_H_
#define SWITCHYARD_WORKER_AGENT_POSITIONS_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <string>

#include "worker/shim/attempt_files.h"

namespace switchyard {

struct RankPositions {
  // Frames before this byte have become reports. Moved after the report is in the spool's files,
  // not while it waits for space there; the spool itself may know better (RecoveredSpool).
  std::atomic<int64_t> frames_reported{0};
  // Frames before this byte are not needed again: all that they said is in the fields below, or
  // done. The first one after it may be an error, a done, or a checkpoint that is not answered.
  std::atomic<int64_t> frames_folded{0};
  std::atomic<uint32_t> said_hello{0};
  // Log bytes before these are noted in the spool's files.
  std::atomic<int64_t> out_noted{0};
  std::atomic<int64_t> err_noted{0};
};

struct AttemptPositions {
  RankPositions prep;  // rank -1: only the logs
  std::atomic<int64_t> last_step{0};
  std::atomic<uint32_t> phase{0};              // ProgressPhase of the gang
  RankPositions ranks[ShimStatus::kMaxRanks];  // in the order of the launch plan

  // Its logs' place for "stdout" or "stderr".
  static std::atomic<int64_t>& Noted(RankPositions& rank, const std::string& stream) {
    return stream == "stdout" ? rank.out_noted : rank.err_noted;
  }
};

inline constexpr char kPositionsFile[] = "positions";

// Moves `position` forward to `value`.
inline void Raise(std::atomic<int64_t>& position, int64_t value) {
  position.store(std::max(position.load(), value));
}

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_POSITIONS_H_

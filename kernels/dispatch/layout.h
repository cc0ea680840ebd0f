// The kernels' own part of arenas and plans, and what launchers check.
#ifndef SWITCHYARD_KERNELS_DISPATCH_LAYOUT_H_
#define SWITCHYARD_KERNELS_DISPATCH_LAYOUT_H_

#include "kernels/dispatch/dispatch.h"

namespace switchyard::kernels {

// Calls that are counted in rounds.
enum class DispatchKind : int {
  kRoute = 0,
  kExchange = 1,
  kDispatchPush = 2,
  kDispatchExpand = 3,
  kCombinePush = 4,
  kCombineReduce = 5,
};
constexpr int kNumDispatchKinds = 6;

// What one peer tells another, with the round as the tag.
enum class DispatchSignal : int {
  kRecordsArrived = 0,
  kRecordsConsumed = 1,
  kSumsArrived = 2,
  kSumsConsumed = 3,
};
constexpr int kNumDispatchSignals = 4;

struct DispatchState {
  uint32_t abort;  // 0, or 1 + a rank that has given up; peers write it
  uint32_t reported;
  uint32_t rounds[kNumDispatchKinds];   // done
  uint32_t tickets[kNumDispatchKinds];  // blocks of the running kernel that are done
};

// What Exchange computes for one rank. "Records" of a dispatch, "sums" of a combine.
struct DispatchTables {
  int32_t copy_base[kMaxDispatchExperts];        // row of this rank's first copy, at the owner
  int32_t record_base_there[kMaxDispatchRanks];  // number of this rank's first record at each peer
  int32_t record_base_here[kMaxDispatchRanks + 1];  // of each source's first record here; their sum
  int32_t sum_base_there[kMaxDispatchRanks];        // of this rank's first sum at each source
  int32_t sum_base_here[kMaxDispatchRanks];         // of each owner's first sum here
};

// places: rank << kPlaceRowBits | row
constexpr int kPlaceRowBits = 27;
constexpr int32_t kPlaceRowMask = (1 << kPlaceRowBits) - 1;

// Tokens that one block of Route counts; no tokens are one empty segment.
constexpr int kDispatchSegment = 256;
constexpr int64_t NumDispatchSegments(int64_t tokens) {
  return tokens == 0 ? 1 : CeilDiv(tokens, kDispatchSegment);
}

bool IsSupported(const DispatchGroup& group, const DispatchPlanData& plan);

// Each file's share of DispatchLoad.
cudaError_t LoadPlanKernels();
cudaError_t LoadPushKernels();
cudaError_t LoadCombinePushKernels();
cudaError_t LoadCombineReduceKernels();

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_DISPATCH_LAYOUT_H_

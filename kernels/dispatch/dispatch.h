// Expert parallelism over peer memory: token rows go to the ranks that own their experts and come
// back summed. Rank d owns experts [d El, (d+1) El), El = experts / ranks.
//
// Every rank has an arena, mapped on all ranks of the group, into which the others store; nobody
// reads remote memory. One record per (token, remote rank): a row crosses a link once, however
// many of its experts live there.
//
//   Route     slots of this rank's records, per destination (stable: in token order); counts to all
//   Exchange  offsets, the final row of each copy, bases of all blocks, from all ranks' counts
//   DispatchPush    x -> records of the owners         (the caller's communication stream)
//   DispatchExpand  records and own tokens -> rows by expert          (any later stream)
//   CombinePush     sum of a record's rows -> sums of its source (communication stream)
//   CombineReduce   sums and own rows -> out                            (any later stream)
// The backward replays a plan: DispatchPush of the output's gradient, CombinePush of the rows'.
//
// Order, and so every bit of the results: rows are grouped by local expert, inside one by source
// rank, token, k. A rank's partial sum of a token is its rows' in ascending k from 0.f in fp32,
// rounded to bf16, the source's own rank included; the partials are added in ascending rank from
// 0.f in fp32, then the residual, rounded once.
//
// Rounds. Control words are 64-bit cells {tag << 32 | value} that one peer stores and the owner
// polls; tags are round numbers kept on the device, so calls replay in a CUDA graph and nothing is
// ever reset. There are two buffers of records and of sums: a push of round n+2 first waits until
// the peers have consumed round n. So at most two dispatches and two combines may be in flight
// between their push and their finish. All ranks make the same calls in the same order, also with
// no tokens; calls of one kind on one rank must be ordered one after another by the caller, as must
// Exchange between a Route and the next, a push after its plan's Exchange, and CombinePush after
// the DispatchExpand that had headers.
//
// Waiting takes one warp per call (Exchange: one block), in a kernel of its own before the one that
// works: ranks that share a GPU, or other kernels, are never starved by blocks that spin. They do
// need hardware queues: CUDA_DEVICE_MAX_CONNECTIONS=32 where ranks are streams of one process.
//
// Failure. A wait that lasts `timeout_ns` fills in `error`, raises the abort words of all peers and
// returns; whoever sees its abort word does the same and every later kernel returns at once. Then
// outputs are undefined and the arenas must be zeroed by all ranks before they are used again.
//
// Supported: 1 <= ranks <= 8 that divide experts <= 512; top_k <= 16; hidden % 8 == 0, <= 16384;
// tokens <= max_tokens; pointers 16-byte aligned. Functions allocate nothing and are asynchronous
// on `stream`. Errors: cudaErrorInvalidValue for an unsupported shape, else the launch error.
// Ideas: counts instead of atomics as torchtitan's minimal async EP, records per rank as DeepEP,
// tagged cells as FlashInfer's SM90 push path.
#ifndef SWITCHYARD_KERNELS_DISPATCH_DISPATCH_H_
#define SWITCHYARD_KERNELS_DISPATCH_DISPATCH_H_

#include "kernels/common/dtype.h"
#include "kernels/common/launch.h"

namespace switchyard::kernels {

constexpr int kMaxDispatchRanks = 8;
constexpr int kMaxDispatchExperts = 512;
constexpr int kMaxDispatchTopK = 16;
constexpr int kMaxDispatchHidden = 16384;

// Equal on all ranks of a group.
struct DispatchShape {
  int ranks, experts, top_k, hidden;
  int64_t max_tokens;  // of any rank, in any call
};

constexpr int DispatchHeaderSlots(const DispatchShape& s) { return (s.top_k + 3) / 4 * 4; }
// Records that a rank may receive in one dispatch, and sums in one combine: the worst cases.
constexpr int64_t MaxDispatchRecords(const DispatchShape& s) {
  return (s.ranks - 1) * s.max_tokens;
}
constexpr int64_t MaxDispatchSums(const DispatchShape& s) {
  return (s.ranks - 1 < s.top_k ? s.ranks - 1 : s.top_k) * s.max_tokens;
}

// Byte offsets inside an arena; [2] of everything but the control block. Arenas start on 128
// bytes. The control block [0, records) is zeroed once, before the first call of any rank.
struct DispatchArena {
  int64_t counts;       // cells [2, ranks (source), experts + ranks]: copies per expert, records
                        // per rank
  int64_t signals;      // cells [kNumSignals, ranks (sender)]
  int64_t state;        // DispatchState, this rank's own but for `abort`
  int64_t records;      // bf16  [2, max records, hidden]
  int64_t headers;      // int32 [2, max records, 2, header slots]: rows here, weights (as bits)
  int64_t sums;         // bf16  [2, max sums, hidden]
  int64_t weight_sums;  // fp32  [2, max sums, header slots]
  int64_t bytes;
};
DispatchArena DispatchArenaLayout(const DispatchShape& shape);

// What a rank was waiting for.
enum class DispatchPhase : int32_t {
  kExchange = 0,         // the peer's counts
  kDispatchRoom = 1,     // that the peer has consumed the records of two rounds ago
  kDispatchArrival = 2,  // the peer's records
  kCombineRoom = 3,      // that the peer has consumed the sums of two rounds ago
  kCombineArrival = 4,   // the peer's sums
};
enum class DispatchFailure : int32_t {
  kNone = 0,
  kTimeout = 1,      // `peer` has not sent in time
  kPeerAborted = 2,  // `peer` gave up first
};
// Host memory mapped on the device, zeroed by the caller; written once. `failure` is written last.
struct DispatchError {
  DispatchFailure failure;
  int32_t rank, peer;
  DispatchPhase phase;
  int32_t layer;
  uint32_t round;
};

// One rank's view of its group; passed by value to every call.
struct DispatchGroup {
  DispatchShape shape;
  int rank;
  uint8_t* arenas[kMaxDispatchRanks];  // of each rank, as this device addresses them
  DispatchError* error;                // of this rank; as this device addresses it
  uint64_t timeout_ns;
};

// One routing decision of one rank, laid out; made by Route and Exchange, filled up by the first
// DispatchExpand, then read only. On this rank's device. Kept for the backward.
struct DispatchPlanData {
  int64_t tokens;        // T of this rank
  int64_t max_rows;      // rows of the buffers by expert; what is beyond is skipped
  int32_t* offsets;      // [El + 1] first row of each own expert, at most max_rows
  int32_t* needed_rows;  // [1] rows of the fullest rank of the group, the same number on all ranks:
                         // more than a rank's max_rows there means that copies were lost
  // The rest is the kernels' own.
  int32_t* tables;       // DispatchTables
  int32_t* slots;        // [T, ranks] number of the token's record there, or -1; own rank: 0 or -1
  int32_t* places;       // [T, top_k] rank << 27 | row there
  int32_t* segments;     // [segments, ranks] records of each run of tokens
  int32_t* record_rows;  // [max records, top_k] rows of a received record, or -1
};
// int32 words of a plan of `tokens` tokens, and the pointers into such a buffer (16-byte aligned).
int64_t DispatchPlanWords(const DispatchShape& shape, int64_t tokens);
DispatchPlanData DispatchPlanAt(const DispatchShape& shape, int64_t tokens, int64_t max_rows,
                                int32_t* words);

// Loads all kernels on the current device, once per device before the first call: loading a kernel
// on its first launch waits for those that run, which may wait for the very rank that launches. So
// where ranks share a process, every kernel they launch must be loaded before
// (CUDA_MODULE_LOADING=EAGER).
cudaError_t DispatchLoad();

// `row_of` and `offsets` as router_topk.h makes them: the stable counting sort of this rank's
// copies by global expert. A token's experts are distinct.
struct DispatchRouteParams {
  DispatchGroup group;
  DispatchPlanData plan;   // out: slots (relative), segments
  const int32_t* row_of;   // in   [tokens * top_k]
  const int32_t* offsets;  // in   [experts + 1]
};
cudaError_t DispatchRoute(const DispatchRouteParams& p, cudaStream_t stream);

struct DispatchExchangeParams {
  DispatchGroup group;
  DispatchPlanData plan;   // out: offsets, needed_rows, tables, slots, places
  const int32_t* row_of;   // in   [tokens * top_k]
  const int32_t* offsets;  // in   [experts + 1]
  int layer;               // names the call in an error
};
cudaError_t DispatchExchange(const DispatchExchangeParams& p, cudaStream_t stream);

struct DispatchPushParams {
  DispatchGroup group;
  DispatchPlanData plan;
  const Bf16* x;         // in   [tokens, hidden]
  const float* weights;  // in   [tokens * top_k]; null: none are sent, or no tokens
  // Rows and weights of each record travel too: in the first dispatch of a plan and in every one
  // with weights. The same on all ranks.
  bool headers;
  int blocks;  // streaming multiprocessors to use, at least 1
  int layer;
};
cudaError_t DispatchPush(const DispatchPushParams& p, cudaStream_t stream);

struct DispatchExpandParams {
  DispatchGroup group;
  DispatchPlanData plan;  // out with headers: record_rows
  const Bf16* x;          // in   [tokens, hidden], as pushed
  const float* weights;   // in   [tokens * top_k], as pushed
  Bf16* rows;             // out  [max_rows, hidden]
  float* row_weights;     // out  [max_rows]; null: no weights were sent
  bool headers;           // as pushed
  int blocks;             // 0: as many as fit the device
  int layer;
};
cudaError_t DispatchExpand(const DispatchExpandParams& p, cudaStream_t stream);

struct CombinePushParams {
  DispatchGroup group;
  DispatchPlanData plan;
  const Bf16* rows;           // in   [max_rows, hidden]
  const float* row_partials;  // in   [num_partials, max_rows], a float per row, to be added in
                              //      order from 0.f; null: none
  int num_partials;
  int blocks;  // at least 1
  int layer;
};
cudaError_t CombinePush(const CombinePushParams& p, cudaStream_t stream);

struct CombineReduceParams {
  DispatchGroup group;
  DispatchPlanData plan;
  const Bf16* rows;           // in   as pushed
  const float* row_partials;  // in   as pushed
  int num_partials;
  const Bf16* residual;  // in   [tokens, hidden]; null: none. May be `out`
  Bf16* out;             // out  [tokens, hidden]
  float* copy_sums;      // out  [tokens * top_k], the sum of each copy's partials, 0 for a copy
                         //      without a row; null without row_partials
  int blocks;            // 0: as many as fit the device
  int layer;
};
cudaError_t CombineReduce(const CombineReduceParams& p, cudaStream_t stream);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_DISPATCH_DISPATCH_H_

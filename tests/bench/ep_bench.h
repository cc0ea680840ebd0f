// Expert parallelism between ranks: token dispatch alone, the MoE block, whole steps.
#ifndef SWITCHYARD_TESTS_BENCH_EP_BENCH_H_
#define SWITCHYARD_TESTS_BENCH_EP_BENCH_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "tests/bench/json_rows.h"
#include "tests/bench/options.h"
#include "tests/bench/ranks.h"
#include "worker/trainer/parallel/token_dispatcher.h"

namespace switchyard::bench {

// Starts the ranks and runs the chosen parts in turn; rank 0 prints. Returns the exit code: 1 when
// a result was wrong. Throws what the ranks' threads throw.
int RunEp(const Options& options);

// What one rank's parts share.
struct EpContext {
  const Options& options;
  const Rank& rank;
  JsonRows& json;  // of rank 0
};

struct DispatcherShape {
  int64_t experts = 0;
  int64_t top_k = 0;
  int64_t hidden = 0;
  int64_t max_tokens = 0;                      // of any rank
  int64_t blocks = 16;                         // multiprocessors of a push
  absl::Duration timeout = absl::Seconds(30);  // of a push's waits
};
const char* Name(DispatcherKind kind);
const char* Name(Routing routing);
// A kernel that stores to a peer or waits for one; the push dispatcher's local copies are
// computation.
bool IsTransfer(const std::string& kernel);
// Collective.
std::unique_ptr<TokenDispatcher> MakeDispatcher(DispatcherKind kind, const Rank& rank,
                                                const DispatcherShape& shape);

// Each prints its rows and returns whether all results were right; the same on all ranks.
//
// Dispatch and Combine of random tokens by themselves: microseconds and GB/s of payload that leaves
// a GPU, phase by phase.
bool RunEpExchange(const EpContext& context);
// The MoE block of the shape, forward and backward: TFLOP/s, and by the profiler how much of the
// communication nothing else ran beside.
bool RunEpLayer(const EpContext& context);
// Whole training steps on all ranks, and of one more the profiler's view: how much of all
// communication, FSDP's too, nothing else ran beside. Its kernels on rank 0 go to --json.
bool RunEpStep(const EpContext& context);
// The losses of a few steps on all ranks against those of one rank with all ranks' rows.
bool RunEpParity(const EpContext& context);

}  // namespace switchyard::bench

#endif  // SWITCHYARD_TESTS_BENCH_EP_BENCH_H_

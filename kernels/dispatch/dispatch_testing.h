// For tests and benchmarks of dispatch.h: a group whose ranks are streams of this process, rank r
// on device r % devices, and routings.
#ifndef SWITCHYARD_KERNELS_DISPATCH_DISPATCH_TESTING_H_
#define SWITCHYARD_KERNELS_DISPATCH_DISPATCH_TESTING_H_

#include <memory>
#include <vector>

#include "kernels/common/testing.h"
#include "kernels/dispatch/dispatch.h"
#include "kernels/dispatch/dispatch_ref.h"

namespace switchyard::kernels {

// Ranks that share a device spin there at the same time and need queues of their own; call before
// the first CUDA call.
inline void AskForQueues() { setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0); }

// Owns arenas, error records, streams and events. Everything that allocates must be done before the
// first call of a rank: an allocation may wait for kernels that wait for other ranks.
class InProcessRanks {
 public:
  InProcessRanks(const DispatchShape& shape, uint64_t timeout_ns);
  ~InProcessRanks();
  InProcessRanks(const InProcessRanks&) = delete;
  InProcessRanks& operator=(const InProcessRanks&) = delete;

  int size() const { return static_cast<int>(ranks_.size()); }
  // Makes the rank's device current.
  void Use(int rank) const;
  DispatchGroup group(int rank) const { return ranks_[rank].group; }
  cudaStream_t stream(int rank) const { return ranks_[rank].stream; }
  cudaStream_t push_stream(int rank) const { return ranks_[rank].push_stream; }  // high priority
  void SetTimeout(int rank, uint64_t timeout_ns) { ranks_[rank].group.timeout_ns = timeout_ns; }
  // What comes next on the push stream waits for the stream's work so far, and the reverse.
  void Fork(int rank) const;
  void Join(int rank) const;
  void Synchronize() const;
  DispatchError error(int rank) const { return *ranks_[rank].error; }
  // Lets all rounds go on from `round`, as after that many.
  void StartAtRound(uint32_t round);

 private:
  struct Rank {
    DispatchGroup group{};
    std::unique_ptr<DeviceArray<uint8_t>> arena;
    DispatchError* error = nullptr;
    cudaStream_t stream = nullptr, push_stream = nullptr;
    cudaEvent_t fork = nullptr, join = nullptr;
  };
  int num_devices_ = 1;
  std::vector<Rank> ranks_;
};

enum class Spread { kUniform, kOneExpert, kLastRankUnused, kSkewed };

// The stable counting sort of random copies; ids are distinct within a token.
struct Routing {
  int64_t tokens;
  std::vector<int32_t> row_of, offsets;
  RankRouting View() const { return {tokens, row_of.data(), offsets.data()}; }
};
Routing RandomRouting(const DispatchShape& shape, int64_t tokens, Spread spread, Random& random);

// Keeps the stream busy.
void LaunchDelay(uint64_t nanoseconds, cudaStream_t stream);

// A pattern of small whole numbers that depends on token, column and a counter on the device, which
// LaunchFill advances; sums of up to 16 copies of a row are exact in bf16.
struct PatternParams {
  uint32_t* tick;  // [1]
  int rank;
  Bf16* x;         // [tokens, hidden]
  float* weights;  // [tokens * top_k]
  int64_t tokens;
  int hidden, top_k;
};
void LaunchFill(const PatternParams& p, cudaStream_t stream);
// errors[0] += values of out that are not top_k times the pattern, and of copy_sums that are not
// the weights.
void LaunchCheck(const PatternParams& p, const Bf16* out, const float* copy_sums, uint32_t* errors,
                 cudaStream_t stream);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_DISPATCH_DISPATCH_TESTING_H_

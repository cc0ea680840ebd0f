// Sizes for which attention kernels are planned on CUDA. Planning one takes about 0.1 s, a kernel
// planned for more documents, or longer ones, than there are costs little; hence few sizes.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_ATTENTION_BUCKETS_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_ATTENTION_BUCKETS_H_

#include <bit>
#include <cstdint>

namespace switchyard::ops {

// The smallest power of two that is at least `value` and `least`, a power of two.
constexpr int64_t PowerOfTwoAtLeast(int64_t value, int64_t least) {
  return value <= least ? least : static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(value)));
}

constexpr int64_t AttentionDocumentsBucket(int64_t documents) {
  return PowerOfTwoAtLeast(documents, 16);
}

// Of the longest document; kernels work in tiles of 128 tokens.
constexpr int64_t AttentionLengthBucket(int64_t longest) { return PowerOfTwoAtLeast(longest, 128); }

// Of the tokens of a micro-batch: up to an eighth more than there are. Sizes only the workspace of
// the backward.
constexpr int64_t AttentionTokensBucket(int64_t tokens) {
  const uint64_t least = tokens < 1024 ? 1024 : static_cast<uint64_t>(tokens);
  const int64_t unit = static_cast<int64_t>(std::bit_floor(least)) / 8;
  return (tokens + unit - 1) / unit * unit;
}

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_ATTENTION_BUCKETS_H_

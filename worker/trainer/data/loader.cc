#include "worker/trainer/data/loader.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace switchyard {
namespace {

// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words that passes
// BigCrush when fed a counter. Fixed here for good: the data order of every job rests on it.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;

// Draws numbered 0, 1, ... of the stream named by a key.
class CounterGenerator {
 public:
  explicit CounterGenerator(uint64_t key) : key_(key) {}
  // Uniform in [0, bound), without bias (Lemire 2019). bound > 0.
  uint64_t Below(uint64_t bound) {
    const uint64_t reject_below = (0 - bound) % bound;
    while (true) {
      const unsigned __int128 product = static_cast<unsigned __int128>(Next()) * bound;
      if (static_cast<uint64_t>(product) >= reject_below)
        return static_cast<uint64_t>(product >> 64);
    }
  }

 private:
  uint64_t Next() { return Mix(key_ + kGolden * ++counter_); }
  uint64_t key_;
  uint64_t counter_ = 0;
};

std::vector<int64_t> EpochOrder(uint32_t seed, int64_t epoch, int64_t num_rows, bool shuffle) {
  std::vector<int64_t> order(static_cast<size_t>(num_rows));
  std::iota(order.begin(), order.end(), int64_t{0});
  if (!shuffle) return order;
  uint64_t key = Mix(seed + kGolden);
  key = Mix(key ^ (static_cast<uint64_t>(epoch) + kGolden));
  key = Mix(key ^ (static_cast<uint64_t>(num_rows) + kGolden));
  CounterGenerator random(key);
  for (int64_t i = num_rows - 1; i > 0; --i) {
    std::swap(order[i], order[random.Below(static_cast<uint64_t>(i) + 1)]);
  }
  return order;
}

}  // namespace

absl::StatusOr<Loader> Loader::Make(const TokenFile* file, const LoaderOptions& options) {
  const LoaderOptions& o = options;
  if (o.local_batch_size < 1 || o.dp_size < 1 || o.dp_rank < 0 || o.dp_rank >= o.dp_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "data loader: local_batch_size ", o.local_batch_size, " must be at least 1 and rank ",
        o.dp_rank, " inside the ", o.dp_size, " data-parallel ranks"));
  }
  if (o.global_batch_size < 1 || o.global_batch_size % (o.local_batch_size * o.dp_size) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "data loader: global_batch_size ", o.global_batch_size,
        " is not a multiple of local_batch_size x data-parallel ranks = ", o.local_batch_size,
        " x ", o.dp_size, " = ", o.local_batch_size * o.dp_size));
  }
  if (file->num_rows() == 0) {
    return absl::InvalidArgumentError("data loader: the token file has no rows");
  }
  return Loader(file, options);
}

int64_t Loader::steps_per_epoch() const {
  return (file_->num_rows() + options_.global_batch_size - 1) / options_.global_batch_size;
}

int64_t Loader::microbatches_per_step() const {
  return options_.global_batch_size / (options_.local_batch_size * options_.dp_size);
}

const std::vector<int64_t>& Loader::Order(int64_t epoch) {
  if (epoch != cached_epoch_) {
    order_ = EpochOrder(options_.seed, epoch, file_->num_rows(), options_.shuffle);
    cached_epoch_ = epoch;
  }
  return order_;
}

absl::Span<const int64_t> Loader::RowsOfStep(int64_t step) {
  SY_CHECK(step >= 0) << "step " << step;
  const std::vector<int64_t>& order = Order(step / steps_per_epoch());
  const int64_t first = step % steps_per_epoch() * options_.global_batch_size;
  return absl::MakeConstSpan(order).subspan(static_cast<size_t>(first),
                                            static_cast<size_t>(options_.global_batch_size));
}

Microbatch Loader::Get(int64_t step, int64_t microbatch) {
  SY_CHECK(microbatch >= 0 && microbatch < microbatches_per_step()) << "micro-batch " << microbatch;
  const absl::Span<const int64_t> rows = RowsOfStep(step);
  const size_t first = static_cast<size_t>((microbatch * options_.dp_size + options_.dp_rank) *
                                           options_.local_batch_size);
  const size_t end = std::min(rows.size(), first + static_cast<size_t>(options_.local_batch_size));

  const absl::Span<const int32_t> tokens = file_->tokens();
  const absl::Span<const uint8_t> supervised = file_->supervised();
  Microbatch batch;
  batch.cu_seqlens.push_back(0);
  for (size_t i = first; i < end; ++i) {
    for (int64_t d = file_->rows()[rows[i]]; d < file_->rows()[rows[i] + 1]; ++d) {
      const int64_t begin = file_->documents()[d];
      const int64_t stop = file_->documents()[d + 1];
      for (int64_t t = begin; t < stop; ++t) {
        const bool is_target = t + 1 < stop && supervised[t + 1] != 0;
        batch.tokens.push_back(tokens[t]);
        batch.targets.push_back(is_target ? tokens[t + 1] : -100);
        batch.positions.push_back(t - begin);
        batch.supervised += is_target ? 1 : 0;
      }
      batch.cu_seqlens.push_back(static_cast<int64_t>(batch.tokens.size()));
    }
  }
  return batch;
}

int64_t Loader::SupervisedInStep(int64_t step) {
  int64_t total = 0;
  for (int64_t row : RowsOfStep(step)) {
    for (int64_t d = file_->rows()[row]; d < file_->rows()[row + 1]; ++d) {
      // The first token of a document is nobody's target, whatever its flag.
      for (int64_t t = file_->documents()[d] + 1; t < file_->documents()[d + 1]; ++t) {
        total += file_->supervised()[t] != 0 ? 1 : 0;
      }
    }
  }
  return total;
}

int64_t Loader::TokensInStep(int64_t step) {
  int64_t total = 0;
  for (int64_t row : RowsOfStep(step)) {
    total += file_->documents()[file_->rows()[row + 1]] - file_->documents()[file_->rows()[row]];
  }
  return total;
}

int64_t Loader::CausalPairsInStep(int64_t step) {
  int64_t total = 0;
  for (int64_t row : RowsOfStep(step)) {
    for (int64_t d = file_->rows()[row]; d < file_->rows()[row + 1]; ++d) {
      const int64_t tokens = file_->documents()[d + 1] - file_->documents()[d];
      total += tokens * (tokens + 1) / 2;
    }
  }
  return total;
}

}  // namespace switchyard

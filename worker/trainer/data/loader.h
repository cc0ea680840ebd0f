// Which rows make up a micro-batch. A pure function of (seed, epoch, step, rank): resuming is
// asking for a later step, and another world size sees the same global batches. Torch-free.
#ifndef SWITCHYARD_WORKER_TRAINER_DATA_LOADER_H_
#define SWITCHYARD_WORKER_TRAINER_DATA_LOADER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "worker/trainer/data/token_file.h"

namespace switchyard {

// The documents of some rows, back to back: a variable-length ("THD") batch without padding.
struct Microbatch {
  std::vector<int64_t> tokens;      // [T]
  std::vector<int64_t> targets;     // [T] the next token of the same document where that one is
                                    // supervised, else -100
  std::vector<int64_t> cu_seqlens;  // [documents + 1], 0 first, T last
  std::vector<int64_t> positions;   // [T], from 0 in each document
  int64_t supervised = 0;           // targets that are not -100
};

struct LoaderOptions {
  uint32_t seed = 42;
  int64_t global_batch_size = 1;  // rows of one step, all ranks
  int64_t local_batch_size = 1;   // rows of one micro-batch, one rank
  int64_t dp_rank = 0;
  int64_t dp_size = 1;
  bool shuffle = true;
};

// Borrows the file. Stateless after construction of an epoch's order (cached). One thread.
//
// Epoch e visits the permutation drawn from (seed, e, number of rows), by Fisher-Yates over a
// counter-based generator that is part of this library, so it never changes with another one.
// Step s of an epoch takes rows [s G, (s + 1) G) of it; micro-batch m of rank r takes rows
// [(m D + r) L, + L) of those. The last step of an epoch may hold fewer rows: some micro-batches
// are then short or empty; nothing is dropped and nothing is seen twice.
class Loader {
 public:
  // Errors: InvalidArgument unless global_batch_size is a multiple of local_batch_size * dp_size
  // (both numbers), or when the file has no rows.
  static absl::StatusOr<Loader> Make(const TokenFile* file, const LoaderOptions& options);

  int64_t steps_per_epoch() const;
  int64_t microbatches_per_step() const;
  // `step` counts from 0 over all epochs.
  Microbatch Get(int64_t step, int64_t microbatch);
  // Supervised targets of the whole global batch of `step`, all ranks: the loss denominator.
  int64_t SupervisedInStep(int64_t step);
  // Real tokens of the whole global batch.
  int64_t TokensInStep(int64_t step);
  // Pairs of a token and one that it attends to, itself included: n (n + 1) / 2 of a document.
  int64_t CausalPairsInStep(int64_t step);

 private:
  Loader(const TokenFile* file, const LoaderOptions& options) : file_(file), options_(options) {}
  const std::vector<int64_t>& Order(int64_t epoch);
  // The rows of the global batch; valid until another epoch is asked for.
  absl::Span<const int64_t> RowsOfStep(int64_t step);

  const TokenFile* file_;
  LoaderOptions options_;
  int64_t cached_epoch_ = -1;
  std::vector<int64_t> order_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_DATA_LOADER_H_

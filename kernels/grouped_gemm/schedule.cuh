// Which tile a cluster of two blocks works on next. Counts live on the device, so every block
// derives the schedule from `offsets` by itself; both blocks of a cluster and all their warps agree
// on it.
//
// A row tile is up to 128 rows of one expert. Consecutive row tiles, over all experts, form pairs;
// the two blocks of a cluster take the two tiles of a pair and the same column tile, so that they
// can share the weight tile by multicast wherever the pair does not straddle two experts. Tiles are
// ordered in groups of 8 pairs, columns outside, rows inside, so that what runs at one time stays
// in L2.
#ifndef SWITCHYARD_KERNELS_GROUPED_GEMM_SCHEDULE_CUH_
#define SWITCHYARD_KERNELS_GROUPED_GEMM_SCHEDULE_CUH_

#include <cstdint>

namespace switchyard::kernels::grouped_gemm {

constexpr int kTileM = 128;
constexpr int kTileN = 256;
constexpr int kTileK = 64;
constexpr int kMaxExperts = 512;

struct Tile {
  int expert;
  int row0;       // first row of the tile: of the token rows, or (weight gradient) of the output
  int rows;       // valid rows from row0; <= 0: an odd pair's missing tile, loaded but not computed
  int column;     // column tile index
  int split;      // which part of the reduction; 0 where it is whole
  int k_begin;    // where the reduction starts (weight gradient: a token row)
  int k_size;     // length of the reduction
  bool shared_b;  // both blocks of the cluster read the same B tile
};

struct TileOrder {
  int pair, column;
};

__device__ __forceinline__ TileOrder OrderTiles(int index, int pairs, int columns) {
  constexpr int kGroup = 8;
  const int group = index / (kGroup * columns);
  const int first = group * kGroup;
  const int in_group = min(kGroup, pairs - first);
  const int rest = index - first * columns;
  return {first + rest % in_group, rest / in_group};
}

__device__ __forceinline__ int OffsetAt(const int32_t* offsets, int64_t max_rows, int expert) {
  return offsets != nullptr ? offsets[expert] : expert * static_cast<int>(max_rows);
}

// tile_start[e] = row tiles of the experts before e; tile_start[experts] = all. Called by one warp.
__device__ __forceinline__ void BuildTileTable(const int32_t* offsets, int64_t max_rows,
                                               int experts, int* tile_start) {
  const int lane = threadIdx.x % 32;
  int running = 0;
  for (int base = 0; base < experts; base += 32) {
    const int expert = base + lane;
    int sum = 0;
    if (expert < experts) {
      const int rows =
          OffsetAt(offsets, max_rows, expert + 1) - OffsetAt(offsets, max_rows, expert);
      sum = (rows + kTileM - 1) / kTileM;
    }
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int below = __shfl_up_sync(0xffffffffu, sum, step);
      if (lane >= step) sum += below;
    }
    if (expert < experts) tile_start[expert + 1] = running + sum;
    running += __shfl_sync(0xffffffffu, sum, 31);
  }
  if (lane == 0) tile_start[0] = 0;
}

// Tiles over token rows: forward products and input gradients.
class RowSchedule {
 public:
  __device__ RowSchedule(const int32_t* offsets, int64_t max_rows, int experts, int columns, int k,
                         int k_per_split, const int* tile_start)
      : offsets_(offsets),
        max_rows_(max_rows),
        experts_(experts),
        columns_(columns),
        k_(k),
        k_per_split_(k_per_split),
        tile_start_(tile_start),
        pairs_((tile_start[experts] + 1) / 2),
        slots_(columns * ((k + k_per_split - 1) / k_per_split)),
        index_(blockIdx.x / 2) {}

  __device__ bool Next(Tile* tile) {
    if (index_ >= pairs_ * slots_) return false;
    const TileOrder order = OrderTiles(index_, pairs_, slots_);
    index_ += gridDim.x / 2;
    const int rank = blockIdx.x % 2;
    const int first = 2 * order.pair;
    const int first_expert = Find(first);
    const bool missing = first + 1 >= tile_start_[experts_];
    const bool same = missing || first + 1 < tile_start_[first_expert + 1];
    const int expert = same || rank == 0 ? first_expert : Find(first + 1);
    const int begin = OffsetAt(offsets_, max_rows_, expert);
    const int end = OffsetAt(offsets_, max_rows_, expert + 1);
    tile->expert = expert;
    tile->row0 = begin + (first + rank - tile_start_[expert]) * kTileM;
    tile->rows = min(end - tile->row0, kTileM);
    tile->column = order.column % columns_;
    tile->split = order.column / columns_;
    tile->k_begin = tile->split * k_per_split_;
    tile->k_size = min(k_ - tile->k_begin, k_per_split_);
    tile->shared_b = same;
    return true;
  }

 private:
  // The expert of a row tile: the last one that starts at or before it.
  __device__ int Find(int row_tile) const {
    int low = 0;
    int high = experts_;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (tile_start_[middle] <= row_tile) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return low;
  }

  const int32_t* offsets_;
  int64_t max_rows_;
  int experts_, columns_, k_, k_per_split_;
  const int* tile_start_;
  int pairs_, slots_, index_;
};

// Tiles over every expert's [m, n] weight gradient; the reduction runs over the expert's rows.
class WeightSchedule {
 public:
  __device__ WeightSchedule(const int32_t* offsets, int64_t max_rows, int experts, int columns,
                            int m)
      : offsets_(offsets),
        max_rows_(max_rows),
        columns_(columns),
        m_(m),
        pairs_((m + 2 * kTileM - 1) / (2 * kTileM)),
        total_(experts * pairs_ * columns),
        index_(blockIdx.x / 2) {}

  __device__ bool Next(Tile* tile) {
    if (index_ >= total_) return false;
    const int per_expert = pairs_ * columns_;
    const int expert = index_ / per_expert;
    const TileOrder order = OrderTiles(index_ - expert * per_expert, pairs_, columns_);
    index_ += gridDim.x / 2;
    tile->expert = expert;
    tile->row0 = (2 * order.pair + blockIdx.x % 2) * kTileM;
    tile->rows = min(m_ - tile->row0, kTileM);
    tile->column = order.column;
    tile->split = 0;
    tile->k_begin = OffsetAt(offsets_, max_rows_, expert);
    tile->k_size = OffsetAt(offsets_, max_rows_, expert + 1) - tile->k_begin;
    tile->shared_b = true;
    return true;
  }

 private:
  const int32_t* offsets_;
  int64_t max_rows_;
  int columns_, m_, pairs_, total_, index_;
};

}  // namespace switchyard::kernels::grouped_gemm

#endif  // SWITCHYARD_KERNELS_GROUPED_GEMM_SCHEDULE_CUH_

// The ranks of a gang as named axes. Torch-free and pure.
//
//   world = dp_replicate x dp_shard, rank = replicate * dp_shard + shard.
//   The experts are spread over `ep` neighbouring ranks: ep_rank = rank % ep. Ranks with the same
//   ep_rank (there are world / ep) hold the same experts and shard or replicate them among each
//   other: the expert_shard axis, index rank / ep, inside one replica; dp_replicate across.
//   Every rank reads its own rows: data parallelism spans the whole world.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_MESH_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_MESH_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard {

enum class Axis { kWorld, kDpReplicate, kDpShard, kEp, kExpertShard };

struct Mesh {
  int world_size = 1;
  int rank = 0;
  int dp_replicate_size = 1;
  int ep_size = 1;

  int dp_shard_size() const { return world_size / dp_replicate_size; }
  int ep_rank() const { return rank % ep_size; }
  int expert_shard_size() const { return dp_shard_size() / ep_size; }

  int AxisSize(Axis axis) const;
  int AxisRank(Axis axis) const;
  // Global ranks of this rank's group along `axis`, ascending.
  std::vector<int> Group(Axis axis) const;
};

// Errors: InvalidArgument naming both numbers when sizes do not divide: dp_replicate | world,
// ep | world / dp_replicate, ep | num_experts (skipped when num_experts is 0), 0 <= rank < world.
absl::StatusOr<Mesh> MakeMesh(int world_size, int rank, int dp_replicate_size, int ep_size,
                              int64_t num_experts);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_MESH_H_

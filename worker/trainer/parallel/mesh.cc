#include "worker/trainer/parallel/mesh.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace switchyard {

int Mesh::AxisSize(Axis axis) const {
  switch (axis) {
    case Axis::kWorld:
      return world_size;
    case Axis::kDpReplicate:
      return dp_replicate_size;
    case Axis::kDpShard:
      return dp_shard_size();
    case Axis::kEp:
      return ep_size;
    case Axis::kExpertShard:
      return expert_shard_size();
  }
  SY_CHECK(false) << "axis " << static_cast<int>(axis);
  return 0;
}

int Mesh::AxisRank(Axis axis) const {
  switch (axis) {
    case Axis::kWorld:
      return rank;
    case Axis::kDpReplicate:
      return rank / dp_shard_size();
    case Axis::kDpShard:
      return rank % dp_shard_size();
    case Axis::kEp:
      return ep_rank();
    case Axis::kExpertShard:
      return rank % dp_shard_size() / ep_size;
  }
  SY_CHECK(false) << "axis " << static_cast<int>(axis);
  return 0;
}

std::vector<int> Mesh::Group(Axis axis) const {
  int stride = 1;
  if (axis == Axis::kDpReplicate) stride = dp_shard_size();
  if (axis == Axis::kExpertShard) stride = ep_size;
  const int first = rank - AxisRank(axis) * stride;
  std::vector<int> group;
  for (int i = 0; i < AxisSize(axis); ++i) group.push_back(first + i * stride);
  return group;
}

absl::StatusOr<Mesh> MakeMesh(int world_size, int rank, int dp_replicate_size, int ep_size,
                              int64_t num_experts) {
  if (world_size < 1 || rank < 0 || rank >= world_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("mesh: rank ", rank, " is not one of ", world_size, " ranks"));
  }
  if (dp_replicate_size < 1 || world_size % dp_replicate_size != 0) {
    return absl::InvalidArgumentError(absl::StrCat("mesh: dp_replicate_size ", dp_replicate_size,
                                                   " does not divide the ", world_size, " ranks"));
  }
  const int dp_shard_size = world_size / dp_replicate_size;
  if (ep_size < 1 || dp_shard_size % ep_size != 0) {
    return absl::InvalidArgumentError(absl::StrCat("mesh: ep_size ", ep_size,
                                                   " does not divide the ", dp_shard_size,
                                                   " ranks of one replica"));
  }
  if (num_experts != 0 && num_experts % ep_size != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("mesh: ep_size ", ep_size, " does not divide the ", num_experts, " experts"));
  }
  Mesh mesh;
  mesh.world_size = world_size;
  mesh.rank = rank;
  mesh.dp_replicate_size = dp_replicate_size;
  mesh.ep_size = ep_size;
  return mesh;
}

}  // namespace switchyard

#include "worker/trainer/parallel/mesh.h"

#include <set>
#include <vector>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(MeshTest, GroupsOfEightRanksWithTwoReplicasAndEpTwo) {
  // replica 0: ranks 0-3, replica 1: ranks 4-7; ep pairs are neighbours.
  struct Row {
    int rank;
    std::vector<int> replicate, shard, ep, expert_shard;
  };
  const Row rows[] = {
      {0, {0, 4}, {0, 1, 2, 3}, {0, 1}, {0, 2}}, {1, {1, 5}, {0, 1, 2, 3}, {0, 1}, {1, 3}},
      {2, {2, 6}, {0, 1, 2, 3}, {2, 3}, {0, 2}}, {3, {3, 7}, {0, 1, 2, 3}, {2, 3}, {1, 3}},
      {4, {0, 4}, {4, 5, 6, 7}, {4, 5}, {4, 6}}, {7, {3, 7}, {4, 5, 6, 7}, {6, 7}, {5, 7}},
  };
  for (const Row& row : rows) {
    const Mesh mesh = MakeMesh(8, row.rank, 2, 2, 16).value();
    EXPECT_EQ(mesh.Group(Axis::kDpReplicate), row.replicate) << row.rank;
    EXPECT_EQ(mesh.Group(Axis::kDpShard), row.shard) << row.rank;
    EXPECT_EQ(mesh.Group(Axis::kEp), row.ep) << row.rank;
    EXPECT_EQ(mesh.Group(Axis::kExpertShard), row.expert_shard) << row.rank;
    EXPECT_THAT(mesh.Group(Axis::kWorld), ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  }
}

TEST(MeshTest, OneRankIsAloneOnEveryAxis) {
  const Mesh mesh = MakeMesh(1, 0, 1, 1, 0).value();
  for (Axis axis :
       {Axis::kWorld, Axis::kDpReplicate, Axis::kDpShard, Axis::kEp, Axis::kExpertShard}) {
    EXPECT_EQ(mesh.AxisSize(axis), 1);
    EXPECT_THAT(mesh.Group(axis), ElementsAre(0));
  }
}

TEST(MeshTest, EveryAxisPartitionsTheWorldAndOwnRankIsAtItsIndex) {
  for (int world : {1, 2, 4, 6, 8, 12}) {
    for (int replicate = 1; replicate <= world; ++replicate) {
      for (int ep = 1; ep <= world; ++ep) {
        if (!MakeMesh(world, 0, replicate, ep, 0).ok()) continue;
        for (Axis axis :
             {Axis::kWorld, Axis::kDpReplicate, Axis::kDpShard, Axis::kEp, Axis::kExpertShard}) {
          std::set<std::vector<int>> groups;
          for (int rank = 0; rank < world; ++rank) {
            const Mesh mesh = MakeMesh(world, rank, replicate, ep, 0).value();
            const std::vector<int> group = mesh.Group(axis);
            ASSERT_EQ(static_cast<int>(group.size()), mesh.AxisSize(axis));
            ASSERT_EQ(group[mesh.AxisRank(axis)], rank);
            groups.insert(group);
          }
          std::set<int> all;
          size_t members = 0;
          for (const std::vector<int>& group : groups) {
            all.insert(group.begin(), group.end());
            members += group.size();
          }
          ASSERT_EQ(members, static_cast<size_t>(world)) << "overlapping groups";
          ASSERT_EQ(all.size(), static_cast<size_t>(world));
        }
      }
    }
  }
}

TEST(MeshTest, SizesThatDoNotDivideAreErrorsWithBothNumbers) {
  struct Row {
    int world, rank, replicate, ep;
    int64_t experts;
    const char* message;
  };
  const Row rows[] = {
      {4, 4, 1, 1, 0, "rank 4 is not one of 4"},
      {4, -1, 1, 1, 0, "rank -1"},
      {4, 0, 3, 1, 0, "dp_replicate_size 3 does not divide the 4 ranks"},
      {4, 0, 0, 1, 0, "dp_replicate_size 0"},
      {4, 0, 2, 4, 0, "ep_size 4 does not divide the 2 ranks of one replica"},
      {4, 0, 1, 4, 6, "ep_size 4 does not divide the 6 experts"},
  };
  for (const Row& row : rows) {
    EXPECT_THAT(MakeMesh(row.world, row.rank, row.replicate, row.ep, row.experts),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(row.message)));
  }
}

}  // namespace
}  // namespace switchyard

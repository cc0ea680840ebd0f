#include "worker/trainer/checkpoint/reshard.h"

#include <algorithm>
#include <random>

#include "worker/trainer/checkpoint/test_model.h"

namespace switchyard {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A bucket of tensors a [2, 3] and b [4], and files that hold b before a.
BucketLayout SmallBucket() {
  BucketLayout bucket;
  bucket.name = "small";
  bucket.slots = {{"a", {2, 3}, 0, 6, true}, {"b", {4}, 6, 4, true}};
  bucket.numel = 10;
  return bucket;
}

TensorFiles SmallFiles() {
  TensorFiles files;
  files.folder = "folder";
  files.files = {"one", "two"};
  files.at["b"] = {0, TensorDtype::kBf16, 100, 4};
  files.at["a"] = {1, TensorDtype::kF32, 200, 6};
  return files;
}

TEST(ReshardTest, CutsTensorsWhereTheShardEnds) {
  const auto ranges = Reshard(SmallFiles(), "", false, SmallBucket(), 4, 8);
  ASSERT_THAT(ranges, IsOk());
  ASSERT_EQ(ranges->size(), 2u);
  EXPECT_EQ((*ranges)[0].file, 1);
  EXPECT_EQ((*ranges)[0].offset, 200u + 4 * 4);
  EXPECT_EQ((*ranges)[0].shard_begin, 0);
  EXPECT_EQ((*ranges)[0].count, 2);
  EXPECT_EQ((*ranges)[1].file, 0);
  EXPECT_EQ((*ranges)[1].offset, 100u);
  EXPECT_EQ((*ranges)[1].shard_begin, 2);
  EXPECT_EQ((*ranges)[1].count, 2);
}

TEST(ReshardTest, PaddingAndEmptyShardsHaveNoRanges) {
  const auto tail = Reshard(SmallFiles(), "", false, SmallBucket(), 8, 16);
  ASSERT_THAT(tail, IsOk());
  ASSERT_EQ(tail->size(), 1u);
  EXPECT_EQ((*tail)[0].count, 2);
  const auto padding = Reshard(SmallFiles(), "", false, SmallBucket(), 16, 32);
  ASSERT_THAT(padding, IsOk());
  EXPECT_THAT(*padding, IsEmpty());
  const auto empty = Reshard(SmallFiles(), "", false, SmallBucket(), 3, 3);
  ASSERT_THAT(empty, IsOk());
  EXPECT_THAT(*empty, IsEmpty());
}

TEST(ReshardTest, RefusesAbsentTensorsAndOtherSizes) {
  TensorFiles files = SmallFiles();
  files.at["b"].numel = 5;
  EXPECT_THAT(Reshard(files, "", false, SmallBucket(), 0, 10),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("'b' has 5 elements, the model needs 4")));
  files.at.erase("b");
  EXPECT_THAT(Reshard(files, "", false, SmallBucket(), 0, 10),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no tensor 'b'")));
  const auto optional = Reshard(files, "", true, SmallBucket(), 0, 10);
  ASSERT_THAT(optional, IsOk());
  EXPECT_EQ(optional->size(), 1u);
}

TEST(ReshardTest, AppendsTheSuffixToNames) {
  TensorFiles files;
  files.at["a.exp_avg"] = {0, TensorDtype::kF32, 8, 6};
  files.at["b.exp_avg"] = {0, TensorDtype::kF32, 32, 4};
  const auto ranges = Reshard(files, ".exp_avg", false, SmallBucket(), 0, 10);
  ASSERT_THAT(ranges, IsOk());
  EXPECT_EQ((*ranges)[1].offset, 32u);
}

// Random buckets, files and cuts: the shards' ranges hold every element of every tensor once, at
// its own byte, and every element of a shard once.
TEST(ReshardTest, AnyCutTilesEveryTensor) {
  std::mt19937 random(20261124);
  const auto draw = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  for (int round = 0; round < 300; ++round) {
    BucketLayout bucket;
    TensorFiles files;
    std::vector<uint64_t> next_byte(3, 8);
    for (int64_t s = 0, n = draw(1, 6); s < n; ++s) {
      TensorSlot slot;
      slot.name = absl::StrCat("t", s);
      slot.offset = bucket.numel;
      slot.numel = draw(0, 40);
      slot.shape = {slot.numel};
      TensorLocation location;
      location.file = static_cast<int>(draw(0, 2));
      location.dtype = draw(0, 1) == 0 ? TensorDtype::kF32 : TensorDtype::kBf16;
      location.offset = next_byte[location.file];
      location.numel = slot.numel;
      next_byte[location.file] += slot.numel * (DtypeBits(location.dtype) / 8);
      files.at[slot.name] = location;
      bucket.numel += slot.numel;
      bucket.slots.push_back(slot);
    }
    // Cuts anywhere, the last shard reaching into padding.
    std::vector<int64_t> cuts = {0, bucket.numel + draw(0, 9)};
    for (int64_t c = 0, n = draw(0, 5); c < n; ++c) cuts.push_back(draw(0, cuts[1]));
    std::sort(cuts.begin(), cuts.end());

    std::vector<std::vector<int>> uses(bucket.slots.size());
    for (size_t s = 0; s < uses.size(); ++s) uses[s].resize(bucket.slots[s].numel);
    for (size_t c = 0; c + 1 < cuts.size(); ++c) {
      const auto ranges = Reshard(files, "", false, bucket, cuts[c], cuts[c + 1]);
      ASSERT_THAT(ranges, IsOk());
      int64_t shard_at = 0;
      for (const CopyRange& range : *ranges) {
        const TensorSlot& slot = bucket.slots[range.slot];
        const TensorLocation& location = files.at.at(slot.name);
        ASSERT_EQ(range.file, location.file);
        ASSERT_EQ(range.shard_begin, shard_at);
        shard_at += range.count;
        const int64_t first = cuts[c] + range.shard_begin - slot.offset;
        ASSERT_EQ(range.offset, location.offset + first * (DtypeBits(location.dtype) / 8));
        for (int64_t i = first; i < first + range.count; ++i) ++uses[range.slot].at(i);
      }
      ASSERT_EQ(shard_at, std::max<int64_t>(0, std::min(cuts[c + 1], bucket.numel) - cuts[c]));
    }
    for (const auto& slot_uses : uses) {
      for (int n : slot_uses) ASSERT_EQ(n, 1);
    }
  }
}

}  // namespace
}  // namespace switchyard

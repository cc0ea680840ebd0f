#include "worker/trainer/checkpoint/output_plan.h"

#include "base/json.h"
#include "worker/trainer/checkpoint/test_model.h"

namespace switchyard {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<size_t> ShardSizes(const std::vector<int64_t>& sizes, int64_t limit) {
  std::vector<TensorSpec> tensors;
  for (size_t i = 0; i < sizes.size(); ++i) {
    tensors.push_back({absl::StrCat("t", i), TensorDtype::kU8, {sizes[i]}});
  }
  std::vector<size_t> counts;
  for (const auto& shard : SplitIntoShards(tensors, limit)) counts.push_back(shard.size());
  return counts;
}

TEST(SplitIntoShardsTest, FollowsTransformersRule) {
  EXPECT_THAT(ShardSizes({6, 6, 2, 6, 2, 2}, 10), ElementsAre(1, 2, 3));
  EXPECT_THAT(ShardSizes({5, 5}, 10), ElementsAre(2));
  // A large one gets its shard at once; what was begun goes on after it.
  EXPECT_THAT(ShardSizes({3, 11, 3}, 10), ElementsAre(1, 2));
  EXPECT_THAT(ShardSizes({11, 12}, 10), ElementsAre(1, 1));
}

TEST(PlanCheckpointTest, WithoutSourceKeepsModelOrderInOneFile) {
  CheckpointFormat format;
  format.weight_dtype = TensorDtype::kBf16;
  const auto plan = PlanCheckpoint(TinyModel(), nullptr, format);
  ASSERT_THAT(plan, IsOk());
  EXPECT_THAT(plan->weights.files.files, ElementsAre("model.safetensors"));
  EXPECT_EQ(plan->index_json, "");
  EXPECT_EQ(plan->dtype, TensorDtype::kBf16);
  EXPECT_TRUE(plan->optimizer.layouts.empty());
  EXPECT_EQ(plan->weights.files.at.size(), SpecsOf(TinyModel(), TensorDtype::kBf16).size());
}

TEST(PlanCheckpointTest, KeepsTheSourcesDtypesButNoF16) {
  WeightSource source = SourceOf(TinyModel(), TensorDtype::kBf16);
  source.at["model.norm.weight"].dtype = TensorDtype::kF16;
  source.at["lm_head.weight"].dtype = TensorDtype::kF32;
  const auto plan = PlanCheckpoint(TinyModel(), &source, CheckpointFormat());
  ASSERT_THAT(plan, IsOk());
  const auto& at = plan->weights.files.at;
  EXPECT_EQ(at.at("model.norm.weight").dtype, TensorDtype::kF32);
  EXPECT_EQ(at.at("lm_head.weight").dtype, TensorDtype::kF32);
  EXPECT_EQ(at.at("model.embed_tokens.weight").dtype, TensorDtype::kBf16);
  EXPECT_EQ(plan->dtype, TensorDtype::kBf16);
  source.at.erase("lm_head.weight");
  EXPECT_THAT(PlanCheckpoint(TinyModel(), &source, CheckpointFormat()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'lm_head.weight'")));
}

// Else a resumed job, whose source is its own checkpoint, could cut its files elsewhere.
TEST(PlanCheckpointTest, FilesDoNotDependOnThoseOfTheSource) {
  CheckpointFormat format;
  format.max_shard_bytes = 700;
  const WeightSource source = SourceOf(TinyModel(), TensorDtype::kF32);
  WeightSource other = source;
  int number = 0;
  for (auto& [name, location] : other.at) {
    location.file = number % 3;
    location.offset = 10000 - 8 * number++;
  }
  const auto a = PlanCheckpoint(TinyModel(), &source, format);
  const auto b = PlanCheckpoint(TinyModel(), &other, format);
  ASSERT_THAT(a, IsOk());
  ASSERT_THAT(b, IsOk());
  EXPECT_EQ(a->index_json, b->index_json);
  ASSERT_EQ(a->weights.layouts.size(), b->weights.layouts.size());
  for (size_t i = 0; i < a->weights.layouts.size(); ++i) {
    EXPECT_EQ(a->weights.layouts[i].head, b->weights.layouts[i].head);
  }
}

TEST(PlanCheckpointTest, IndexPlacesEveryTensor) {
  CheckpointFormat format;
  format.max_shard_bytes = 1000;
  const auto plan = PlanCheckpoint(TinyModel(), nullptr, format);
  ASSERT_THAT(plan, IsOk());
  const size_t count = plan->weights.layouts.size();
  ASSERT_GT(count, 3u);
  const auto index = ParseJson(plan->index_json, "index");
  ASSERT_THAT(index, IsOk());
  const Json& map = (*index)["weight_map"];
  int64_t bytes = 0;
  for (size_t f = 0; f < count; ++f) {
    for (const TensorInfo& tensor : plan->weights.layouts[f].tensors) {
      EXPECT_EQ(map[tensor.name], plan->weights.files.files[f]) << tensor.name;
    }
    bytes += plan->weights.layouts[f].tensors.back().end;
  }
  EXPECT_EQ(map.size(), plan->weights.files.at.size());
  EXPECT_EQ((*index)["metadata"]["total_size"], bytes);
  int64_t parameters = 0;
  for (const BucketLayout& bucket : TinyModel()) parameters += bucket.numel;
  EXPECT_EQ((*index)["metadata"]["total_parameters"], parameters);
}

TEST(PlanCheckpointTest, OptimizerHasRemaindersBesideBf16Only) {
  WeightSource source = SourceOf(TinyModel(), TensorDtype::kBf16);
  source.at["lm_head.weight"].dtype = TensorDtype::kF32;
  CheckpointFormat format;
  format.save_optimizer = true;
  format.moment_dtype = TensorDtype::kBf16;
  const auto plan = PlanCheckpoint(TinyModel(), &source, format);
  ASSERT_THAT(plan, IsOk());
  EXPECT_THAT(plan->optimizer.files.files,
              ElementsAre("switchyard/optimizer-00001-of-00001.safetensors"));
  const auto& at = plan->optimizer.files.at;
  EXPECT_EQ(at.size(), 3 * source.at.size() - 1);
  EXPECT_EQ(at.count("lm_head.weight.remainder"), 0u);
  EXPECT_EQ(at.at("model.norm.weight.remainder").dtype, TensorDtype::kI16);
  EXPECT_EQ(at.at("lm_head.weight.exp_avg").dtype, TensorDtype::kBf16);
}

TEST(PlanCheckpointTest, RefusesAnImpossibleShardSize) {
  CheckpointFormat format;
  format.max_shard_bytes = 0;
  EXPECT_THAT(PlanCheckpoint(TinyModel(), nullptr, format),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("max_shard_bytes is 0")));
}

class ResolveOptimizerTest : public testing::Test {
 protected:
  // Writes a checkpoint's optimizer file with `edit` applied to its tensors and resolves it.
  template <typename Edit>
  absl::StatusOr<TensorFiles> Resolve(const Edit& edit) {
    const std::string folder = TestFolder("optimizer");
    EXPECT_THAT(MakeFolders(folder + "/switchyard"), IsOk());
    std::vector<TensorSpec> tensors;
    const WeightSource weights = SourceOf(TinyModel(), TensorDtype::kBf16);
    for (const TensorSpec& spec : SpecsOf(TinyModel(), TensorDtype::kBf16)) {
      tensors.push_back({spec.name + ".exp_avg", TensorDtype::kF32, spec.shape});
      tensors.push_back({spec.name + ".exp_avg_sq", TensorDtype::kF32, spec.shape});
      tensors.push_back({spec.name + ".remainder", TensorDtype::kI16, spec.shape});
    }
    edit(tensors);
    const std::string name = "switchyard/optimizer-00001-of-00001.safetensors";
    WriteSafetensors(folder + "/" + name, tensors);
    return ResolveOptimizer(folder, {"config.json", name}, weights, TinyModel());
  }
};

TEST_F(ResolveOptimizerTest, FindsAllTensors) {
  const auto found = Resolve([](std::vector<TensorSpec>&) {});
  ASSERT_THAT(found, IsOk());
  EXPECT_EQ(found->at.at("model.norm.weight.remainder").numel, 6);
}

TEST_F(ResolveOptimizerTest, NamesWhatIsWrong) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(Resolve([](auto& tensors) { tensors.pop_back(); }),
              StatusIs(kInvalid, HasSubstr("'lm_head.weight.remainder' is missing")));
  EXPECT_THAT(Resolve([](auto& tensors) {
                tensors[0].shape = {6, 13};
              }),
              StatusIs(kInvalid, HasSubstr("'model.embed_tokens.weight.exp_avg' is F32 [6, 13], "
                                           "the model needs F32 or BF16 [13, 6]")));
  EXPECT_THAT(Resolve([](auto& tensors) { tensors[2].dtype = TensorDtype::kF16; }),
              StatusIs(kInvalid, HasSubstr("the model needs I16")));
  EXPECT_THAT(Resolve([](auto& tensors) {
                tensors.push_back({"other.exp_avg", TensorDtype::kF32, {1}});
              }),
              StatusIs(kInvalid, HasSubstr("1 optimizer tensors belong to no weight")));
  EXPECT_THAT(ResolveOptimizer("folder", {"config.json"}, WeightSource(), TinyModel()),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("without optimizer")));
}

}  // namespace
}  // namespace switchyard

#include "worker/trainer/checkpoint/hf_model.h"

#include <algorithm>
#include <functional>

#include "absl/strings/str_replace.h"
#include "worker/trainer/checkpoint/test_model.h"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

void WriteText(const std::string& folder, const std::string& name, const std::string& text) {
  ASSERT_THAT(ReplaceFile(folder + "/" + name, text), IsOk());
}

// Two files, a in the first, b and c in the second.
std::string ShardedFolder() {
  const std::string folder = TestFolder("sharded");
  WriteSafetensors(folder + "/model-00001-of-00002.safetensors", {{"a", TensorDtype::kF32, {2}}});
  WriteSafetensors(folder + "/model-00002-of-00002.safetensors",
                   {{"c", TensorDtype::kF32, {3}}, {"b", TensorDtype::kBf16, {4}}});
  WriteText(folder, "model.safetensors.index.json",
            R"({"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors",
                "b": "model-00002-of-00002.safetensors",
                "c": "model-00002-of-00002.safetensors"}})");
  return folder;
}

void EditIndex(const std::string& folder, const std::string& from, const std::string& to) {
  const std::string path = folder + "/model.safetensors.index.json";
  const auto text = ReadFile(path);
  ASSERT_THAT(text, IsOk());
  const std::string changed = absl::StrReplaceAll(*text, {{from, to}});
  ASSERT_NE(changed, *text);
  ASSERT_THAT(ReplaceFile(path, changed), IsOk());
}

TEST(OpenHfModelTest, ListsTensorsInSourceOrder) {
  const auto model = OpenHfModel(ShardedFolder());
  ASSERT_THAT(model, IsOk());
  ASSERT_EQ(model->tensors.size(), 3u);
  EXPECT_EQ(model->tensors[0].name, "a");
  EXPECT_EQ(model->tensors[1].name, "c");  // F32 lies before BF16
  EXPECT_EQ(model->tensors[2].name, "b");
  EXPECT_EQ(model->tensors[2].file, 1);
  EXPECT_EQ(model->tensors[2].offset, model->tensors[1].offset + 12);
}

TEST(OpenHfModelTest, IgnoresFilesThatTheIndexDoesNotName) {
  const std::string folder = ShardedFolder();
  WriteSafetensors(folder + "/consolidated.safetensors", {{"x", TensorDtype::kF32, {2}}});
  WriteText(folder, "model-00003-of-00003.safetensors", "rubbish");
  const auto model = OpenHfModel(folder);
  ASSERT_THAT(model, IsOk());
  EXPECT_EQ(model->tensors.size(), 3u);
}

TEST(OpenHfModelTest, NamesWhatIsMissing) {
  EXPECT_THAT(OpenHfModel(TestFolder("empty")),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("model.safetensors")));
  std::string folder = ShardedFolder();
  ASSERT_EQ(::unlink((folder + "/model-00002-of-00002.safetensors").c_str()), 0);
  EXPECT_THAT(OpenHfModel(folder),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("model-00002-of-00002.safetensors")));
  folder = ShardedFolder();
  EditIndex(folder, R"("b": "model-00002-of-00002)", R"("b": "model-00001-of-00002)");
  EXPECT_THAT(OpenHfModel(folder),
              StatusIs(kInvalid, AllOf(HasSubstr("tensor 'b' is in the file"),
                                       HasSubstr("places it in model-00001"))));
  folder = ShardedFolder();
  EditIndex(folder, R"("c":)", R"("d":)");
  EXPECT_THAT(OpenHfModel(folder), StatusIs(kInvalid, HasSubstr("'c' is in the file, but "
                                                                "model.safetensors.index.json "
                                                                "does not list it")));
  folder = ShardedFolder();
  EditIndex(folder, R"("c":)", R"("d": "model-00001-of-00002.safetensors", "c":)");
  EXPECT_THAT(OpenHfModel(folder),
              StatusIs(kInvalid, AllOf(HasSubstr("model-00001-of-00002.safetensors"),
                                       HasSubstr("tensor 'd' is missing"))));
}

TEST(OpenHfModelTest, RefusesIndexesThatLeaveTheFolder) {
  for (const char* name : {"../model.safetensors", "/etc/passwd", "..", ""}) {
    const std::string folder = ShardedFolder();
    EditIndex(folder, "\"model-00001-of-00002.safetensors\"", absl::StrCat("\"", name, "\""));
    EXPECT_THAT(OpenHfModel(folder), StatusIs(kInvalid, HasSubstr("expected a file name")));
  }
  const std::string folder = ShardedFolder();
  WriteText(folder, "model.safetensors.index.json", R"({"weight_map": []})");
  EXPECT_THAT(OpenHfModel(folder), StatusIs(kInvalid, HasSubstr("weight_map")));
}

TEST(OpenHfModelTest, RefusesASingleFileBesideAnotherIndex) {
  const std::string folder = ShardedFolder();
  WriteSafetensors(folder + "/model.safetensors", {{"a", TensorDtype::kF32, {2}}});
  EXPECT_THAT(OpenHfModel(folder), StatusIs(kInvalid, HasSubstr("stale")));
}

class ResolveWeightsTest : public testing::Test {
 protected:
  // The tiny model's tensors after `edit`, resolved.
  absl::StatusOr<WeightSource> Resolve(const std::function<void(std::vector<TensorSpec>&)>& edit,
                                       bool tied = false) {
    std::vector<TensorSpec> specs = SpecsOf(TinyModel(tied), TensorDtype::kF32);
    edit(specs);
    folder_ = TestFolder("resolve");
    WriteSafetensors(folder_ + "/model.safetensors", specs);
    auto hf = OpenHfModel(folder_);
    EXPECT_THAT(hf, IsOk());
    hf_ = *std::move(hf);
    return ResolveWeights(hf_, TinyModel(tied));
  }

  const HfTensor& Source(const std::string& name) const {
    return *std::find_if(hf_.tensors.begin(), hf_.tensors.end(),
                         [&](const HfTensor& tensor) { return tensor.name == name; });
  }

  static TensorSpec& Named(std::vector<TensorSpec>& specs, const std::string& name) {
    return *std::find_if(specs.begin(), specs.end(),
                         [&](const TensorSpec& spec) { return spec.name == name; });
  }

  static void Erase(std::vector<TensorSpec>& specs, const std::string& part) {
    specs.erase(std::remove_if(specs.begin(), specs.end(),
                               [&](const TensorSpec& spec) {
                                 return spec.name.find(part) != std::string::npos;
                               }),
                specs.end());
  }

  std::string folder_;
  HfModel hf_;
};

constexpr char kExperts0[] = "model.layers.0.mlp.experts";

TEST_F(ResolveWeightsTest, FindsEveryTensor) {
  const auto source = Resolve([](std::vector<TensorSpec>&) {});
  ASSERT_THAT(source, IsOk());
  size_t slots = 0;
  for (const BucketLayout& bucket : TinyModel()) {
    for (const TensorSlot& slot : bucket.slots) {
      ++slots;
      const auto it = source->at.find(slot.name);
      ASSERT_NE(it, source->at.end()) << slot.name;
      EXPECT_EQ(it->second.offset, Source(slot.name).offset);
      EXPECT_EQ(it->second.numel, slot.numel);
    }
  }
  EXPECT_EQ(source->at.size(), slots);
}

TEST_F(ResolveWeightsTest, FindsExpertsInsideFusedTensors) {
  const auto source = Resolve([](std::vector<TensorSpec>& specs) {
    Erase(specs, absl::StrCat(kExperts0, "."));
    specs.push_back({absl::StrCat(kExperts0, ".gate_up_proj"), TensorDtype::kBf16, {4, 10, 6}});
    specs.push_back({absl::StrCat(kExperts0, ".down_proj"), TensorDtype::kF32, {4, 6, 5}});
  });
  ASSERT_THAT(source, IsOk());
  const auto at = [&](const char* name) { return source->at.at(absl::StrCat(kExperts0, name)); };
  const uint64_t fused = Source(absl::StrCat(kExperts0, ".gate_up_proj")).offset;
  EXPECT_EQ(at(".0.gate_proj.weight").offset, fused);
  EXPECT_EQ(at(".0.up_proj.weight").offset, fused + 30 * 2);
  EXPECT_EQ(at(".3.gate_proj.weight").offset, fused + 3 * 60 * 2);
  EXPECT_EQ(at(".3.up_proj.weight").offset, fused + (3 * 60 + 30) * 2);
  EXPECT_EQ(at(".3.up_proj.weight").dtype, TensorDtype::kBf16);
  const uint64_t down = Source(absl::StrCat(kExperts0, ".down_proj")).offset;
  EXPECT_EQ(at(".2.down_proj.weight").offset, down + 2 * 30 * 4);
}

TEST_F(ResolveWeightsTest, NamesMissingRenamedAndExtraTensors) {
  EXPECT_THAT(Resolve([](auto& specs) { Erase(specs, "layers.1.mlp.up_proj"); }),
              StatusIs(kInvalid, AllOf(HasSubstr("1 tensor missing"),
                                       HasSubstr("'model.layers.1.mlp.up_proj.weight'"))));
  EXPECT_THAT(Resolve([](auto& specs) { Named(specs, "model.norm.weight").name = "norm.weight"; }),
              StatusIs(kInvalid, AllOf(HasSubstr("missing: 'model.norm.weight'"),
                                       HasSubstr("unexpected: 'norm.weight'"))));
  EXPECT_THAT(Resolve([](auto& specs) {
                specs.push_back({"x", TensorDtype::kF32, {1}});
              }),
              StatusIs(kInvalid, HasSubstr("1 tensor unexpected: 'x'")));
  EXPECT_THAT(Resolve([](auto& specs) { Erase(specs, ".experts."); }),
              StatusIs(kInvalid, AllOf(HasSubstr("24 tensors missing"), HasSubstr("and others"))));
  // One expert too many, as of a model with more experts.
  EXPECT_THAT(
      Resolve([](auto& specs) {
        specs.push_back({absl::StrCat(kExperts0, ".4.up_proj.weight"), TensorDtype::kF32, {5, 6}});
      }),
      StatusIs(kInvalid, HasSubstr("unexpected: 'model.layers.0.mlp.experts.4.up_proj")));
  // Both forms of the same experts.
  EXPECT_THAT(
      Resolve([](auto& specs) {
        specs.push_back({absl::StrCat(kExperts0, ".down_proj"), TensorDtype::kF32, {4, 6, 5}});
      }),
      StatusIs(kInvalid, HasSubstr("unexpected: 'model.layers.0.mlp.experts.down_proj'")));
}

TEST_F(ResolveWeightsTest, NamesTensorsOfWrongShapeOrDtype) {
  EXPECT_THAT(Resolve([](auto& specs) {
                Named(specs, "model.norm.weight").shape = {3, 2};
              }),
              StatusIs(kInvalid, AllOf(HasSubstr("model.safetensors: tensor 'model.norm.weight'"),
                                       HasSubstr("[3, 2]"), HasSubstr("[6]"))));
  EXPECT_THAT(
      Resolve([](auto& specs) { Named(specs, "lm_head.weight").dtype = TensorDtype::kI32; }),
      StatusIs(kInvalid, AllOf(HasSubstr("'lm_head.weight'"), HasSubstr("dtype I32"))));
  EXPECT_THAT(
      Resolve([](auto& specs) {
        Erase(specs, absl::StrCat(kExperts0, ".0.down"));
        Erase(specs, absl::StrCat(kExperts0, ".1.down"));
        Erase(specs, absl::StrCat(kExperts0, ".2.down"));
        Erase(specs, absl::StrCat(kExperts0, ".3.down"));
        specs.push_back({absl::StrCat(kExperts0, ".down_proj"), TensorDtype::kF32, {4, 5, 6}});
      }),
      StatusIs(kInvalid, AllOf(HasSubstr("experts.down_proj'"), HasSubstr("[4, 5, 6]"),
                               HasSubstr("[4, 6, 5]"))));
}

TEST_F(ResolveWeightsTest, LeavesOutRotaryBuffers) {
  EXPECT_THAT(
      Resolve([](auto& specs) {
        specs.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", TensorDtype::kF32, {2}});
      }),
      IsOk());
}

TEST_F(ResolveWeightsTest, TiedHeadMayStandForTheEmbedding) {
  const auto source = Resolve(
      [](auto& specs) { Named(specs, "model.embed_tokens.weight").name = "lm_head.weight"; },
      /*tied=*/true);
  ASSERT_THAT(source, IsOk());
  EXPECT_EQ(source->at.at("model.embed_tokens.weight").offset, Source("lm_head.weight").offset);
  EXPECT_EQ(source->at.count("lm_head.weight"), 0u);
}

TEST_F(ResolveWeightsTest, TiedHeadBesideTheEmbeddingMustEqualIt) {
  // The data counts up modulo 251, so two tensors differ ...
  EXPECT_THAT(Resolve(
                  [](auto& specs) {
                    specs.push_back({"lm_head.weight", TensorDtype::kF32, {13, 6}});
                  },
                  /*tied=*/true),
              StatusIs(kInvalid, AllOf(HasSubstr("'lm_head.weight' differs"),
                                       HasSubstr("tie_word_embeddings"))));
  // ... unless they are made equal.
  const std::string path = folder_ + "/model.safetensors";
  auto bytes = ReadFile(path);
  ASSERT_THAT(bytes, IsOk());
  const size_t size = 13 * 6 * 4;
  bytes->replace(Source("lm_head.weight").offset, size,
                 bytes->substr(Source("model.embed_tokens.weight").offset, size));
  ASSERT_THAT(ReplaceFile(path, *bytes), IsOk());
  const auto source = ResolveWeights(hf_, TinyModel(true));
  ASSERT_THAT(source, IsOk());
  EXPECT_EQ(source->at.size(), hf_.tensors.size() - 1);
}

TEST_F(ResolveWeightsTest, UntiedModelNeedsItsHead) {
  EXPECT_THAT(Resolve([](auto& specs) { Erase(specs, "lm_head"); }),
              StatusIs(kInvalid, HasSubstr("missing: 'lm_head.weight'")));
}

}  // namespace
}  // namespace switchyard

// Saves and loads by ranks that are threads of this process.
#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "absl/time/time.h"
#include "base/crc32c.h"
#include "worker/trainer/checkpoint/master_bits.h"
#include "worker/trainer/checkpoint/or_throw.h"
#include "worker/trainer/checkpoint/reader.h"
#include "worker/trainer/checkpoint/test_gang.h"
#include "worker/trainer/checkpoint/writer.h"
#include "worker/trainer/parallel/fsdp.h"
#include "worker/trainer/parallel/in_process_comm.h"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

namespace fs = std::filesystem;

std::map<std::string, std::string> AllFiles(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    const auto data = ReadFile(entry.path().string());
    EXPECT_THAT(data, IsOk());
    files[fs::relative(entry.path(), folder).string()] = data.value_or("");
  }
  return files;
}

TEST(MasterBitsTest, JoinIsTheInverseOfSplit) {
  std::vector<float> values = {0.0f, -0.0f, 1.0f, -1.0f, 1e-45f, 1e-38f, 3.4028235e38f, -3.4e38f};
  for (int i = 0; i < 10000; ++i) values.push_back(Value("x", i, 0));
  const at::Tensor master = at::tensor(values);
  const MasterParts parts = SplitMaster(master);
  const at::Tensor joined = JoinMaster(parts.weight, parts.remainder);
  EXPECT_TRUE(at::equal(joined.view(at::kInt), master.view(at::kInt)));
}

TEST(MasterBitsTest, WeightIsTheNearestWithTiesAwayFromZero) {
  // bf16 has 7 mantissa bits: 2^-7 between neighbours above 1.
  const float ulp = 1.0f / 128;
  const at::Tensor master =
      at::tensor({1 + 0.5f * ulp, 1 + 0.49f * ulp, -1 - 0.5f * ulp, 1 + 1.5f * ulp});
  const at::Tensor weight = SplitMaster(master).weight.to(at::kFloat);
  EXPECT_TRUE(at::equal(weight, at::tensor({1 + ulp, 1.0f, -1 - ulp, 1 + 2 * ulp})));
}

class ReshardChainTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string name = GetParam();
    dtypes_.moments = true;
    TensorDtype file = TensorDtype::kF32;
    if (name == "Fp32WithBf16Files" || name == "Bf16") file = TensorDtype::kBf16;
    if (name == "Bf16" || name == "Bf16WithF32Files") {
      dtypes_.weights = at::kBFloat16;
      dtypes_.remainder = true;
    }
    if (name == "Bf16") dtypes_.moment = at::kBFloat16;
    source_ = SourceOf(TinyModel(), file);
  }
  Dtypes dtypes_;
  WeightSource source_;
};

// Weights, masters and moments keep their bits through any sequence of gangs, and the files do not
// depend on who wrote them.
TEST_P(ReshardChainTest, KeepsEveryBit) {
  const std::vector<Gang> chain = {{1, 1, 1}, {2, 1, 1}, {4, 1, 1}, {1, 1, 1}, {4, 1, 4},
                                   {2, 1, 2}, {4, 2, 2}, {4, 2, 1}, {3, 1, 1}, {8, 2, 2}};
  const std::string root = TestFolder("chain");
  const CheckpointPlan plan = PlanFor(&source_, dtypes_, 1000);
  ASSERT_GT(plan.weights.layouts.size(), 2u);
  SaveFilled(root + "/0", chain[0], dtypes_, plan);
  auto first_files = AllFiles(root + "/0");
  first_files.erase(kManifestName);  // it states the world size
  for (size_t i = 1; i < chain.size(); ++i) {
    const std::string from = absl::StrCat(root, "/", i - 1);
    const SaveRequest request = RequestFor(absl::StrCat(root, "/", i), chain[i]);
    RunGang(chain[i], [&](const Mesh& mesh, Comm& world) {
      std::vector<BucketShard> shards = MakeShards(mesh, dtypes_);
      const LoadedCheckpoint loaded = LoadCheckpoint(from, TinyModel(), shards, world);
      EXPECT_EQ(loaded.manifest.world_size, chain[i - 1].world_size);
      EXPECT_EQ(loaded.state.step, 5);
      ExpectFilled(shards, mesh);
      SaveCheckpoint(request, plan, shards, world);
    });
    auto files = AllFiles(request.folder);
    files.erase(kManifestName);
    EXPECT_TRUE(files == first_files) << "gang " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, ReshardChainTest,
                         testing::Values("Fp32", "Fp32WithBf16Files", "Bf16", "Bf16WithF32Files"),
                         [](const auto& info) { return std::string(info.param); });

TEST(CheckpointTest, ResumesInAnotherDtypeFromTheSameMaster) {
  Dtypes fp32;
  fp32.moments = true;
  Dtypes bf16 = fp32;
  bf16.weights = at::kBFloat16;
  bf16.remainder = true;
  const std::string root = TestFolder("dtypes");
  SaveFilled(root + "/bf16", {2, 1, 2}, bf16, PlanFor(nullptr, bf16, 1 << 20));
  RunGang({2, 1, 1}, [&](const Mesh& mesh, Comm& world) {
    std::vector<BucketShard> shards = MakeShards(mesh, fp32);
    LoadCheckpoint(root + "/bf16", TinyModel(), shards, world);
    ExpectFilled(shards, mesh);
  });
  SaveFilled(root + "/fp32", {2, 1, 2}, fp32, PlanFor(nullptr, fp32, 1 << 20));
  RunGang({2, 1, 1}, [&](const Mesh& mesh, Comm& world) {
    std::vector<BucketShard> shards = MakeShards(mesh, bf16);
    LoadCheckpoint(root + "/fp32", TinyModel(), shards, world);
    ExpectFilled(shards, mesh);
  });
}

TEST(CheckpointTest, FolderHoldsWhatTheManifestListsAndNothingStale) {
  const Dtypes dtypes{at::kFloat, false, true, at::kFloat};
  const std::string folder = TestFolder("listed") + "/step-5";
  ASSERT_THAT(MakeFolders(folder), IsOk());
  ASSERT_THAT(ReplaceFile(folder + "/model-00009-of-00009.safetensors", "stale"), IsOk());
  const CheckpointPlan plan = PlanFor(nullptr, dtypes, 2000);
  const SaveRequest request = RequestFor(folder, {2, 1, 2});
  std::vector<uint32_t> crcs(2);
  RunGang({2, 1, 2}, [&](const Mesh& mesh, Comm& world) {
    std::vector<BucketShard> shards = MakeShards(mesh, dtypes);
    Fill(shards);
    crcs[mesh.rank] = SaveCheckpoint(request, plan, shards, world);
  });
  auto files = AllFiles(folder);
  EXPECT_THAT(crcs, ElementsAre(Crc32c(files[kManifestName]), Crc32c(files[kManifestName])));
  const auto manifest = ReadManifest(folder);
  ASSERT_THAT(manifest, IsOk());
  files.erase(kManifestName);
  ASSERT_EQ(manifest->files.size(), files.size());
  size_t i = 0;
  for (const auto& [name, data] : files) {
    EXPECT_EQ(manifest->files[i].name, name);
    EXPECT_EQ(manifest->files[i].size, static_cast<int64_t>(data.size()));
    EXPECT_EQ(manifest->files[i].crc32c, Crc32c(data)) << name;
    ++i;
  }
  EXPECT_EQ(files["config.json"], R"({"torch_dtype": "float32"})");
  EXPECT_EQ(files["tokenizer.json"], "{}");
  EXPECT_EQ(files.count("model-00009-of-00009.safetensors"), 0u);
  EXPECT_EQ(files.count("switchyard/state.json"), 1u);
  EXPECT_EQ(files.count("model.safetensors.index.json"), 1u);
}

TEST(CheckpointTest, LoadsAnyFloatingDtype) {
  const std::string folder = TestFolder("dtypes_of_files");
  std::vector<TensorSpec> specs = SpecsOf(TinyModel(), TensorDtype::kF32);
  for (size_t i = 0; i < specs.size(); ++i) {
    specs[i].dtype =
        std::vector<TensorDtype>{TensorDtype::kF32, TensorDtype::kBf16, TensorDtype::kF16}[i % 3];
  }
  const SafetensorsLayout layout = OrThrow(LayOutSafetensors(specs));
  std::string file = layout.head;
  std::map<std::string, at::Tensor> written;  // as the file holds it
  for (const TensorInfo& tensor : layout.tensors) {
    std::vector<float> values(8 * (tensor.end - tensor.begin) / DtypeBits(tensor.dtype));
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = Value(tensor.name, static_cast<int64_t>(i), 0);
    }
    const at::ScalarType dtype = tensor.dtype == TensorDtype::kF32    ? at::kFloat
                                 : tensor.dtype == TensorDtype::kBf16 ? at::kBFloat16
                                                                      : at::kHalf;
    const at::Tensor data = at::tensor(values).to(dtype);
    file.append(static_cast<const char*>(data.data_ptr()), data.nbytes());
    written[tensor.name] = data;
  }
  ASSERT_THAT(ReplaceFile(folder + "/model.safetensors", file), IsOk());

  for (const Dtypes& dtypes : {Dtypes{}, Dtypes{at::kBFloat16}, Dtypes{at::kBFloat16, true}}) {
    RunGang({2, 1, 2}, [&](const Mesh& mesh, Comm& world) {
      std::vector<BucketShard> shards = MakeShards(mesh, dtypes);
      LoadWeights(folder, TinyModel(), shards, world);
      for (const BucketShard& shard : shards) {
        std::vector<at::Tensor> parts;
        for (const TensorSlot& slot : shard.layout.slots) {
          parts.push_back(written.at(slot.name).to(at::kFloat));
        }
        const at::Tensor wanted = at::cat(parts).narrow(0, shard.begin, shard.end - shard.begin);
        if (dtypes.remainder) {
          ExpectSameBits(JoinMaster(shard.weights, shard.remainder), wanted, shard.layout.name);
        } else {
          ExpectSameBits(shard.weights, wanted.to(dtypes.weights), shard.layout.name);
        }
      }
    });
  }
}

TEST(CheckpointTest, CoverageMustBeExact) {
  const Gang gang = {4, 2, 1};
  const auto check = [&](const std::function<void(const Mesh&, std::vector<BucketShard>&)>& edit) {
    return CaughtByRank(gang, [&](const Mesh& mesh, Comm& world) {
      std::vector<BucketShard> shards = MakeShards(mesh, Dtypes());
      edit(mesh, shards);
      CheckCoverage(TinyModel(), shards, world);
    });
  };
  const auto move = [](BucketShard& shard, int64_t begin, int64_t end) {
    shard.begin = begin;
    shard.end = end;
    shard.weights = at::zeros({end - begin});
  };
  for (const absl::Status& status : check([](const Mesh&, auto&) {})) EXPECT_THAT(status, IsOk());
  const auto both_write = check([](const Mesh&, auto& shards) { shards[1].writer = true; });
  const auto gap = check([&](const Mesh& mesh, auto& shards) {
    if (mesh.rank == 1) move(shards[0], shards[0].begin + 1, shards[0].end);
  });
  // As many elements as there should be, but one twice and one not at all.
  const auto shifted = check([&](const Mesh& mesh, auto& shards) {
    if (mesh.rank == 0) move(shards[0], shards[0].begin, shards[0].end + 1);
    if (mesh.rank == 1) move(shards[0], shards[0].begin, shards[0].end - 1);
  });
  const auto stranger =
      check([](const Mesh&, auto& shards) { shards[0].layout.slots[0].name = "x"; });
  for (int rank = 0; rank < gang.world_size; ++rank) {
    EXPECT_THAT(both_write[rank].message(), HasSubstr("model.layers.0.input_layernorm.weight"));
    EXPECT_THAT(gap[rank].message(), HasSubstr("it has 78, they hold 77"));
    EXPECT_THAT(shifted[rank].message(), HasSubstr("it has 78, they hold 78"));
  }
  EXPECT_THAT(stranger[0].message(), HasSubstr("has no 'x'"));
  EXPECT_THAT(stranger[2],
              StatusIs(absl::StatusCode::kAborted));  // a replica, which writes nothing
}

TEST(CheckpointTest, AFailingRankFailsAll) {
  const std::string root = TestFolder("failing");
  ASSERT_THAT(ReplaceFile(root + "/file", "x"), IsOk());
  const SaveRequest request = RequestFor(root + "/file/step-1", {2, 1, 1});
  const auto save = CaughtByRank({2, 1, 1}, [&](const Mesh& mesh, Comm& world) {
    const std::vector<BucketShard> shards = MakeShards(mesh, Dtypes());
    SaveCheckpoint(request, PlanFor(nullptr, Dtypes(), 1000), shards, world);
  });
  EXPECT_THAT(save[0].message(), HasSubstr(root + "/file"));
  EXPECT_THAT(save[1], StatusIs(absl::StatusCode::kAborted, HasSubstr("another rank failed")));
}

TEST(CheckpointTest, NeverRemovesItsSource) {
  SaveRequest request = RequestFor("", {1, 1, 1});
  request.folder = request.source_folder + "/.";
  const auto save = CaughtByRank({1, 1, 1}, [&](const Mesh& mesh, Comm& world) {
    const std::vector<BucketShard> shards = MakeShards(mesh, Dtypes());
    SaveCheckpoint(request, PlanFor(nullptr, Dtypes(), 1000), shards, world);
  });
  EXPECT_THAT(save[0], StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("source")));
  EXPECT_TRUE(fs::exists(request.source_folder + "/config.json"));
}

class DamagedCheckpointTest : public testing::Test {
 protected:
  void SetUp() override {
    dtypes_.moments = true;
    folder_ = TestFolder("damaged") + "/step-5";
    SaveFilled(folder_, {2, 1, 2}, dtypes_, PlanFor(nullptr, dtypes_, 1500));
  }

  // One of two ranks reads a file, both must fail.
  std::vector<absl::Status> Load() {
    return CaughtByRank({2, 1, 1}, [&](const Mesh& mesh, Comm& world) {
      LoadCheckpoint(folder_, TinyModel(), MakeShards(mesh, dtypes_), world);
    });
  }

  void Edit(const std::string& name, const std::function<void(std::string&)>& edit) {
    auto data = ReadFile(folder_ + "/" + name);
    ASSERT_THAT(data, IsOk());
    edit(*data);
    ASSERT_THAT(ReplaceFile(folder_ + "/" + name, *data), IsOk());
  }

  Dtypes dtypes_;
  std::string folder_;
};

TEST_F(DamagedCheckpointTest, UndamagedLoads) {
  for (const absl::Status& status : Load()) EXPECT_THAT(status, IsOk());
}

TEST_F(DamagedCheckpointTest, AFlippedBitOfAnyFileIsFound) {
  const auto manifest = ReadManifest(folder_);
  ASSERT_THAT(manifest, IsOk());
  ASSERT_GT(manifest->files.size(), 8u);
  for (const ManifestFile& file : manifest->files) {
    const auto flip = [](std::string& data) { data[data.size() / 2] ^= 4; };
    Edit(file.name, flip);
    for (const absl::Status& status : Load()) {
      EXPECT_THAT(status, StatusIs(absl::StatusCode::kDataLoss, HasSubstr(file.name)));
    }
    Edit(file.name, flip);
  }
}

// Headers, data, index, state, side files: every eighth of every file, and each file's ends.
TEST_F(DamagedCheckpointTest, DamageAnywhereInAFileIsFound) {
  const auto manifest = ReadManifest(folder_);
  ASSERT_THAT(manifest, IsOk());
  for (const ManifestFile& file : manifest->files) {
    const auto size = static_cast<size_t>(file.size);
    std::set<size_t> places = {0, size - 1};
    for (size_t i = 1; i < 8; ++i) places.insert(i * size / 8);
    for (const size_t at : places) {
      const auto flip = [at](std::string& data) { data[at] ^= 1; };
      Edit(file.name, flip);
      for (const absl::Status& status : Load()) {
        EXPECT_THAT(status, StatusIs(absl::StatusCode::kDataLoss,
                                     AllOf(HasSubstr(file.name), HasSubstr("crc32c"))))
            << "byte " << at;
      }
      Edit(file.name, flip);
    }
  }
  for (const absl::Status& status : Load()) EXPECT_THAT(status, IsOk());
}

TEST_F(DamagedCheckpointTest, ADamagedManifestIsRefused) {
  const std::string whole = ReadFile(folder_ + "/" + kManifestName).value_or("");
  const std::string step = "\"step\": 5";
  ASSERT_NE(whole.find(step), std::string::npos) << whole;
  struct Case {
    const char* what;
    std::function<void(std::string&)> edit;
    const char* reason;
  };
  const std::vector<Case> cases = {
      {"cut off", [](std::string& text) { text.resize(text.size() / 2); }, "manifest.json"},
      {"empty", [](std::string& text) { text.clear(); }, "manifest.json"},
      {"another step",
       [&](std::string& text) { text.replace(text.find(step), step.size(), "\"step\": 4"); },
       "step 4, switchyard/state.json: step 5"},
      {"another size", [](std::string& text) { ++text[text.find("\"size\": ") + 8]; },
       "manifest states"},
      {"a name", [](std::string& text) { text.replace(text.find("tokenizer"), 1, "T"); },
       "Tokenizer"},
  };
  for (const Case& c : cases) {
    Edit(kManifestName, [&](std::string& text) {
      text = whole;
      c.edit(text);
    });
    for (const absl::Status& status : Load()) {
      EXPECT_FALSE(status.ok()) << c.what;
      if (absl::IsAborted(status)) continue;
      EXPECT_THAT(status.message(), HasSubstr(c.reason)) << c.what;
    }
  }
}

// Damage that the checksums agree with: a writer with a bug, or a forger.
TEST_F(DamagedCheckpointTest, AHeaderThatIsWrongButSummedIsRefusedWithItsFile) {
  auto manifest = ReadManifest(folder_);
  ASSERT_THAT(manifest, IsOk());
  const auto file =
      std::find_if(manifest->files.begin(), manifest->files.end(),
                   [](const ManifestFile& f) { return f.name.rfind("model-00001-of", 0) == 0; });
  ASSERT_NE(file, manifest->files.end());
  Edit(file->name, [&](std::string& data) {
    data.replace(data.find("\"F32\""), 5, "\"X32\"");
    file->crc32c = Crc32c(data);
  });
  ASSERT_THAT(ReplaceFile(folder_ + "/" + kManifestName, DumpManifest(*manifest)), IsOk());
  for (const absl::Status& status : Load()) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(file->name)));
  }
}

TEST_F(DamagedCheckpointTest, ATruncatedOrMissingFileIsFound) {
  const std::string name = "switchyard/optimizer-00002-of";
  const auto manifest = ReadManifest(folder_);
  ASSERT_THAT(manifest, IsOk());
  const auto file = std::find_if(manifest->files.begin(), manifest->files.end(),
                                 [&](const auto& f) { return f.name.rfind(name, 0) == 0; });
  ASSERT_NE(file, manifest->files.end());
  Edit(file->name, [](std::string& data) { data.pop_back(); });
  for (const absl::Status& status : Load()) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kDataLoss,
                                 AllOf(HasSubstr(file->name), HasSubstr("the manifest states"))));
  }
  ASSERT_TRUE(fs::remove(folder_ + "/" + file->name));
  for (const absl::Status& status : Load()) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kDataLoss, HasSubstr(file->name)));
  }
}

TEST_F(DamagedCheckpointTest, WithoutManifestItIsNone) {
  ASSERT_TRUE(fs::remove(folder_ + "/" + kManifestName));
  for (const absl::Status& status : Load()) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kNotFound, HasSubstr(kManifestName)));
  }
}

TEST_F(DamagedCheckpointTest, WithoutOptimizerItResumesNothing) {
  SaveFilled(folder_, {1, 1, 1}, Dtypes(), PlanFor(nullptr, Dtypes(), 1500));
  for (const absl::Status& status : Load()) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kNotFound, HasSubstr("without optimizer")));
  }
}

}  // namespace
}  // namespace switchyard

#include "client/checkpoint_check.h"

#include "client/checkpoint_testing.h"
#include "gmock/gmock.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::Field;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr char kShard1[] = "model-00001-of-00002.safetensors";
constexpr char kShard2[] = "model-00002-of-00002.safetensors";
constexpr char kIndexName[] = "model.safetensors.index.json";
constexpr char kOptimizer[] = "switchyard/optimizer-00001-of-00001.safetensors";

class MemorySource final : public CheckpointSource {
 public:
  explicit MemorySource(Bytes files) : files_(std::move(files)) {}
  absl::StatusOr<std::vector<std::string>> ListFiles() override {
    std::vector<std::string> names;
    for (const auto& [name, bytes] : files_) names.push_back(name);
    return names;
  }
  absl::Status Scan(const std::string& name,
                    absl::FunctionRef<absl::Status(absl::string_view)> sink) override {
    if (name == unreadable) return absl::DataLossError("it is a link");
    if (name == away) return absl::UnavailableError("gone");
    const absl::string_view bytes = files_.at(name);
    for (size_t at = 0; at < bytes.size(); at += 5) {  // pieces that cut through everything
      if (absl::Status status = sink(bytes.substr(at, 5)); !status.ok()) return status;
    }
    return absl::OkStatus();
  }
  std::string unreadable, away;

 private:
  const Bytes files_;
};

std::vector<CheckpointFault> Faults(const Bytes& files) {
  MemorySource source(files);
  const auto report = CheckCheckpoint(source);
  EXPECT_THAT(report, IsOk());
  return report.ok() ? report->faults : std::vector<CheckpointFault>();
}

auto FaultIs(const std::string& file, const std::string& reason) {
  return AllOf(Field(&CheckpointFault::file, file),
               Field(&CheckpointFault::reason, HasSubstr(reason)));
}

// The weights in the index that TinyCheckpoint makes, without one tensor.
Bytes WithoutTensor(const std::string& name, bool also_from_index) {
  Bytes files = TinyCheckpoint();
  std::vector<TensorSpec> specs = TinyTensors(TensorDtype::kF32);
  std::vector<TensorSpec> first;
  Json index = *ParseJson(files[kIndexName], "index");
  for (const TensorSpec& spec : specs) {
    if (index["weight_map"][spec.name] == kShard1 && spec.name != name) first.push_back(spec);
  }
  files[kShard1] = MakeTensors(first, TinyValue);
  if (also_from_index) index["weight_map"].erase(name);
  files[kIndexName] = DumpJson(index);
  AddManifest(files);
  return files;
}

TEST(CheckpointCheckTest, AWholeOneHasNoFault) {
  MemorySource source(TinyCheckpoint());
  const auto report = CheckCheckpoint(source);
  ASSERT_THAT(report, IsOk());
  EXPECT_THAT(report->faults, IsEmpty());
  EXPECT_THAT(report->notes, IsEmpty());
  EXPECT_EQ(report->step, 6);
  EXPECT_EQ(report->files, 8);
  EXPECT_EQ(report->tensors, static_cast<int64_t>(TinyTensors(TensorDtype::kF32).size()));
}

TEST(CheckpointCheckTest, NamesFileAndReasonForEachClassOfCorruption) {
  const Bytes good = TinyCheckpoint();
  const std::string expert = "model.layers.0.mlp.experts.1.up_proj.weight";
  struct Row {
    const char* what;
    std::function<void(Bytes&)> spoil;
    std::string file, reason;
  };
  const std::vector<Row> rows = {
      {"data flipped", [](Bytes& f) { f[kShard1].back() ^= 1; }, kShard1, "has crc32c"},
      {"data truncated", [](Bytes& f) { f[kShard2].pop_back(); }, kShard2, "the manifest says"},
      {"data truncated, its header says", [](Bytes& f) { f[kShard2].pop_back(); }, kShard2,
       "MetadataIncompleteBuffer"},
      {"data appended", [](Bytes& f) { f[kShard2] += "x"; }, kShard2, "the manifest says"},
      {"header length flipped", [](Bytes& f) { f[kShard1][5] ^= 1; }, kShard1, "HeaderTooLarge"},
      {"header flipped", [](Bytes& f) { f[kShard1][8] = '['; }, kShard1,
       "InvalidHeaderDeserialization"},
      {"header not UTF-8", [](Bytes& f) { f[kShard1][12] = '\xff'; }, kShard1, "InvalidHeader"},
      {"header cut", [](Bytes& f) { f[kShard1].resize(20); }, kShard1, "InvalidHeaderLength"},
      {"empty", [](Bytes& f) { f[kShard1].clear(); }, kShard1, "HeaderTooSmall"},
      {"file missing", [](Bytes& f) { f.erase(kShard1); }, kShard1, "is missing"},
      {"manifest missing", [](Bytes& f) { f.erase(kManifestName); }, kManifestName,
       "not written to its end"},
      {"manifest cut", [](Bytes& f) { f[kManifestName].resize(40); }, kManifestName, "JSON"},
      {"manifest of another version",
       [](Bytes& f) { f[kManifestName].replace(f[kManifestName].find("1,"), 1, "9"); },
       kManifestName, "version 9"},
      {"index flipped", [](Bytes& f) { f[kIndexName][30] ^= 1; }, kIndexName, "has crc32c"},
      {"index cut", [](Bytes& f) { f[kIndexName].resize(50); }, kIndexName, "JSON"},
      {"state flipped", [](Bytes& f) { f["switchyard/state.json"][0] = '['; },
       "switchyard/state.json", "has crc32c"},
      {"optimizer flipped", [](Bytes& f) { f[kOptimizer].back() ^= 1; }, kOptimizer, "has crc32c"},
      {"side file changed", [](Bytes& f) { f["tokenizer.json"] = "[]"; }, "tokenizer.json",
       "has crc32c"},
      {"a stranger", [](Bytes& f) { f["model.safetensors.old"] = "x"; }, "model.safetensors.old",
       "is not in the manifest"},
      {"config not JSON",
       [](Bytes& f) {
         f["config.json"] = "{";
         AddManifest(f);
       },
       "config.json", "JSON"},
      {"config missing",
       [](Bytes& f) {
         f.erase("config.json");
         AddManifest(f);
       },
       "config.json", "is missing"},
      {"no weights",
       [](Bytes& f) {
         f.erase(kShard1);
         f.erase(kShard2);
         f.erase(kIndexName);
         AddManifest(f);
       },
       "model.safetensors", "is missing"},
      {"a stale single file",
       [](Bytes& f) {
         f["model.safetensors"] = f[kShard1];
         AddManifest(f);
       },
       kIndexName, "loaders take instead"},
      {"a shard that the index does not know",
       [](Bytes& f) {
         f["model-00003-of-00003.safetensors"] = f[kShard2];
         AddManifest(f);
       },
       "model-00003-of-00003.safetensors", "is not in the index"},
      {"the index names a missing shard",
       [](Bytes& f) {
         f.erase(kShard2);
         AddManifest(f);
       },
       kIndexName, "which is missing"},
      {"a shard lacks a tensor of the index", [&](Bytes& f) { f = WithoutTensor(expert, false); },
       kShard1, "1 tensor of the index missing: '" + expert + "'"},
      {"a tensor of the model is nowhere", [&](Bytes& f) { f = WithoutTensor(expert, true); },
       kIndexName, "1 tensor of the model missing: '" + expert + "'"},
      {"a tensor twice",
       [](Bytes& f) {
         f[kShard2] = f[kShard1];
         AddManifest(f);
       },
       kShard2, "also in another file"},
      {"the model has another shape",
       [](Bytes& f) {
         std::string& config = f["config.json"];
         config.replace(config.find("\"vocab_size\": 16"), 16, "\"vocab_size\": 17");
         AddManifest(f);
       },
       "config.json", "the file has [16, 8]"},
      {"fewer experts",
       [](Bytes& f) {
         std::string& config = f["config.json"];
         config.replace(config.find("\"num_experts\": 4"), 16, "\"num_experts\": 3");
         AddManifest(f);
       },
       kIndexName, "that the model does not have: 'model.layers.0.mlp.experts.3."},
      {"an optimizer's tensor of no tensor",
       [](Bytes& f) {
         f[kOptimizer] = MakeTensors({{"x.exp_avg", TensorDtype::kF32, {2}}}, TinyValue);
         AddManifest(f);
       },
       kOptimizer, "1 tensor that fit no tensor of the model: 'x.exp_avg'"},
      {"an optimizer without moments",
       [](Bytes& f) {
         f[kOptimizer] =
             MakeTensors({{"model.norm.weight.exp_avg", TensorDtype::kF32, {8}}}, TinyValue);
         AddManifest(f);
       },
       "switchyard", "without both moments"},
  };
  for (const Row& row : rows) {
    Bytes files = good;
    row.spoil(files);
    EXPECT_THAT(Faults(files), Contains(FaultIs(row.file, row.reason))) << row.what;
  }
}

TEST(CheckpointCheckTest, ASingleFaultIsToldOnce) {
  Bytes files = TinyCheckpoint();
  files[kShard1].back() ^= 1;
  EXPECT_THAT(Faults(files), ElementsAre(FaultIs(kShard1, "has crc32c")));
  files = TinyCheckpoint();
  files.erase(kShard1);
  EXPECT_THAT(Faults(files), ElementsAre(FaultIs(kShard1, "is missing"),
                                         FaultIs(kIndexName, "names model-00001-of-00002")));
}

TEST(CheckpointCheckTest, EveryByteCounts) {
  const Bytes good = TinyCheckpoint();
  for (const auto& [name, bytes] : good) {
    if (name == kManifestName) continue;  // its own sum is in the coordinator's database
    for (size_t at = 0; at < bytes.size(); at += 1 + bytes.size() / 40) {
      Bytes files = good;
      files[name][at] ^= 0x10;
      EXPECT_THAT(Faults(files), testing::Not(IsEmpty())) << name << " at " << at;
    }
  }
}

TEST(CheckpointCheckTest, AModelOfOthersIsCheckedWithoutSums) {
  Bytes files = TinyCheckpoint();
  for (const char* name : {kManifestName, "switchyard/state.json", kOptimizer}) files.erase(name);
  MemorySource source(files);
  const auto report = CheckCheckpoint(source);
  ASSERT_THAT(report, IsOk());
  EXPECT_THAT(report->faults, IsEmpty());
  EXPECT_THAT(report->notes, ElementsAre(HasSubstr("checksums are not known")));
  files["config.json"] = R"({"model_type": "another"})";
  MemorySource other(files);
  const auto unknown = CheckCheckpoint(other);
  ASSERT_THAT(unknown, IsOk());
  EXPECT_THAT(unknown->faults, IsEmpty());
  EXPECT_THAT(unknown->notes, Contains(HasSubstr("tensor names are not checked")));
}

TEST(CheckpointCheckTest, WhatCannotBeReadIsAFaultWhatIsAwayAnError) {
  MemorySource source(TinyCheckpoint());
  source.unreadable = kShard2;
  const auto report = CheckCheckpoint(source);
  ASSERT_THAT(report, IsOk());
  EXPECT_THAT(report->faults, ElementsAre(FaultIs(kShard2, "it is a link")));
  source.away = kShard2;
  source.unreadable = "";
  EXPECT_THAT(CheckCheckpoint(source), StatusIs(absl::StatusCode::kUnavailable));
}

// hf_format.md 6.2: what vLLM and SGLang need of the names.
TEST(CheckpointCheckTest, TheNamesOfTheModelAreThoseOfTheServingStacks) {
  int experts = 0;
  for (const TensorSpec& spec : TinyTensors(TensorDtype::kBf16)) {
    EXPECT_FALSE(absl::StrContains(spec.name, "gate_up_proj")) << "silently skipped by vLLM";
    experts += absl::StrContains(spec.name, ".mlp.experts.");
  }
  EXPECT_EQ(experts, 2 * 4 * 3);
}

}  // namespace
}  // namespace switchyard

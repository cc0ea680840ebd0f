// checkpoints: the verbs, against a fake coordinator and folders here.
#include <fcntl.h>
#include <sys/file.h>

#include <filesystem>

#include "client/checkpoint_testing.h"
#include "client/cli_testing.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

constexpr char kName[] = "projects/default/jobs/j1/checkpoints/step-6";
constexpr char kShard1[] = "model-00001-of-00002.safetensors";

class CheckpointsTest : public CliTest {
 protected:
  void SetUp() override {
    CliTest::SetUp();
    fake_.files = TinyCheckpoint();
    v1::Checkpoint& checkpoint = *fake_.list.add_checkpoints();
    checkpoint.set_name(kName);
    checkpoint.set_step(6);
    checkpoint.set_loss(2.5);
    checkpoint.set_size_bytes(42000000);
    checkpoint.set_path("/artifacts/default/j1/checkpoints/step-6");
  }
  std::string Folder(const std::string& name) const { return tree_.path() + "/" + name; }
  // How often the file was asked for, and from where.
  std::vector<std::string> Asked(const std::string& file) const {
    std::vector<std::string> out;
    for (const std::string& text : fake_.asked) {
      if (absl::StrContains(text, file + "@")) out.push_back(text.substr(text.find('@') + 1));
    }
    return out;
  }

  FakeCheckpointService& fake_ = service_.checkpoints;
  TempTree tree_;
};

TEST_F(CheckpointsTest, ListsWithAndWithoutTheVerb) {
  fake_.list.mutable_checkpoints(0)->set_final(true);
  fake_.list.mutable_checkpoints(0)->set_pinned(true);
  for (const std::vector<std::string>& words : std::vector<std::vector<std::string>>{
           {"checkpoints", "j1"}, {"checkpoints", "list", "j1"}}) {
    EXPECT_EQ(Run(words), 0);
    EXPECT_THAT(out(), AllOf(HasSubstr("6 (final, pinned)"), HasSubstr("42.0 MB"),
                             HasSubstr("/artifacts/default/j1/checkpoints/step-6")));
  }
  EXPECT_EQ(Run({"checkpoints", "j1", "-o", "json"}), 0);
  EXPECT_THAT(out(), HasSubstr("\"step\": \"6\""));
}

TEST_F(CheckpointsTest, MistypedVerbsAndMissingWordsExitTwo) {
  EXPECT_EQ(Run({"checkpoints", "verfy", "j1@6"}), 2);
  EXPECT_THAT(err(), HasSubstr("did you mean verify?"));
  EXPECT_EQ(Run({"checkpoints", "verify"}), 2);
  EXPECT_EQ(Run({"checkpoints", "download", "j1@6"}), 2);
  EXPECT_EQ(Run({"checkpoints", "pin", "j1"}), 2);
  EXPECT_THAT(err(), HasSubstr("JOB@STEP"));
  EXPECT_EQ(Run({"checkpoints", "pin", "j1@six"}), 2);
  EXPECT_EQ(Run({"checkpoints", "export", "./x", "./y", "--dtype", "bf17"}), 2);
  EXPECT_THAT(err(), HasSubstr("did you mean bf16?"));
  EXPECT_EQ(Run({"checkpoints", "verify", "./no-such-folder"}), 3);
}

TEST_F(CheckpointsTest, PinsUnpinsAndDeletes) {
  EXPECT_EQ(Run({"checkpoints", "pin", "j1@6"}), 0);
  EXPECT_EQ(Run({"checkpoints", "unpin", "j1@6", "--project", "p"}), 0);
  EXPECT_EQ(Run({"checkpoints", "delete", kName}), 0);
  EXPECT_EQ(Run({"checkpoints", "delete", "j1@6", "--final"}), 0);
  EXPECT_THAT(
      fake_.asked,
      ElementsAre(absl::StrCat("pin ", kName), "unpin projects/p/jobs/j1/checkpoints/step-6",
                  absl::StrCat("delete ", kName), absl::StrCat("delete ", kName, " final")));
}

// --- download -----------------------------------------------------------------------------------

TEST_F(CheckpointsTest, DownloadsTheNewestWhole) {
  ASSERT_EQ(Run({"checkpoints", "download", "j1", Folder("here")}), 0) << err();
  EXPECT_EQ(TempTree::Get(Folder("here")), fake_.files);
  EXPECT_FALSE(std::filesystem::exists(Folder("here.partial")));
  EXPECT_EQ(Run({"checkpoints", "download", "j1", Folder("here")}), 5);
  EXPECT_THAT(err(), HasSubstr("is there already"));
}

TEST_F(CheckpointsTest, GoesOnWhereAStreamBroke) {
  using Mishap = FakeCheckpointService::Mishap;
  fake_.mishaps = {
      {0, Mishap::kBreak}, {2, Mishap::kBreak}, {1, Mishap::kFlipBit}, {3, Mishap::kEndEarly}};
  ASSERT_EQ(Run({"checkpoints", "download", "j1@6", Folder("here"), "--parallel", "1",
                 "--chunk-bytes", "100"}),
            0)
      << err();
  EXPECT_EQ(TempTree::Get(Folder("here")), fake_.files);
  // The manifest comes first, and took all the mishaps.
  EXPECT_THAT(Asked("manifest.json"), ElementsAre("0", "0", "200", "300", "600"));
}

TEST_F(CheckpointsTest, ALaterCallGoesOnWithWhatIsThere) {
  Bytes partial = fake_.files;
  const std::string whole = partial[kShard1];
  partial[kShard1].resize(1000);
  partial.erase("tokenizer.json");
  partial["left-by-another-program"] = "x";
  tree_.Put("here.partial", partial);
  ASSERT_EQ(Run({"checkpoints", "download", "j1@6", Folder("here"), "-o", "json"}), 0) << err();
  EXPECT_EQ(TempTree::Get(Folder("here")), fake_.files);
  EXPECT_THAT(fake_.asked,
              testing::UnorderedElementsAre(absl::StrCat("download ", kShard1, "@1000"),
                                            "download tokenizer.json@0"));
  EXPECT_THAT(out(), HasSubstr(absl::StrCat("\"bytes_received\": ", whole.size() - 1000 + 2)));
}

TEST_F(CheckpointsTest, ASpoiledPartIsReadAgainWhole) {
  Bytes partial = fake_.files;
  partial[kShard1].resize(1000);
  partial[kShard1][500] ^= 1;
  partial["tokenizer.json"] += "and more than there should be";
  tree_.Put("here.partial", partial);
  ASSERT_EQ(Run({"checkpoints", "download", "j1@6", Folder("here")}), 0) << err();
  EXPECT_EQ(TempTree::Get(Folder("here")), fake_.files);
  EXPECT_THAT(Asked(kShard1), ElementsAre("1000", "0"));
}

TEST_F(CheckpointsTest, WhatIsThereOfAnotherCheckpointIsThrownAway) {
  Bytes other = TinyCheckpoint(TensorDtype::kBf16);
  tree_.Put("here.partial", other);
  ASSERT_EQ(Run({"checkpoints", "download", "j1@6", Folder("here")}), 0) << err();
  EXPECT_EQ(TempTree::Get(Folder("here")), fake_.files);
}

TEST_F(CheckpointsTest, TwoDownloadsIntoOneFolderAreRefused) {
  std::filesystem::create_directory(Folder("here.partial"));
  const UniqueFd lock(::open(Folder("here.partial").c_str(), O_RDONLY | O_DIRECTORY));
  ASSERT_EQ(::flock(lock.get(), LOCK_EX), 0);
  EXPECT_EQ(Run({"checkpoints", "download", "j1@6", Folder("here")}), 5);
  EXPECT_THAT(err(), HasSubstr("another download"));
}

TEST_F(CheckpointsTest, NamesThatLeaveTheFolderAreRefused) {
  for (const char* name : {"../evil", "/etc/evil", "a//b", "a/./b", ""}) {
    fake_.files = TinyCheckpoint();
    fake_.files[name] = "x";
    EXPECT_EQ(Run({"checkpoints", "download", "j1@6", Folder("here")}), 7) << name;
    EXPECT_FALSE(std::filesystem::exists(Folder("here.partial")));
  }
}

// --- verify -------------------------------------------------------------------------------------

TEST_F(CheckpointsTest, VerifiesAFolderAndThroughTheCoordinator) {
  const std::string folder = tree_.Put("step-6", fake_.files);
  for (const std::string& what : {folder, std::string("j1@6"), std::string("j1")}) {
    EXPECT_EQ(Run({"checkpoints", "verify", what}), 0) << err();
    EXPECT_THAT(out(), HasSubstr("is whole: 8 files"));
  }
  fake_.files[kShard1].back() ^= 1;
  const std::string damaged = tree_.Put("damaged", fake_.files);
  for (const std::string& what : {damaged, std::string("j1@6")}) {
    EXPECT_EQ(Run({"checkpoints", "verify", what}), 7);
    EXPECT_THAT(out(), AllOf(HasSubstr(kShard1), HasSubstr("has crc32c")));
    EXPECT_EQ(Run({"checkpoints", "verify", what, "-o", "json"}), 7);
    const auto json = ParseJson(out(), "out");
    ASSERT_THAT(json, IsOk());
    EXPECT_FALSE(*JsonGet<bool>(*json, "whole"));
    EXPECT_EQ((*JsonFind(*json, "faults"))[0]["file"], kShard1);
  }
}

// --- export -------------------------------------------------------------------------------------

TEST_F(CheckpointsTest, ExportsEveryTensorInTheWantedDtype) {
  const std::string folder = tree_.Put("step-6", fake_.files);
  struct Row {
    const char* flag;
    TensorDtype dtype;
    const char* config;
  };
  for (const Row& row :
       {Row{"bf16", TensorDtype::kBf16, "bfloat16"}, Row{"fp16", TensorDtype::kF16, "float16"},
        Row{"fp32", TensorDtype::kF32, "float32"}}) {
    const std::string to = Folder(row.flag);
    ASSERT_EQ(Run({"checkpoints", "export", folder, to, "--dtype", row.flag}), 0) << err();
    const Bytes files = TempTree::Get(to);
    EXPECT_THAT(files, Not(Contains(testing::Key(HasSubstr("switchyard/")))));
    EXPECT_EQ(files.at("tokenizer.json"), "{}");
    EXPECT_THAT(files.at("config.json"),
                HasSubstr(absl::StrCat("\"torch_dtype\": \"", row.config, "\"")));
    int64_t total = 0;
    std::vector<std::string> names;
    for (const char* shard : {kShard1, "model-00002-of-00002.safetensors"}) {
      const auto file = SafetensorsFile::Open(to + "/" + shard);
      ASSERT_THAT(file, IsOk());
      for (const TensorInfo& tensor : (*file)->header().tensors) {
        EXPECT_EQ(tensor.dtype, row.dtype) << tensor.name;
        names.push_back(tensor.name);
        total += static_cast<int64_t>(tensor.end - tensor.begin);
        for (size_t i = 0; i < static_cast<size_t>(tensor.shape[0]); ++i) {
          std::string wanted;
          const float value = TinyValue(tensor.name, i);
          ConvertElements({reinterpret_cast<const char*>(&value), 4}, TensorDtype::kF32, row.dtype,
                          wanted);
          EXPECT_EQ(ElementAt((*file)->Bytes(tensor), row.dtype, i),
                    ElementAt(wanted, row.dtype, 0));
        }
      }
    }
    EXPECT_THAT(names, SizeIs(TinyTensors(TensorDtype::kF32).size()));
    const Json index = *ParseJson(files.at("model.safetensors.index.json"), "index");
    EXPECT_EQ(index["metadata"]["total_size"], total);
    EXPECT_EQ(index["metadata"]["total_parameters"], 7) << "what we do not know stays";
    EXPECT_EQ(Run({"checkpoints", "verify", to}), 0) << out();
    EXPECT_EQ(Run({"checkpoints", "export", folder, to, "--dtype", row.flag}), 5);
  }
}

TEST_F(CheckpointsTest, ExportRefusesValuesThatTheDtypeCannotHold) {
  Bytes files = {{"config.json", kTinyConfig}};
  files["model.safetensors"] =
      MakeTensors(TinyTensors(TensorDtype::kF32), [](const std::string& name, size_t i) {
        return name == "model.norm.weight" && i == 3 ? 7e4f : 1.0f;
      });
  const std::string folder = tree_.Put("large", files);
  EXPECT_EQ(Run({"checkpoints", "export", folder, Folder("out"), "--dtype", "fp16"}), 5);
  EXPECT_THAT(err(), AllOf(HasSubstr("model.norm.weight"), HasSubstr("F16")));
  EXPECT_FALSE(std::filesystem::exists(Folder("out")));
  EXPECT_FALSE(std::filesystem::exists(Folder("out.exporting")));
  EXPECT_EQ(Run({"checkpoints", "export", folder, Folder("out"), "--dtype", "bf16"}), 0) << err();
}

TEST_F(CheckpointsTest, ExportKeepsWhatLoadersWantInFp32) {
  Bytes files = {{"config.json", R"({"model_type": "other", "dtype": "float32"})"}};
  files["model.safetensors"] =
      MakeTensors({{"model.layers.0.mlp.gate.e_score_correction_bias", TensorDtype::kF32, {4}},
                   {"model.layers.0.mlp.gate.weight", TensorDtype::kF32, {4}},
                   {"counts", TensorDtype::kI64, {2}}},
                  TinyValue);
  const std::string folder = tree_.Put("mixed", files);
  ASSERT_EQ(Run({"checkpoints", "export", folder, Folder("out"), "--dtype", "bf16"}), 0) << err();
  const auto file = SafetensorsFile::Open(Folder("out/model.safetensors"));
  ASSERT_THAT(file, IsOk());
  EXPECT_EQ((*file)->Find("model.layers.0.mlp.gate.e_score_correction_bias")->dtype,
            TensorDtype::kF32);
  EXPECT_EQ((*file)->Find("model.layers.0.mlp.gate.weight")->dtype, TensorDtype::kBf16);
  EXPECT_EQ((*file)->Find("counts")->dtype, TensorDtype::kI64);
}

// --- diff ---------------------------------------------------------------------------------------

TEST_F(CheckpointsTest, DiffTellsWhatDiffersAndByHowMuch) {
  const std::string a = tree_.Put("a", fake_.files);
  EXPECT_EQ(Run({"checkpoints", "diff", a, a}), 0);
  EXPECT_THAT(out(), HasSubstr(" 0 of other values"));
  EXPECT_THAT(out(), Not(HasSubstr("DIFFERS")));

  Bytes files = {{"config.json", kTinyConfig}};
  std::vector<TensorSpec> specs = TinyTensors(TensorDtype::kF32);
  for (TensorSpec& spec : specs) {
    if (spec.name == "model.layers.0.input_layernorm.weight") spec.dtype = TensorDtype::kBf16;
    if (spec.name == "model.layers.1.input_layernorm.weight") spec.shape = {2, 4};
    if (spec.name == "lm_head.weight") spec.name = "another.weight";
  }
  files["model.safetensors"] = MakeTensors(specs, [](const std::string& name, size_t i) {
    return TinyValue(name, i) + (name == "model.norm.weight" && i == 2 ? 0.5f : 0.0f);
  });
  const std::string b = tree_.Put("b", files);
  EXPECT_EQ(Run({"checkpoints", "diff", a, b, "-o", "json"}), 8);
  const Json json = *ParseJson(out(), "out");
  std::map<std::string, Json> tensors;
  for (const Json& tensor : json["tensors"]) tensors[tensor["name"]] = tensor;
  EXPECT_THAT(tensors, SizeIs(5));
  EXPECT_EQ(tensors["model.norm.weight"]["status"], "values");
  EXPECT_NEAR(tensors["model.norm.weight"]["max_abs"].get<double>(), 0.5, 1e-6);
  double largest = 0, squares = 0;
  for (size_t i = 0; i < 8; ++i) {
    const double x = TinyValue("model.norm.weight", i);
    largest = std::max(largest, x);
    squares += x * x;
  }
  EXPECT_NEAR(tensors["model.norm.weight"]["max_relative"].get<double>(), 0.5 / largest, 1e-5);
  EXPECT_NEAR(tensors["model.norm.weight"]["norm_relative"].get<double>(), 0.5 / std::sqrt(squares),
              1e-5);
  EXPECT_EQ(tensors["model.layers.0.input_layernorm.weight"]["status"], "dtype");
  EXPECT_EQ(tensors["model.layers.1.input_layernorm.weight"]["status"], "shape");
  EXPECT_EQ(tensors["lm_head.weight"]["status"], "missing");
  EXPECT_EQ(tensors["another.weight"]["status"], "added");
  EXPECT_EQ(json["summary"]["same"], false);
  EXPECT_EQ(Run({"checkpoints", "diff", a, b}), 8);
  EXPECT_THAT(out(), HasSubstr("1 of other values, 1 of another dtype, 1 of another shape, 1 "
                               "missing, 1 added"));
  EXPECT_EQ(Run({"checkpoints", "diff", a, a, "--all"}), 0);
  EXPECT_THAT(out(), HasSubstr("model.norm.weight"));
}

TEST_F(CheckpointsTest, DiffSeesValuesThatAreNotFinite) {
  const auto model = [](float value) {
    Bytes files = {{"config.json", "{}"}};
    files["model.safetensors"] =
        MakeTensors({{"w", TensorDtype::kF32, {2}}},
                    [=](const std::string&, size_t i) { return i == 0 ? value : 1.0f; });
    return files;
  };
  const std::string nan = tree_.Put("nan", model(NAN)), one = tree_.Put("one", model(1));
  EXPECT_EQ(Run({"checkpoints", "diff", nan, nan}), 0);
  EXPECT_EQ(Run({"checkpoints", "diff", one, nan, "-o", "json"}), 8);
  EXPECT_THAT(out(), HasSubstr("\"max_abs\": \"Infinity\""));
}

TEST_F(CheckpointsTest, DiffOfWhatIsElsewhereSaysHowToGetIt) {
  EXPECT_EQ(Run({"checkpoints", "diff", "j1@6", "j1@6"}), 5);
  EXPECT_THAT(err(), HasSubstr("switchyard checkpoints download j1@6 FOLDER"));
}

}  // namespace
}  // namespace switchyard

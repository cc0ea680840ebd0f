#include "worker/trainer/checkpoint/side_files.h"

#include "worker/trainer/checkpoint/test_model.h"

namespace switchyard {
namespace {

using ::testing::ElementsAre;

std::string Patched(const std::string& config, TensorDtype dtype) {
  const auto patched = PatchConfigDtype(config, dtype);
  EXPECT_THAT(patched, IsOk());
  return patched.value_or("");
}

TEST(PatchConfigDtypeTest, ChangesTheValueAndNoOtherByte) {
  const std::string v4 =
      "{\n  \"a\":[1,{\"torch_dtype\": \"x\"}],\r\n\t\"torch_dtype\" :  \"float32\" ,\n"
      "  \"rope_theta\": 1e-06, \"eps\" : Infinity , \"s\": \"}, \\\"dtype\\\": \\\\\"\n}\n";
  std::string expected = v4;
  expected.replace(expected.find("\"float32\""), 9, "\"bfloat16\"");
  EXPECT_EQ(Patched(v4, TensorDtype::kBf16), expected);
  EXPECT_EQ(Patched(v4, TensorDtype::kF32), v4);
}

TEST(PatchConfigDtypeTest, ChangesBothSpellingsWhereBothAreThere) {
  EXPECT_EQ(Patched(R"({"dtype":"float16","x":-1.5e3,"torch_dtype":"float16"})", TensorDtype::kF32),
            R"({"dtype":"float32","x":-1.5e3,"torch_dtype":"float32"})");
}

TEST(PatchConfigDtypeTest, AddsNothing) {
  for (const char* config : {"{}", "{ }", R"({"dtype": null})", R"({"text_config":{"dtype":"x"}})",
                             R"({"n": null, "t": true})"}) {
    EXPECT_EQ(Patched(config, TensorDtype::kBf16), config);
  }
}

TEST(PatchConfigDtypeTest, RefusesWhatIsNoObject) {
  EXPECT_THAT(PatchConfigDtype("[1]", TensorDtype::kF32),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(PatchConfigDtype(R"({"dtype": )", TensorDtype::kF32),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(ListSideFilesTest, ListsWhatServersReadAndNothingElse) {
  const std::string folder = TestFolder("side_files");
  for (const char* sub : {"/additional_chat_templates", "/switchyard", "/tokenizer.json.d"}) {
    ASSERT_THAT(MakeFolders(folder + sub), IsOk());
  }
  for (const char* name :
       {"tokenizer.json", "vocab.json", "config.json", "README.md", "model.safetensors",
        "model.safetensors.index.json", "switchyard/state.json", "LICENSE", "modeling_x.py",
        "evil.py", "additional_chat_templates/tool.jinja", "additional_chat_templates/x.txt",
        "chat_template.jinja", "generation_config.json", "training_args.bin"}) {
    ASSERT_THAT(ReplaceFile(absl::StrCat(folder, "/", name), "x"), IsOk());
  }
  const auto names = ListSideFiles(folder);
  ASSERT_THAT(names, IsOk());
  EXPECT_THAT(*names, ElementsAre("LICENSE", "additional_chat_templates/tool.jinja",
                                  "chat_template.jinja", "generation_config.json", "modeling_x.py",
                                  "tokenizer.json", "vocab.json"));
}

}  // namespace
}  // namespace switchyard

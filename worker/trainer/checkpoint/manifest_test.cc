#include "worker/trainer/checkpoint/manifest.h"

#include <cmath>

#include "absl/strings/str_replace.h"
#include "worker/trainer/checkpoint/test_model.h"

namespace switchyard {
namespace {

using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

Manifest SmallManifest() {
  Manifest manifest;
  manifest.job = "projects/p/jobs/j";
  manifest.job_uid = "uid";
  manifest.attempt = 2;
  manifest.step = 10;
  manifest.final = true;
  manifest.world_size = 4;
  manifest.ep_size = 2;
  manifest.loss = 1.25;
  manifest.files = {{"config.json", 3, 0x0000beef}, {"switchyard/state.json", 5, 0xffffffff}};
  return manifest;
}

TEST(ManifestTest, ReadsBackWhatWasWritten) {
  const auto read = ParseManifest(DumpManifest(SmallManifest()), "m");
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(read->job, "projects/p/jobs/j");
  EXPECT_EQ(read->job_uid, "uid");
  EXPECT_EQ(read->attempt, 2);
  EXPECT_EQ(read->step, 10);
  EXPECT_TRUE(read->final);
  EXPECT_EQ(read->world_size, 4);
  EXPECT_EQ(read->ep_size, 2);
  EXPECT_EQ(read->loss, 1.25);
  EXPECT_FALSE(read->validation_loss.has_value());
  ASSERT_EQ(read->files.size(), 2u);
  EXPECT_EQ(read->files[0].name, "config.json");
  EXPECT_EQ(read->files[0].size, 3);
  EXPECT_EQ(read->files[0].crc32c, 0xbeefu);
  EXPECT_EQ(read->files[1].crc32c, 0xffffffffu);
}

TEST(ManifestTest, WritesTheFormOfTheContract) {
  const std::string text = DumpManifest(SmallManifest());
  EXPECT_THAT(text, HasSubstr(R"("crc32c": "0000beef")"));
  EXPECT_THAT(text, HasSubstr(R"("validation_loss": null)"));
  Manifest nan = SmallManifest();
  nan.loss = std::nan("");
  EXPECT_THAT(DumpManifest(nan), HasSubstr(R"("loss": null)"));
}

TEST(ManifestTest, RefusesWhatItDidNotWrite) {
  const std::string text = DumpManifest(SmallManifest());
  const struct {
    const char* from;
    const char* to;
    const char* message;
  } cases[] = {
      {"\"version\": 1", "\"version\": 2", "version 2"},
      {"\"step\": 10", "\"step\": \"ten\"", "step"},
      {"\"job_uid\"", "\"uid\"", "job_uid"},
      {"\"files\"", "\"fils\"", "files"},
      {"config.json", "../config.json", "not a file entry"},
      {"config.json", "/config.json", "not a file entry"},
      {"config.json", "switchyard/manifest.json", "not a file entry"},
      {"\"size\": 3", "\"size\": -3", "not a file entry"},
      {"0000beef", "beef", "not a file entry"},
      {"0000beef", "0000beeg", "not a file entry"},
      {"config.json", "switchyard/state.json", "sorted"},
      {"config.json", "zzz", "sorted"},
  };
  for (const auto& c : cases) {
    const std::string changed = absl::StrReplaceAll(text, {{c.from, c.to}});
    ASSERT_NE(changed, text) << c.from;
    EXPECT_THAT(ParseManifest(changed, "m"), StatusIs(kInvalid, HasSubstr(c.message))) << c.to;
  }
  EXPECT_THAT(ParseManifest("[]", "m"), StatusIs(kInvalid));
  EXPECT_THAT(ParseManifest(text.substr(0, text.size() / 2), "m"), StatusIs(kInvalid));
}

TEST(ManifestTest, SizesMustFit) {
  const std::string folder = TestFolder("sizes");
  ASSERT_THAT(MakeFolders(folder + "/switchyard"), IsOk());
  ASSERT_THAT(ReplaceFile(folder + "/config.json", "abc"), IsOk());
  EXPECT_THAT(CheckFileSizes(folder, SmallManifest()),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("switchyard/state.json")));
  ASSERT_THAT(ReplaceFile(folder + "/switchyard/state.json", "abcd"), IsOk());
  EXPECT_THAT(CheckFileSizes(folder, SmallManifest()),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("4 bytes, the manifest states 5")));
  ASSERT_THAT(ReplaceFile(folder + "/switchyard/state.json", "abcde"), IsOk());
  EXPECT_THAT(CheckFileSizes(folder, SmallManifest()), IsOk());
}

TEST(ManifestTest, ChecksumOfAFileIsCrc32c) {
  const std::string path = TestFolder("crc") + "/f";
  ASSERT_THAT(ReplaceFile(path, "123456789"), IsOk());
  const auto crc = FileCrc32c(path);
  ASSERT_THAT(crc, IsOk());
  EXPECT_EQ(*crc, 0xe3069283u);  // the check value of CRC-32C
}

TEST(TrainStateTest, ReadsBackWhatWasWritten) {
  TrainState state;
  state.step = 7;
  state.seed = 0xffffffff;
  state.dataset_fingerprint = "abc";
  state.global_batch_size = 16;
  state.tokens_seen = int64_t{1} << 60;
  state.skipped_total = 2;
  state.nonfinite_in_a_row = 1;
  state.lr_schedule["decay"] = "LR_DECAY_COSINE";
  state.torch_version = "2.11.0";
  const auto read = ParseTrainState(DumpTrainState(state), "s");
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(DumpTrainState(*read), DumpTrainState(state));
  EXPECT_EQ(read->tokens_seen, state.tokens_seen);
  EXPECT_EQ(read->seed, 0xffffffffu);
  EXPECT_EQ(read->lr_schedule["decay"], "LR_DECAY_COSINE");
}

TEST(TrainStateTest, NamesMissingFields) {
  const std::string text = DumpTrainState(TrainState());
  for (const char* key : {"step", "seed", "dataset_fingerprint", "global_batch_size", "tokens_seen",
                          "skipped_total", "nonfinite_in_a_row", "torch_version"}) {
    const std::string changed =
        absl::StrReplaceAll(text, {{absl::StrCat("\"", key, "\""), "\"other\""}});
    EXPECT_THAT(ParseTrainState(changed, "s"), StatusIs(kInvalid, HasSubstr(key))) << key;
  }
}

}  // namespace
}  // namespace switchyard

#include "worker/trainer/data/token_file.h"

#include <stdlib.h>

#include <string>

#include "base/fd.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string TempPath(const std::string& name) { return testing::TempDir() + "/" + name; }

// Two rows: documents {5, 6, 7} and {8, 9} in the first, {1, 2} in the second.
TokenData SmallData() {
  TokenData data;
  data.tokens = {5, 6, 7, 8, 9, 1, 2};
  data.supervised = {0, 1, 0, 0, 1, 0, 1};
  data.documents = {0, 3, 5};
  data.rows = {0, 2};
  data.row_length = 6;
  data.fingerprint = "abc123";
  return data;
}

std::string WriteSmall(const std::string& name) {
  const std::string path = TempPath(name);
  EXPECT_THAT(WriteTokenFile(path, SmallData()), IsOk());
  return path;
}

void Overwrite(const std::string& path, const std::string& bytes) {
  ASSERT_THAT(ReplaceFile(path, bytes), IsOk());
}

TEST(TokenFileTest, ReadsBackWhatWasWritten) {
  const std::string path = WriteSmall("round_trip.tok");
  const auto file = TokenFile::Open(path, /*verify=*/true);
  ASSERT_THAT(file, IsOk());
  EXPECT_THAT((*file)->tokens(), ElementsAre(5, 6, 7, 8, 9, 1, 2));
  EXPECT_THAT((*file)->supervised(), ElementsAre(0, 1, 0, 0, 1, 0, 1));
  EXPECT_THAT((*file)->documents(), ElementsAre(0, 3, 5, 7));
  EXPECT_THAT((*file)->rows(), ElementsAre(0, 2, 3));
  EXPECT_EQ((*file)->num_rows(), 2);
  EXPECT_EQ((*file)->row_length(), 6);
  EXPECT_EQ((*file)->vocab_size(), 10);
  EXPECT_EQ((*file)->supervised_tokens(), 3);
  EXPECT_EQ((*file)->fingerprint(), "abc123");
}

TEST(TokenFileTest, AlignsEverySection) {
  const auto bytes = ReadFile(WriteSmall("aligned.tok"));
  ASSERT_THAT(bytes, IsOk());
  EXPECT_EQ(bytes->substr(0, 8), "SYTOKEN1");
  const auto file = TokenFile::Open(TempPath("aligned.tok"), true);
  ASSERT_THAT(file, IsOk());
  EXPECT_EQ(reinterpret_cast<uintptr_t>((*file)->tokens().data()) % 64, 0u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>((*file)->supervised().data()) % 64, 0u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>((*file)->documents().data()) % 64, 0u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>((*file)->rows().data()) % 64, 0u);
}

TEST(TokenFileTest, HoldsNoRows) {
  TokenData data;
  data.row_length = 8;
  const std::string path = TempPath("empty.tok");
  ASSERT_THAT(WriteTokenFile(path, data), IsOk());
  const auto file = TokenFile::Open(path, true);
  ASSERT_THAT(file, IsOk());
  EXPECT_EQ((*file)->num_rows(), 0);
  EXPECT_EQ((*file)->vocab_size(), 0);
}

TEST(TokenFileTest, WriterRefusesContradictions) {
  const std::string path = TempPath("bad.tok");
  TokenData data = SmallData();
  data.supervised.pop_back();
  EXPECT_THAT(WriteTokenFile(path, data),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("7 tokens but 6")));
  data = SmallData();
  data.row_length = 4;
  EXPECT_THAT(WriteTokenFile(path, data),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("row 0 has 5 tokens, row_length is 4")));
  data = SmallData();
  data.tokens[3] = -1;
  EXPECT_THAT(WriteTokenFile(path, data),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("token 3 has id -1")));
  data = SmallData();
  data.documents = {0, 5, 3};
  EXPECT_THAT(WriteTokenFile(path, data),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("documents")));
  data = SmallData();
  data.supervised[5] = 1;
  EXPECT_THAT(WriteTokenFile(path, data),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("first token of document 2")));
  EXPECT_THAT(TokenFile::Open(path, false), StatusIs(absl::StatusCode::kNotFound));
}

TEST(TokenFileTest, RefusesEveryTruncation) {
  const std::string path = WriteSmall("truncated.tok");
  const auto bytes = ReadFile(path);
  ASSERT_THAT(bytes, IsOk());
  for (size_t size = 0; size < bytes->size(); ++size) {
    Overwrite(path, bytes->substr(0, size));
    ASSERT_THAT(TokenFile::Open(path, false), StatusIs(absl::StatusCode::kInvalidArgument))
        << size << " of " << bytes->size() << " bytes";
  }
}

TEST(TokenFileTest, VerifyFindsEveryFlippedByteOfTheSections) {
  const std::string path = WriteSmall("flipped.tok");
  const auto bytes = ReadFile(path);
  ASSERT_THAT(bytes, IsOk());
  uint64_t header_bytes = 0;
  memcpy(&header_bytes, bytes->data() + 8, 8);
  for (size_t at = 16 + header_bytes; at < bytes->size(); ++at) {
    std::string changed = *bytes;
    changed[at] ^= 1;
    Overwrite(path, changed);
    ASSERT_FALSE(TokenFile::Open(path, true).ok()) << "byte " << at;
  }
}

TEST(TokenFileTest, ReportsAWrongChecksumAsDataLoss) {
  const std::string path = WriteSmall("checksum.tok");
  auto bytes = ReadFile(path);
  ASSERT_THAT(bytes, IsOk());
  uint64_t header_bytes = 0;
  memcpy(&header_bytes, bytes->data() + 8, 8);
  (*bytes)[16 + header_bytes] ^= 1;  // the first token
  Overwrite(path, *bytes);
  EXPECT_THAT(TokenFile::Open(path, false), IsOk());
  EXPECT_THAT(TokenFile::Open(path, true),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("the header states")));
}

TEST(TokenFileTest, RefusesOtherFilesAndVersions) {
  const std::string path = WriteSmall("other.tok");
  auto bytes = ReadFile(path);
  ASSERT_THAT(bytes, IsOk());
  std::string changed = *bytes;
  changed.replace(changed.find("\"version\":1"), 11, "\"version\":2");
  Overwrite(path, changed);
  EXPECT_THAT(TokenFile::Open(path, false),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("version 2")));
  changed = *bytes;
  changed.replace(changed.find("\"num_rows\""), 10, "\"num_xxxx\"");
  Overwrite(path, changed);
  EXPECT_THAT(TokenFile::Open(path, false),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("num_rows")));
  changed = *bytes;
  changed[0] = 'X';
  Overwrite(path, changed);
  EXPECT_THAT(TokenFile::Open(path, false),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not a token file")));
}

}  // namespace
}  // namespace switchyard

#include "worker/trainer/checkpoint/safetensors.h"

#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/fd.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

// A whole file: the header's length, the header as given, `data_bytes` bytes of data.
std::string FileOf(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header +
         std::string(data_bytes, '\1');
}

absl::StatusOr<SafetensorsHeader> Parse(const std::string& file) {
  return ParseSafetensorsHeader(file, file.size(), "f");
}

TEST(SafetensorsTest, ReadsNamesDtypesShapesAndMetadata) {
  const auto header = Parse(FileOf(
      R"({"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},"__metadata__":{"format":"pt"},)"
      R"("a":{"shape":[],"dtype":"F32","data_offsets":[0,4]}}  )",
      16));
  ASSERT_THAT(header, IsOk());
  ASSERT_EQ(header->tensors.size(), 2u);
  EXPECT_EQ(header->tensors[0].name, "a");
  EXPECT_THAT(header->tensors[0].shape, ElementsAre());
  EXPECT_EQ(header->tensors[1].name, "b");
  EXPECT_EQ(header->tensors[1].dtype, TensorDtype::kBf16);
  EXPECT_THAT(header->tensors[1].shape, ElementsAre(2, 3));
  EXPECT_EQ(header->tensors[1].begin, 4u);
  EXPECT_THAT(header->metadata, ElementsAre(Pair("format", "pt")));
}

TEST(SafetensorsTest, ReadsAFileWithoutTensors) {
  const auto header = Parse(FileOf("{}", 0));
  ASSERT_THAT(header, IsOk());
  EXPECT_TRUE(header->tensors.empty());
}

TEST(SafetensorsTest, ReadsEmptyTensorsBetweenOthers) {
  EXPECT_THAT(Parse(FileOf(R"({"b":{"dtype":"I8","shape":[1],"data_offsets":[0,1]},)"
                           R"("a":{"dtype":"F32","shape":[2,0],"data_offsets":[1,1]},)"
                           R"("c":{"dtype":"I8","shape":[1],"data_offsets":[1,2]}})",
                           2)),
              IsOk());
}

struct BadHeader {
  const char* error;
  const char* detail;
  std::string header;
  size_t data_bytes;
};

TEST(SafetensorsTest, RefusesBadHeadersUnderTheReferencesNames) {
  const std::string ok = R"("dtype":"F32","shape":[1],"data_offsets":[0,4])";
  const BadHeader cases[] = {
      {"InvalidHeader", "UTF-8", "{\"\xff\":{" + ok + "}}", 4},
      {"InvalidHeader", "UTF-8", "{\"\xed\xa0\x80\":{" + ok + "}}", 4},  // a surrogate
      {"InvalidHeader", "UTF-8", "{\"\xc0\xaf\":{" + ok + "}}", 4},      // not the shortest form
      {"InvalidHeader", "UTF-8", "{\"\xf4\x90\x80\x80\":{" + ok + "}}", 4},  // above U+10FFFF
      {"InvalidHeaderDeserialization", "start with", "", 0},
      {"InvalidHeaderDeserialization", "start with", " {}", 0},
      {"InvalidHeaderDeserialization", "start with", "[]", 0},
      {"InvalidHeaderDeserialization", "invalid JSON", "{", 0},
      {"InvalidHeaderDeserialization", "invalid JSON", "{} x", 0},
      {"InvalidHeaderDeserialization", "invalid JSON", "{\"a\":{" + ok + "},}", 4},
      {"InvalidHeaderDeserialization", "an array", R"({"a":[]})", 0},
      {"InvalidHeaderDeserialization", "null", R"({"a":null})", 0},
      {"InvalidHeaderDeserialization", "missing field dtype",
       R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4},
      {"InvalidHeaderDeserialization", "missing field shape",
       R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4},
      {"InvalidHeaderDeserialization", "missing field data_offsets",
       R"({"a":{"dtype":"F32","shape":[1]}})", 4},
      {"InvalidHeaderDeserialization", "unknown dtype 'F33'",
       R"({"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}})", 4},
      {"InvalidHeaderDeserialization", "a number",
       R"({"a":{"dtype":7,"shape":[1],"data_offsets":[0,4]}})", 4},
      {"InvalidHeaderDeserialization", "negative number -1",
       R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4},
      {"InvalidHeaderDeserialization", "not an unsigned",
       R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4},
      {"InvalidHeaderDeserialization", "not an unsigned",
       R"({"a":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4]}})", 4},
      {"InvalidHeaderDeserialization", "an array",
       R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", 4},
      {"InvalidHeaderDeserialization", "two numbers",
       R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4},
      {"InvalidHeaderDeserialization", "two numbers",
       R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})", 4},
      {"InvalidHeaderDeserialization", "field 'color'", "{\"a\":{" + ok + R"(,"color":1}})", 4},
      {"InvalidHeaderDeserialization", "field 'dtype'", "{\"a\":{" + ok + R"(,"dtype":"F32"}})", 4},
      {"InvalidHeaderDeserialization", "duplicate name 'a'",
       "{\"a\":{" + ok + "},\"a\":{" + ok + "}}", 4},
      {"InvalidHeaderDeserialization", "duplicate name '__metadata__'",
       R"({"__metadata__":{},"__metadata__":{}})", 0},
      {"InvalidHeaderDeserialization", "NUL", R"({"a\u0000b":{)" + ok + "}}", 4},
      {"InvalidHeaderDeserialization", "a number", R"({"__metadata__":{"format":1}})", 0},
      {"InvalidHeaderDeserialization", "an object", R"({"__metadata__":{"format":{}}})", 0},
      // a hole, an overlap, an end before its begin, not starting at 0
      {"InvalidOffset", "'b' is at [5, 9), the one before ends at 4",
       "{\"a\":{" + ok + R"(},"b":{"dtype":"F32","shape":[1],"data_offsets":[5,9]}})", 9},
      {"InvalidOffset", "'b' is at [2, 6), the one before ends at 4",
       "{\"a\":{" + ok + R"(},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})", 6},
      {"InvalidOffset", "'b' is at [4, 0)",
       "{\"a\":{" + ok + R"(},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4},
      {"InvalidOffset", "'a' is at [4, 8)",
       R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8},
      {"ValidationOverflow", "'a'",
       R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}})", 4},
      {"ValidationOverflow", "number of bits",
       R"({"a":{"dtype":"F64","shape":[4611686018427387904],"data_offsets":[0,4]}})", 4},
      {"ValidationOverflow", "2^63",
       R"({"a":{"dtype":"F4","shape":[9223372036854775808],"data_offsets":[0,4]}})", 4},
      {"MisalignedSlice", "4 bits", R"({"a":{"dtype":"F4","shape":[1],"data_offsets":[0,1]}})", 1},
      {"TensorInvalidInfo", "has 8 bytes, data_offsets give 4",
       R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4},
      {"MetadataIncompleteBuffer", "end at byte 4 of the data, which has 3", "{\"a\":{" + ok + "}}",
       3},
      {"MetadataIncompleteBuffer", "end at byte 4 of the data, which has 5", "{\"a\":{" + ok + "}}",
       5},
      {"MetadataIncompleteBuffer", "end at byte 0", "{}", 1},
      {"MetadataIncompleteBuffer", "2305843009213693951",
       R"({"a":{"dtype":"U8","shape":[2305843009213693951],"data_offsets":[0,2305843009213693951]}})",
       8},
  };
  for (const BadHeader& bad : cases) {
    EXPECT_THAT(
        Parse(FileOf(bad.header, bad.data_bytes)),
        StatusIs(absl::StatusCode::kInvalidArgument,
                 AllOf(HasSubstr(absl::StrCat("f: ", bad.error, ": ")), HasSubstr(bad.detail))))
        << bad.header;
  }
}

TEST(SafetensorsTest, RefusesImpossibleLengths) {
  EXPECT_THAT(Parse(""), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("HeaderTooSmall")));
  EXPECT_THAT(Parse("1234567"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("HeaderTooSmall")));
  std::string file = FileOf("{}", 0);
  uint64_t length = 3;
  memcpy(file.data(), &length, 8);
  EXPECT_THAT(Parse(file),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("InvalidHeaderLength")));
  for (uint64_t large : {uint64_t{100'000'001}, ~uint64_t{0}, ~uint64_t{0} - 7}) {
    memcpy(file.data(), &large, 8);
    EXPECT_THAT(Parse(file),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("HeaderTooLarge")));
  }
}

TEST(SafetensorsTest, RefusesEveryTruncationOfAFile) {
  const auto layout =
      LayOutSafetensors({{"a", TensorDtype::kF32, {2}}, {"b", TensorDtype::kI8, {3}}});
  ASSERT_THAT(layout, IsOk());
  const std::string whole = layout->head + std::string(11, 'x');
  ASSERT_THAT(Parse(whole), IsOk());
  const std::string path = testing::TempDir() + "/truncated.safetensors";
  for (size_t size = 0; size < whole.size(); ++size) {
    ASSERT_THAT(ReplaceFile(path, whole.substr(0, size)), IsOk());
    ASSERT_THAT(SafetensorsFile::Open(path), StatusIs(absl::StatusCode::kInvalidArgument)) << size;
  }
}

// Whatever is accepted after random damage still has every tensor inside the file.
TEST(SafetensorsTest, DamagedHeadersAreRefusedOrStayInBounds) {
  const auto layout = LayOutSafetensors({{"a.weight", TensorDtype::kF32, {2, 3}},
                                         {"b", TensorDtype::kBf16, {4}},
                                         {"c", TensorDtype::kI8, {}}});
  ASSERT_THAT(layout, IsOk());
  const std::string whole = layout->head + std::string(33, 'x');
  std::mt19937 random(7);
  const std::string alphabet = "0123456789{}[]\":,\\ u-.eE\x80\xff";
  int accepted = 0;
  for (int round = 0; round < 50000; ++round) {
    std::string file = whole;
    for (uint32_t edits = random() % 3 + 1; edits > 0; --edits) {
      const size_t at = random() % layout->head.size();
      const char c = alphabet[random() % alphabet.size()];
      switch (random() % 3) {
        case 0:
          file[at] = c;
          break;
        case 1:
          file.insert(at, 1, c);
          break;
        default:
          file.erase(at, 1);
      }
    }
    const auto header = Parse(file);
    if (!header.ok()) {
      ASSERT_THAT(header, StatusIs(absl::StatusCode::kInvalidArgument));
      continue;
    }
    ++accepted;
    for (const TensorInfo& tensor : header->tensors) {
      ASSERT_LE(tensor.begin, tensor.end);
      ASSERT_LE(tensor.end, file.size() - header->data_offset);
    }
  }
  EXPECT_GT(accepted, 100);  // damaged names are names
}

TEST(SafetensorsTest, FindsTensorsAndTheirBytes) {
  const auto layout =
      LayOutSafetensors({{"x", TensorDtype::kI8, {3}}, {"y", TensorDtype::kI16, {1}}});
  ASSERT_THAT(layout, IsOk());
  const std::string path = testing::TempDir() + "/find.safetensors";
  ASSERT_THAT(ReplaceFile(path, layout->head + "YYxxx"), IsOk());
  const auto file = SafetensorsFile::Open(path);
  ASSERT_THAT(file, IsOk());
  ASSERT_NE((*file)->Find("x"), nullptr);
  EXPECT_EQ((*file)->Bytes(*(*file)->Find("x")), "xxx");
  EXPECT_EQ((*file)->Bytes(*(*file)->Find("y")), "YY");
  EXPECT_EQ((*file)->Find("z"), nullptr);
  EXPECT_THAT(SafetensorsFile::Open(path + ".absent"), StatusIs(absl::StatusCode::kNotFound));
}

TEST(SafetensorsTest, LaysOutByDtypeThenName) {
  const auto layout = LayOutSafetensors({{"b", TensorDtype::kBf16, {2}},
                                         {"z", TensorDtype::kI64, {1}},
                                         {"a", TensorDtype::kBf16, {1}},
                                         {"f", TensorDtype::kF32, {}}});
  ASSERT_THAT(layout, IsOk());
  EXPECT_EQ(
      layout->head.substr(8),
      R"({"__metadata__":{"format":"pt"},"z":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},)"
      R"("f":{"dtype":"F32","shape":[],"data_offsets":[8,12]},)"
      R"("a":{"dtype":"BF16","shape":[1],"data_offsets":[12,14]},)"
      R"("b":{"dtype":"BF16","shape":[2],"data_offsets":[14,18]}})"
      "      ");
  EXPECT_EQ(layout->head.size() % 8, 0u);
  EXPECT_EQ(layout->file_bytes, layout->head.size() + 18);
}

TEST(SafetensorsTest, WriterRefusesWhatAReaderWould) {
  EXPECT_THAT(LayOutSafetensors({{"a", TensorDtype::kI8, {1}}, {"a", TensorDtype::kF32, {1}}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'a'")));
  EXPECT_THAT(LayOutSafetensors({{"__metadata__", TensorDtype::kI8, {1}}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("reserved")));
  EXPECT_THAT(LayOutSafetensors({{"a", TensorDtype::kF4, {1}}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("MisalignedSlice")));
  EXPECT_THAT(LayOutSafetensors({{"a", TensorDtype::kI8, {-1}}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("ValidationOverflow")));
}

}  // namespace
}  // namespace switchyard

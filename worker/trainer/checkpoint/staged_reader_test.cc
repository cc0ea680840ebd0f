// Ranges in pieces of any size, from several files.
#include "worker/trainer/checkpoint/staged_reader.h"

#include <ATen/ATen.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

// Two files of 1000 int16 each: value = 1000 x file + index.
class StagedReaderTest : public testing::Test {
 protected:
  StagedReaderTest() {
    std::string name = (std::filesystem::temp_directory_path() / "staged.XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) std::abort();
    folder_ = name;
    for (int f = 0; f < 2; ++f) {
      std::ofstream file(folder_ + "/" + std::to_string(f), std::ios::binary);
      for (int i = 0; i < 1000; ++i) {
        const auto value = static_cast<int16_t>(1000 * f + i);
        file.write(reinterpret_cast<const char*>(&value), sizeof(value));
      }
    }
  }
  ~StagedReaderTest() override {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  static CopyRange Range(int file, int64_t first, int64_t count, int64_t shard_begin) {
    CopyRange range;
    range.file = file;
    range.dtype = TensorDtype::kI16;
    range.offset = static_cast<uint64_t>(2 * first);
    range.shard_begin = shard_begin;
    range.count = count;
    return range;
  }
  std::string folder_;
};

TEST_F(StagedReaderTest, PiecesOfAnyBufferAddUpToTheRanges) {
  for (int64_t buffer : {8, 66, 128, 500, 1 << 20}) {
    StagedReader reader(folder_, {"0", "1"}, at::kCPU, buffer);
    at::Tensor shard = at::full({1500}, -1, at::kShort);
    const auto use = [&shard](int64_t first, const at::Tensor& values) {
      shard.narrow(0, first, values.numel()).copy_(values);
    };
    ASSERT_THAT(reader.Read(Range(1, 10, 700, 0), use), IsOk());
    ASSERT_THAT(reader.Read(Range(0, 999, 1, 700), use), IsOk());
    ASSERT_THAT(reader.Read(Range(0, 0, 799, 701), use), IsOk());
    ASSERT_THAT(reader.Finish(), IsOk());
    const at::Tensor expected =
        at::cat({at::arange(1010, 1710, at::kShort), at::arange(999, 1000, at::kShort),
                 at::arange(0, 799, at::kShort)});
    EXPECT_TRUE(at::equal(shard, expected)) << buffer;
  }
}

TEST_F(StagedReaderTest, AFileThatEndsTooEarlyIsNamed) {
  StagedReader reader(folder_, {"0", "1"}, at::kCPU, 128);
  absl::Status status = reader.Read(Range(1, 900, 200, 0), [](int64_t, const at::Tensor&) {});
  if (status.ok()) status = reader.Finish();
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kDataLoss, HasSubstr("/1: ends at byte 2000")));
}

}  // namespace
}  // namespace switchyard

#include "worker/trainer/checkpoint/range_writer.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <set>

#include "base/crc32c.h"
#include "worker/trainer/checkpoint/test_model.h"

namespace switchyard {
namespace {

using ::testing::HasSubstr;

// Two files of zeros, and the bytes that they should hold in the end.
class RangeWriterTest : public testing::Test {
 protected:
  static constexpr size_t kFileBytes = 100'003;

  RangeWriterTest() : folder_(TestFolder("ranges")) {
    std::mt19937 random(7);
    for (std::string& file : wanted_) {
      file.assign(kFileBytes, '\0');
      for (char& c : file) c = static_cast<char>(random());
    }
    for (const std::string& name : names_) {
      EXPECT_THAT(ReplaceFile(folder_ + "/" + name, std::string(kFileBytes, '\0')), IsOk());
    }
  }

  // Cuts both files at random multiples of 4.
  std::vector<FileRange> RandomRanges(int cuts, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<FileRange> ranges;
    for (int file = 0; file < 2; ++file) {
      std::set<uint64_t> ends = {kFileBytes};
      for (int i = 0; i < cuts; ++i) ends.insert(random() % kFileBytes / 4 * 4);
      ends.erase(0);
      uint64_t begin = 0;
      for (uint64_t end : ends) {
        ranges.push_back({file, begin, end - begin, ranges.size()});
        begin = end;
      }
    }
    return ranges;
  }

  absl::StatusOr<std::vector<FileRun>> Write(const std::vector<FileRange>& ranges,
                                             const RangeWriterOptions& options) {
    std::vector<FileRange> by_source(ranges.size() + 1);
    for (const FileRange& range : ranges) by_source[range.source] = range;
    std::vector<FileRange> shuffled = ranges;
    std::shuffle(shuffled.begin(), shuffled.end(), std::mt19937(1));
    return WriteRanges(
        folder_, names_, shuffled,
        [&](const std::vector<RangePart>& parts) {
          for (const RangePart& part : parts) {
            const FileRange& range = by_source[part.source];
            std::memcpy(part.to, wanted_[range.file].data() + range.offset + part.skip, part.bytes);
          }
          return absl::OkStatus();
        },
        options);
  }

  std::string Contents(int file) { return ReadFile(folder_ + "/" + names_[file]).value_or(""); }

  std::string folder_;
  const std::vector<std::string> names_ = {"0", "1"};
  std::string wanted_[2];
};

RangeWriterOptions Options(int threads, uint64_t window, uint64_t direct) {
  RangeWriterOptions options;
  options.threads = threads;
  options.window_bytes = window;
  options.direct_from_bytes = direct;
  return options;
}

TEST_F(RangeWriterTest, AnyCutsWindowsAndThreadsGiveTheSameFiles) {
  uint32_t seed = 0;
  for (const int cuts : {0, 3, 100}) {
    for (const uint64_t window : {4096, 16384, 1 << 20}) {
      for (const auto& [threads, direct] :
           std::vector<std::pair<int, uint64_t>>{{1, 0}, {4, 0}, {3, 8192}, {2, 1 << 30}}) {
        for (const std::string& name : names_) {
          ASSERT_THAT(ReplaceFile(folder_ + "/" + name, std::string(kFileBytes, '\0')), IsOk());
        }
        const auto runs = Write(RandomRanges(cuts, ++seed), Options(threads, window, direct));
        ASSERT_THAT(runs, IsOk());
        ASSERT_EQ(runs->size(), 2u) << "neighbours are joined";
        for (int file = 0; file < 2; ++file) {
          EXPECT_TRUE(Contents(file) == wanted_[file]) << cuts << " " << window << " " << threads;
          EXPECT_EQ((*runs)[file].crc32c, Crc32c(wanted_[file]));
          EXPECT_EQ((*runs)[file].bytes, kFileBytes);
        }
      }
    }
  }
}

TEST_F(RangeWriterTest, WhatIsBetweenRangesStays) {
  const std::vector<FileRange> ranges = {{0, 5000, 20'000, 0}, {0, 30'000, 50'000, 1}};
  const auto runs = Write(ranges, Options(2, 8192, 0));
  ASSERT_THAT(runs, IsOk());
  ASSERT_EQ(runs->size(), 2u);
  EXPECT_EQ((*runs)[1].offset, 30'000u);
  EXPECT_EQ((*runs)[1].crc32c, Crc32c(wanted_[0].substr(30'000, 50'000)));
  std::string expected(kFileBytes, '\0');
  for (const FileRange& range : ranges) {
    expected.replace(range.offset, range.bytes, wanted_[0].substr(range.offset, range.bytes));
  }
  EXPECT_TRUE(Contents(0) == expected);
}

TEST(FileRunsTest, SumsEndWhereARunIsMissingOrASecondOneBegins) {
  const std::string text = "a file that several ranks have read or written";
  const auto run = [&](int file, size_t begin, size_t end) {
    return FileRun{file, begin, end - begin, Crc32c(text.substr(begin, end - begin))};
  };
  const size_t n = text.size();
  const auto sums = SumFiles(
      RunsFromNumbers(RunsToNumbers({run(0, 20, n), run(1, 5, n), run(0, 0, 7), run(2, 0, 9),
                                     run(0, 7, 20), run(2, 11, n), run(3, 0, 9), run(3, 8, n)})),
      5);
  EXPECT_EQ(sums[0].bytes, n);
  EXPECT_EQ(sums[0].crc32c, Crc32c(text));
  EXPECT_EQ(sums[1].bytes, 0u) << "the beginning is missing";
  EXPECT_EQ(sums[2].bytes, 9u) << "a gap";
  EXPECT_EQ(sums[3].bytes, 8u) << "twice";
  EXPECT_EQ(sums[4].bytes, 0u) << "nothing";
}

TEST_F(RangeWriterTest, OverlapsAndErrorsAreNamed) {
  EXPECT_THAT(Write({{1, 0, 100, 0}, {1, 96, 100, 1}}, Options(1, 4096, 0)),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("/1: two ranges hold byte 96")));
  const auto refuse = [](const std::vector<RangePart>&) { return absl::DataLossError("no data"); };
  EXPECT_THAT(WriteRanges(folder_, names_, RandomRanges(9, 1), refuse, Options(3, 4096, 0)),
              StatusIs(absl::StatusCode::kDataLoss, "no data"));
  std::atomic<bool> cancelled{true};
  RangeWriterOptions options = Options(3, 4096, 0);
  options.cancelled = &cancelled;
  EXPECT_THAT(Write(RandomRanges(9, 1), options), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_THAT(
      WriteRanges(folder_ + "/none", names_, RandomRanges(9, 1), refuse, Options(1, 4096, 0)),
      StatusIs(absl::StatusCode::kNotFound, HasSubstr("/none/0")));
}

}  // namespace
}  // namespace switchyard

#include "worker/prep/packing.h"

#include <algorithm>
#include <numeric>

#include "gtest/gtest.h"
#include "worker/prep/random.h"

namespace switchyard {
namespace {

using Rows = std::vector<std::vector<int64_t>>;

// Lengths 1 .. row_length, short ones more often.
std::vector<int64_t> RandomLengths(uint64_t seed, size_t count, int64_t row_length) {
  std::vector<int64_t> lengths(count);
  for (size_t i = 0; i < count; ++i) {
    const uint64_t draw = Draw64(seed, i);
    const auto bound = static_cast<uint64_t>(draw % 5 == 0 ? row_length : 1 + row_length / 4);
    lengths[i] = 1 + static_cast<int64_t>((draw >> 8) % bound);
  }
  return lengths;
}

int64_t Filled(const std::vector<int64_t>& row, const std::vector<int64_t>& lengths) {
  return std::accumulate(row.begin(), row.end(), int64_t{0},
                         [&](int64_t sum, int64_t i) { return sum + lengths[i]; });
}

TEST(PackingTest, PlacesEveryDocumentOnceAndNoRowOverflows) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const int64_t row_length = 1 + static_cast<int64_t>(Draw64(seed, 999) % 200);
    const auto lengths = RandomLengths(seed, seed * 7, row_length);
    for (const Packing packing : {Packing::kNone, Packing::kSequential, Packing::kBestFit}) {
      std::vector<int64_t> seen;
      for (const auto& row : PackDocuments(lengths, row_length, packing)) {
        EXPECT_FALSE(row.empty());
        EXPECT_LE(Filled(row, lengths), row_length);
        EXPECT_TRUE(std::is_sorted(row.begin(), row.end()));
        seen.insert(seen.end(), row.begin(), row.end());
      }
      std::sort(seen.begin(), seen.end());
      std::vector<int64_t> all(lengths.size());
      std::iota(all.begin(), all.end(), 0);
      EXPECT_EQ(seen, all);
    }
  }
}

TEST(PackingTest, SequentialKeepsOrderAndClosesARowOnlyWhenTheNextDoesNotFit) {
  const std::vector<int64_t> lengths = {3, 4, 4, 2, 10, 1, 9};
  EXPECT_EQ(PackDocuments(lengths, 10, Packing::kSequential), (Rows{{0, 1}, {2, 3}, {4}, {5, 6}}));
}

TEST(PackingTest, BestFitFillsTheFullestRowThatHasRoom) {
  // Longest first: 7 opens a row, 6 another; 3 fits the first exactly, 4 the second.
  const std::vector<int64_t> lengths = {3, 6, 4, 7};
  EXPECT_EQ(PackDocuments(lengths, 10, Packing::kBestFit), (Rows{{0, 3}, {1, 2}}));
}

TEST(PackingTest, BestFitNeedsNoMoreRowsThanSequentialAndAtMostTheKnownBound) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto lengths = RandomLengths(seed, 500, 64);
    const size_t best = PackDocuments(lengths, 64, Packing::kBestFit).size();
    EXPECT_LE(best, PackDocuments(lengths, 64, Packing::kSequential).size());
    const int64_t total = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    const double optimum = static_cast<double>((total + 63) / 64);
    EXPECT_GE(static_cast<double>(best), optimum);
    // Best-fit decreasing: at most 11/9 of the optimum and one row (Johnson 1974), where the
    // optimum itself is at least the total over the capacity; half as much again covers the
    // difference.
    EXPECT_LE(static_cast<double>(best), 1.5 * optimum + 1);
  }
}

TEST(PackingTest, NoDocumentsMakeNoRows) {
  for (const Packing packing : {Packing::kNone, Packing::kSequential, Packing::kBestFit}) {
    EXPECT_TRUE(PackDocuments({}, 8, packing).empty());
  }
}

}  // namespace
}  // namespace switchyard

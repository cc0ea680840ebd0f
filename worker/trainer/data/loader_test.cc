#include "worker/trainer/data/loader.h"

#include <algorithm>
#include <map>
#include <memory>
#include <string>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

// `num_rows` rows; row r holds one document of r % 3 + 2 tokens, all with the id r, and for odd r a
// second one of 1 token.
std::unique_ptr<TokenFile> MakeFile(int64_t num_rows) {
  TokenData data;
  data.row_length = 8;
  for (int64_t r = 0; r < num_rows; ++r) {
    data.rows.push_back(static_cast<int64_t>(data.documents.size()));
    data.documents.push_back(static_cast<int64_t>(data.tokens.size()));
    for (int64_t i = 0; i < r % 3 + 2; ++i) {
      data.tokens.push_back(static_cast<int32_t>(r));
      data.supervised.push_back(i > 0 ? 1 : 0);
    }
    if (r % 2 == 1) {
      data.documents.push_back(static_cast<int64_t>(data.tokens.size()));
      data.tokens.push_back(static_cast<int32_t>(r));
      data.supervised.push_back(0);
    }
  }
  const std::string path = testing::TempDir() + "/loader_" + std::to_string(num_rows) + ".tok";
  EXPECT_THAT(WriteTokenFile(path, data), IsOk());
  auto file = TokenFile::Open(path, true);
  EXPECT_THAT(file, IsOk());
  return *std::move(file);
}

Loader MakeLoader(const TokenFile* file, LoaderOptions options) {
  auto loader = Loader::Make(file, options);
  EXPECT_THAT(loader, IsOk());
  return *std::move(loader);
}

// The rows (as token ids) of a micro-batch, in order.
std::vector<int64_t> RowsOf(const Microbatch& batch) {
  std::vector<int64_t> rows;
  for (size_t i = 0; i < batch.tokens.size(); ++i) {
    if (i == 0 || batch.tokens[i] != batch.tokens[i - 1]) rows.push_back(batch.tokens[i]);
  }
  return rows;
}

// The rows of a global batch as `dp_size` ranks see it, put in global order.
std::vector<int64_t> GlobalBatch(const TokenFile* file, LoaderOptions options, int64_t step) {
  std::vector<int64_t> rows;
  std::vector<Loader> loaders;
  for (options.dp_rank = 0; options.dp_rank < options.dp_size; ++options.dp_rank) {
    loaders.push_back(MakeLoader(file, options));
  }
  for (int64_t m = 0; m < loaders[0].microbatches_per_step(); ++m) {
    for (Loader& loader : loaders) {
      for (int64_t row : RowsOf(loader.Get(step, m))) rows.push_back(row);
    }
  }
  return rows;
}

TEST(LoaderTest, EveryEpochVisitsEveryRowOnce) {
  const auto file = MakeFile(101);
  LoaderOptions options;
  options.global_batch_size = 8;
  options.local_batch_size = 2;
  options.dp_size = 2;
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<int64_t> seen;
    for (int64_t s = 0; s < 13; ++s) {
      for (int64_t row : GlobalBatch(file.get(), options, epoch * 13 + s)) seen.push_back(row);
    }
    std::sort(seen.begin(), seen.end());
    ASSERT_EQ(seen.size(), 101u);
    for (int64_t r = 0; r < 101; ++r) ASSERT_EQ(seen[r], r);
  }
}

TEST(LoaderTest, OrderDependsOnSeedAndEpochOnly) {
  const auto file = MakeFile(50);
  LoaderOptions options;
  options.global_batch_size = 50;
  const std::vector<int64_t> first = GlobalBatch(file.get(), options, 0);
  EXPECT_EQ(GlobalBatch(file.get(), options, 0), first);
  EXPECT_THAT(GlobalBatch(file.get(), options, 1), Not(first));
  options.seed = 43;
  EXPECT_THAT(GlobalBatch(file.get(), options, 0), Not(first));
}

// A change of the generator would change the data order of every resumed job.
TEST(LoaderTest, OrderIsFixedForGood) {
  const auto file = MakeFile(10);
  LoaderOptions options;
  options.global_batch_size = 10;
  EXPECT_THAT(GlobalBatch(file.get(), options, 0), ElementsAre(3, 0, 4, 8, 2, 6, 9, 7, 1, 5));
  EXPECT_THAT(GlobalBatch(file.get(), options, 1), ElementsAre(6, 0, 9, 2, 7, 1, 5, 4, 3, 8));
}

TEST(LoaderTest, OrderIsCloseToUniform) {
  const auto file = MakeFile(4);
  LoaderOptions options;
  options.global_batch_size = 4;
  std::map<std::vector<int64_t>, int> count;
  Loader loader = MakeLoader(file.get(), [&] {
    options.local_batch_size = 4;
    return options;
  }());
  for (int64_t epoch = 0; epoch < 24000; ++epoch) ++count[RowsOf(loader.Get(epoch, 0))];
  ASSERT_EQ(count.size(), 24u);
  double chi_square = 0;
  for (const auto& [order, n] : count) chi_square += (n - 1000.0) * (n - 1000.0) / 1000.0;
  EXPECT_LT(chi_square, 49.7);  // 23 degrees of freedom, p = 0.001
}

TEST(LoaderTest, WithoutShuffleKeepsTheFilesOrder) {
  const auto file = MakeFile(5);
  LoaderOptions options;
  options.global_batch_size = 4;
  options.shuffle = false;
  EXPECT_THAT(GlobalBatch(file.get(), options, 0), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(GlobalBatch(file.get(), options, 1), ElementsAre(4));
  EXPECT_THAT(GlobalBatch(file.get(), options, 2), ElementsAre(0, 1, 2, 3));
}

TEST(LoaderTest, GlobalBatchesDoNotDependOnTheWorldSize) {
  const auto file = MakeFile(53);
  LoaderOptions options;
  options.global_batch_size = 16;
  for (int64_t step = 0; step < 8; ++step) {
    options.dp_size = 1;
    options.local_batch_size = 1;
    const std::vector<int64_t> expected = GlobalBatch(file.get(), options, step);
    for (int64_t dp_size : {1, 2, 4, 8}) {
      for (int64_t local : {1, 2}) {
        options.dp_size = dp_size;
        options.local_batch_size = local;
        EXPECT_EQ(GlobalBatch(file.get(), options, step), expected) << dp_size << " x " << local;
      }
    }
  }
}

TEST(LoaderTest, ALastShortStepLeavesRanksWithoutRows) {
  const auto file = MakeFile(5);
  LoaderOptions options;
  options.global_batch_size = 4;
  options.dp_size = 2;
  options.dp_rank = 1;
  options.shuffle = false;
  Loader loader = MakeLoader(file.get(), options);
  EXPECT_EQ(loader.steps_per_epoch(), 2);
  const Microbatch batch = loader.Get(1, 1);
  EXPECT_THAT(batch.tokens, IsEmpty());
  EXPECT_THAT(batch.cu_seqlens, ElementsAre(0));
  EXPECT_EQ(batch.supervised, 0);
}

TEST(LoaderTest, TargetsNeverCrossDocuments) {
  TokenData data;
  data.tokens = {5, 6, 7, 8, 9, 1, 2};
  data.supervised = {0, 1, 0, 0, 1, 0, 1};
  data.documents = {0, 3, 5};
  data.rows = {0, 2};
  data.row_length = 6;
  const std::string path = testing::TempDir() + "/targets.tok";
  ASSERT_THAT(WriteTokenFile(path, data), IsOk());
  const auto file = TokenFile::Open(path, true);
  ASSERT_THAT(file, IsOk());
  LoaderOptions options;
  options.global_batch_size = 2;
  options.local_batch_size = 2;
  options.shuffle = false;
  Loader loader = MakeLoader(file->get(), options);
  const Microbatch batch = loader.Get(0, 0);
  EXPECT_THAT(batch.tokens, ElementsAre(5, 6, 7, 8, 9, 1, 2));
  EXPECT_THAT(batch.targets, ElementsAre(6, -100, -100, 9, -100, 2, -100));
  EXPECT_THAT(batch.cu_seqlens, ElementsAre(0, 3, 5, 7));
  EXPECT_THAT(batch.positions, ElementsAre(0, 1, 2, 0, 1, 0, 1));
  EXPECT_EQ(batch.supervised, 3);
}

TEST(LoaderTest, StepTotalsAreTheSumsOfTheMicrobatches) {
  const auto file = MakeFile(37);
  LoaderOptions options;
  options.global_batch_size = 8;
  options.local_batch_size = 2;
  options.dp_size = 2;
  for (int64_t step = 0; step < 10; ++step) {
    int64_t supervised = 0;
    int64_t tokens = 0;
    for (options.dp_rank = 0; options.dp_rank < 2; ++options.dp_rank) {
      Loader loader = MakeLoader(file.get(), options);
      for (int64_t m = 0; m < loader.microbatches_per_step(); ++m) {
        const Microbatch batch = loader.Get(step, m);
        supervised += batch.supervised;
        tokens += static_cast<int64_t>(batch.tokens.size());
      }
    }
    options.dp_rank = 0;
    Loader loader = MakeLoader(file.get(), options);
    EXPECT_EQ(loader.SupervisedInStep(step), supervised);
    EXPECT_EQ(loader.TokensInStep(step), tokens);
  }
}

TEST(LoaderTest, ResumingAsksForALaterStep) {
  const auto file = MakeFile(29);
  LoaderOptions options;
  options.global_batch_size = 4;
  Loader whole = MakeLoader(file.get(), options);
  std::vector<std::vector<int64_t>> tokens;
  for (int64_t step = 0; step < 20; ++step) tokens.push_back(whole.Get(step, 1).tokens);
  Loader resumed = MakeLoader(file.get(), options);
  for (int64_t step = 11; step < 20; ++step) {
    EXPECT_EQ(resumed.Get(step, 1).tokens, tokens[step]) << "step " << step;
  }
}

TEST(LoaderTest, RefusesBatchesThatDoNotDivide) {
  const auto file = MakeFile(5);
  LoaderOptions options;
  options.global_batch_size = 12;
  options.local_batch_size = 2;
  options.dp_size = 4;
  EXPECT_THAT(Loader::Make(file.get(), options),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("12 is not a multiple of local_batch_size x data-parallel ranks "
                                 "= 2 x 4 = 8")));
  options.dp_rank = 4;
  EXPECT_THAT(Loader::Make(file.get(), options), StatusIs(absl::StatusCode::kInvalidArgument));
  const auto empty = MakeFile(0);
  EXPECT_THAT(Loader::Make(empty.get(), LoaderOptions{}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no rows")));
}

}  // namespace
}  // namespace switchyard

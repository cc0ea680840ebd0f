#include "worker/prep/split.h"

#include "base/status_matchers.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::HasSubstr;
using Range = std::pair<int64_t, int64_t>;

TEST(SplitTest, ResolvesSlicesOfAHundredAndThreeRows) {
  const struct {
    const char* text;
    const char* name;
    Range rows;
    bool absolute;
  } cases[] = {
      {"", "", {0, 103}, true},
      {"train", "train", {0, 103}, true},
      {"train[:1000]", "train", {0, 103}, true},
      {"[10:20]", "", {10, 20}, true},
      {" train [ 10 : 20 ] ", "train", {10, 20}, true},
      {"[10%:20%]", "", {10, 21}, false},
      {"[:50%]", "", {0, 52}, false},
      {"[50%:]", "", {52, 103}, false},
      {"[-3:]", "", {100, 103}, false},
      {"[:-3]", "", {0, 100}, false},
      {"[-10%:]", "", {93, 103}, false},
      {"[90:10]", "", {90, 90}, true},
      {"[500:600]", "", {103, 103}, true},
      {"[-500:2]", "", {0, 2}, false},
  };
  for (const auto& c : cases) {
    const auto parts = ParseSplit(c.text);
    ASSERT_THAT(parts, IsOk()) << c.text;
    ASSERT_EQ(parts->size(), 1u) << c.text;
    EXPECT_EQ((*parts)[0].name, c.name) << c.text;
    EXPECT_EQ((*parts)[0].Resolve(103), c.rows) << c.text;
    EXPECT_EQ((*parts)[0].IsAbsolute(), c.absolute) << c.text;
  }
}

TEST(SplitTest, AddsParts) {
  const auto parts = ParseSplit("train[:10]+validation");
  ASSERT_THAT(parts, IsOk());
  ASSERT_EQ(parts->size(), 2u);
  EXPECT_EQ((*parts)[0].Resolve(100), Range(0, 10));
  EXPECT_EQ((*parts)[1].name, "validation");
}

TEST(SplitTest, RefusesWhatIsNoSlice) {
  for (const char* text : {"train[", "train[]", "train[1]", "train[1:2:3]", "[a:b]", "[1.5:2]",
                           "[:101%]", "train[:5]x", "train+", "+[1:2]"}) {
    EXPECT_THAT(ParseSplit(text), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(text)))
        << text;
  }
}

}  // namespace
}  // namespace switchyard

#include "worker/prep/flags.h"

#include "base/status_matchers.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

struct Flags {
  std::string name = "x";
  std::vector<std::string> files;
  int64_t count = 3;
  bool loud = false;
  FlagSet set{"tool run", "Runs."};
  Flags() {
    set.Text("name", &name, "a name");
    set.List("files", &files, "some files", /*required=*/true);
    set.Integer("count", &count, 1, "how many");
    set.Switch("loud", &loud, "say more");
  }
};

TEST(FlagsTest, ReadsEverySpelling) {
  Flags flags;
  ASSERT_THAT(flags.set.Parse(
                  {"--files", "a", "b", "--name=y=z", "--loud", "--count", "7", "--files", "c"}),
              IsOk());
  EXPECT_EQ(flags.name, "y=z");
  EXPECT_EQ(flags.count, 7);
  EXPECT_TRUE(flags.loud);
  EXPECT_THAT(flags.files, ElementsAre("a", "b", "c"));
}

TEST(FlagsTest, RefusesWhatItDoesNotKnow) {
  const std::pair<std::vector<std::string>, const char*> cases[] = {
      {{"--files", "a", "--cuont", "3"}, "unknown flag --cuont; did you mean --count?"},
      {{"--files", "a", "--zzzzzz"}, "unknown flag --zzzzzz; see --help"},
      {{"--files"}, "--files needs a value"},
      {{"--files", "a", "--loud=1"}, "--loud takes no value"},
      {{"--files", "a", "--count", "0"}, "'0' is not a whole number from 1 on"},
      {{"--files", "a", "--count", "many"}, "'many' is not a whole number"},
      {{"--name", "y"}, "--files is required"},
      {{"stray"}, "stray argument 'stray'"},
  };
  for (const auto& [arguments, message] : cases) {
    Flags flags;
    EXPECT_THAT(flags.set.Parse(arguments),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)));
  }
}

TEST(FlagsTest, HelpShowsDefaults) {
  Flags flags;
  EXPECT_THAT(flags.set.Help(), HasSubstr("--count X"));
  EXPECT_THAT(flags.set.Help(), HasSubstr("how many (default: 3)"));
  EXPECT_THAT(flags.set.Help(), HasSubstr("some files (required)"));
}

}  // namespace
}  // namespace switchyard

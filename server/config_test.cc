#include "server/config.h"

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST(ConfigTest, TakesBothSpellingsOfAFlag) {
  const auto arguments =
      ParseArguments({"--state-dir", "/tmp/x", "--lease-ttl=30s", "--verify-checksums", "true"});
  ASSERT_THAT(arguments, IsOk());
  EXPECT_EQ(arguments->config.state_dir, "/tmp/x");
  EXPECT_EQ(arguments->config.lease_ttl, absl::Seconds(30));
  EXPECT_TRUE(arguments->config.verify_checksums);
}

TEST(ConfigTest, NamesAllUnknownFlagsWithASuggestion) {
  EXPECT_THAT(ParseArguments({"--listn", "127.0.0.1:1", "--stat-dir=/x", "--qqqqqqqq"}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("--listn; did you mean --listen?"),
                             HasSubstr("did you mean --state-dir?"),
                             HasSubstr("unknown flag --qqqqqqqq"))));
}

TEST(ConfigTest, RefusesBadValues) {
  EXPECT_THAT(ParseArguments({"--lease-ttl", "soon"}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'soon'")));
  EXPECT_THAT(ParseArguments({"--listen", "7070"}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not host:port")));
  EXPECT_THAT(ParseArguments({"--artifact-root", "here", "--lease-ttl", "5s"}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("absolute"), HasSubstr("a third of --lease-ttl"))));
  EXPECT_THAT(ParseArguments({"--state-dir"}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("needs a value")));
}

}  // namespace
}  // namespace switchyard

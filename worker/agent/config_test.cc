#include "worker/agent/config.h"

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::HasSubstr;

absl::StatusOr<CommandLine> Parse(const std::vector<std::string>& arguments) {
  return ParseCommandLine(arguments, "/opt/bin/switchyard-agent", "host1");
}

TEST(ConfigTest, DefaultsAreThoseOfTheContract) {
  absl::StatusOr<CommandLine> line = Parse({"--state-dir", "/s"});
  ASSERT_THAT(line, IsOk());
  EXPECT_EQ(line->config.coordinator, "127.0.0.1:7071");
  EXPECT_EQ(line->config.metrics_listen, "127.0.0.1:7073");
  EXPECT_EQ(line->config.address, "127.0.0.1");
  EXPECT_EQ(line->config.node, "host1");
  EXPECT_EQ(line->config.bin_dir, "/opt/bin");
  EXPECT_EQ(line->config.cpu_ranks, 0);
}

TEST(ConfigTest, TakesBothSpellingsOfValues) {
  absl::StatusOr<CommandLine> line =
      Parse({"--state-dir=/s", "--cpu-ranks", "2", "--node=n", "--log-level", "debug",
             "--coordinator", "h:1", "--address", "10.0.0.1", "--metrics-listen", "0.0.0.0:0",
             "--bin-dir", "/b", "--port-file", "/p"});
  ASSERT_THAT(line, IsOk());
  EXPECT_EQ(line->config.state_dir, "/s");
  EXPECT_EQ(line->config.cpu_ranks, 2);
  EXPECT_EQ(line->config.node, "n");
  EXPECT_EQ(line->config.log_level, LogLevel::kDebug);
  EXPECT_EQ(line->config.coordinator, "h:1");
  EXPECT_EQ(line->config.address, "10.0.0.1");
  EXPECT_EQ(line->config.metrics_listen, "0.0.0.0:0");
  EXPECT_EQ(line->config.bin_dir, "/b");
  EXPECT_EQ(line->config.port_file, "/p");
}

TEST(ConfigTest, FaultsSayWhatToDo) {
  const std::pair<std::vector<std::string>, const char*> cases[] = {
      {{"--cpu-rank", "2"}, "unknown flag --cpu-rank; did you mean --cpu-ranks?"},
      {{"--coordinater=x"}, "did you mean --coordinator?"},
      {{"--frobnicate"}, "unknown flag --frobnicate; see --help"},
      {{"serve"}, "'serve' is not a flag"},
      {{"--state-dir"}, "--state-dir needs a value: DIR"},
      {{"--cpu-ranks", "0"}, "--cpu-ranks: '0' is not valid"},
      {{"--cpu-ranks", "two"}, "--cpu-ranks: 'two' is not valid"},
      {{"--log-level", "loud"}, "debug, info, warning or error"},
      {{}, "--state-dir is required"},
      {{"--state-dir=/s", "--coordinator=host"}, "'host' is not HOST:PORT"},
      {{"--state-dir=/s", "--metrics-listen=h:99999"}, "'h:99999' is not HOST:PORT"},
  };
  for (const auto& [arguments, message] : cases) {
    EXPECT_THAT(Parse(arguments), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)));
  }
}

TEST(ConfigTest, ReportsAllFaultsAtOnce) {
  EXPECT_THAT(
      Parse({"--coordinator=x", "--node="}),
      StatusIs(absl::StatusCode::kInvalidArgument,
               AllOf(HasSubstr("--coordinator"), HasSubstr("--node"), HasSubstr("--state-dir"))));
}

TEST(ConfigTest, HelpNamesEveryFlag) {
  absl::StatusOr<CommandLine> line = Parse({"--help"});
  ASSERT_THAT(line, IsOk());
  EXPECT_TRUE(line->help);
  for (const char* flag : {"--coordinator", "--node", "--state-dir", "--address", "--cpu-ranks",
                           "--metrics-listen", "--bin-dir", "--log-level", "--port-file"}) {
    EXPECT_THAT(HelpText(), HasSubstr(flag));
  }
}

}  // namespace
}  // namespace switchyard

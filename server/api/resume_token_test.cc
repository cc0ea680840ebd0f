#include "server/api/resume_token.h"

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/error.h"

namespace switchyard {
namespace {

HistoryPosition Position() {
  HistoryPosition position;
  position.event = 12;
  position.step_id = 3400;
  position.replay_until_id = 3500;
  position.replay_after_step = 7;
  return position;
}

TEST(ResumeTokenTest, KeepsTheWholePosition) {
  const auto back = ParseResumeToken(MakeResumeToken("db", "job", Position()), "db", "job");
  ASSERT_THAT(back, IsOk());
  EXPECT_EQ(back->event, 12);
  EXPECT_EQ(back->step_id, 3400);
  EXPECT_EQ(back->replay_until_id, 3500);
  EXPECT_EQ(back->replay_after_step, 7);
}

TEST(ResumeTokenTest, AnotherHistoryHasExpired) {
  const absl::Status status =
      ParseResumeToken(MakeResumeToken("before", "job", Position()), "after", "job").status();
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kOutOfRange));
  const ErrorDetails details = GetErrorDetails(status);
  EXPECT_EQ(details.reason, "RESUME_TOKEN_EXPIRED");
  EXPECT_THAT(details.metadata, testing::ElementsAre(testing::Pair("earliest_sequence", "1")));
}

TEST(ResumeTokenTest, WhatIsNotOursIsRefused) {
  std::string token = MakeResumeToken("db", "job", Position());
  EXPECT_EQ(GetErrorDetails(ParseResumeToken(token, "db", "other").status()).reason,
            "RESUME_TOKEN_INVALID");
  for (const std::string& bad : {std::string("x"), std::string("!!"), token.substr(4)}) {
    EXPECT_THAT(ParseResumeToken(bad, "db", "job"), StatusIs(absl::StatusCode::kInvalidArgument));
  }
  for (size_t i = 0; i < token.size(); ++i) {
    std::string flipped = token;
    flipped[i] = flipped[i] == 'A' ? 'B' : 'A';
    EXPECT_FALSE(ParseResumeToken(flipped, "db", "job").ok()) << i;
  }
}

}  // namespace
}  // namespace switchyard

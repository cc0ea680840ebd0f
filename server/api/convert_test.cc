#include "server/api/convert.h"

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/message_differencer.h"
#include "gtest/gtest.h"
#include "server/api/page.h"
#include "server/api/status.h"
#include "server/error.h"

namespace switchyard {
namespace {

TEST(ConvertTest, EnumsHaveTheNamesOfTheWire) {
  for (JobState state : AllJobStates()) {
    EXPECT_EQ(v1::Job::State_Name(ToProto(state)), std::string(Name(state)));
    EXPECT_EQ(FromProto(ToProto(state)), state);
  }
  for (AttemptState state : AllAttemptStates()) {
    EXPECT_EQ(v1::Attempt::State_Name(static_cast<int>(state)), std::string(Name(state)));
  }
  for (FailureReason reason : AllFailureReasons()) {
    EXPECT_EQ(v1::FailureReason_Name(static_cast<int>(reason)), std::string(Name(reason)));
  }
  for (int reason = 1; v1::PendingReason_IsValid(reason); ++reason) {
    EXPECT_EQ(v1::PendingReason_Name(reason),
              "PENDING_REASON_" + std::string(Name(static_cast<PendingReason>(reason))));
  }
}

TEST(ConvertTest, RoundTripsKeepEverything) {
  FailureRecord failure;
  failure.reason = FailureReason::kOomGpu;
  failure.message = "tried 10 GiB";
  failure.rank = 3;
  failure.node = "n1";
  failure.exit_code = 1;
  failure.signal = 9;
  failure.last_lines = {"a", "b"};
  failure.step = 12;
  EXPECT_EQ(FromProto(ToProto(failure)), failure);
  const DeviceRecord device{2, "H100", int64_t{80} << 30, "GPU-1"};
  EXPECT_EQ(FromProto(ToProto(device)), device);
  const AttemptId id{JobId("projects/p/jobs/j"), 4};
  EXPECT_EQ(FromProto(ToProto(id)), id);
  for (const absl::Time time :
       {absl::UnixEpoch() - absl::Microseconds(1), absl::FromUnixMicros(1764000000123456)}) {
    EXPECT_EQ(FromProto(ToProto(time)), time);
  }
  const absl::Duration duration = absl::Seconds(90) + absl::Nanoseconds(5);
  EXPECT_EQ(FromProto(ToProto(duration)), duration);
}

TEST(ConvertTest, NamesAreCheckedWhole) {
  EXPECT_EQ(ParseJobName("projects/p/jobs/j-1")->value(), "projects/p/jobs/j-1");
  for (const char* bad : {"", "j", "projects/p/jobs/", "projects/p/jobs/../x", "projects/P/jobs/j",
                          "projects/p/jobs/j/x", "jobs/p/projects/j", "projects//jobs/j"}) {
    EXPECT_THAT(ParseJobName(bad), StatusIs(absl::StatusCode::kInvalidArgument)) << bad;
  }
}

TEST(ConvertTest, AReportThatSaysNothingKnownIsUnimplemented) {
  v1::Report report;
  report.set_number(3);
  EXPECT_THAT(FromProto(report), StatusIs(absl::StatusCode::kUnimplemented));
}

TEST(PageTest, ATokenIsBoundToItsQuery) {
  const std::string token = MakePageToken("query", 42);
  EXPECT_EQ(*ParsePageToken(token, "query"), 42);
  EXPECT_EQ(*ParsePageToken("", "query"), 0);
  EXPECT_THAT(ParsePageToken(token, "other"), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ParsePageToken("!!", "query"), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(*PageSize(0), 50);
  EXPECT_EQ(*PageSize(100000), 1000);
}

TEST(ErrorTest, ManyFaultsAreCountedAndAllKept) {
  const absl::Status status =
      MakeBadRequest("JOB_INVALID", "create job", {{"a", "1"}, {"b", "2"}, {"c", "3"}, {"d", "4"}});
  EXPECT_EQ(status.message(), "create job: a: 1; b: 2; c: 3; and 1 more");
  EXPECT_THAT(GetErrorDetails(status).violations, testing::SizeIs(4));
  EXPECT_EQ(GetErrorDetails(absl::NotFoundError("x")).reason, "NOT_FOUND");
}

}  // namespace
}  // namespace switchyard

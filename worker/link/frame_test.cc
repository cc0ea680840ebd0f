#include "worker/link/frame.h"

#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <utility>

#include "base/status_matchers.h"
#include "base/thread.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

constexpr absl::Duration kLong = absl::Seconds(30);

class FrameTest : public testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<SocketPair> pair = MakeSocketPair();
    ASSERT_THAT(pair, IsOk());
    first_ = std::move(pair->first);
    second_ = std::move(pair->second);
  }
  void WriteRaw(absl::string_view bytes) {
    ASSERT_THAT(WriteAll(first_.get(), bytes, "socket"), IsOk());
  }
  static std::string Framed(absl::string_view text) {
    std::string bytes;
    for (int i = 0; i < 4; ++i) bytes.push_back(static_cast<char>(text.size() >> (8 * i) & 0xff));
    return bytes + std::string(text);
  }

  UniqueFd first_;
  UniqueFd second_;
};

TEST_F(FrameTest, CarriesFramesInOrder) {
  FrameChannel a(std::move(first_)), b(std::move(second_));
  for (int i = 0; i < 3; ++i) ASSERT_THAT(a.Send(Json{{"i", i}}), IsOk());
  for (int i = 0; i < 3; ++i) {
    absl::StatusOr<Json> frame = b.Receive(kLong);
    ASSERT_THAT(frame, IsOk());
    EXPECT_EQ(DumpJson(*frame), "{\"i\":" + std::to_string(i) + "}");
  }
}

TEST_F(FrameTest, WritesLittleEndianLength) {
  FrameChannel a(std::move(first_));
  const std::string value(300, 'x');
  ASSERT_THAT(a.Send(Json{{"k", value}}), IsOk());
  char bytes[5];
  ASSERT_EQ(::recv(second_.get(), bytes, 5, MSG_WAITALL), 5);
  EXPECT_EQ(std::string(bytes, 5), std::string("\x34\x01\x00\x00{", 5));  // 308 = {"k":"…"}
}

TEST_F(FrameTest, ReportsDeadlineAndKeepsPartOfFrame) {
  FrameChannel b(std::move(second_));
  const std::string bytes = Framed(R"({"a":1})");
  WriteRaw(bytes.substr(0, 6));
  EXPECT_THAT(b.Receive(absl::ZeroDuration()), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(b.Receive(absl::Milliseconds(1)), StatusIs(absl::StatusCode::kDeadlineExceeded));
  WriteRaw(bytes.substr(6));
  absl::StatusOr<Json> frame = b.Receive(kLong);
  ASSERT_THAT(frame, IsOk());
  EXPECT_EQ(DumpJson(*frame), R"({"a":1})");
}

TEST_F(FrameTest, TellsCleanEndFromTornFrame) {
  FrameChannel b(std::move(second_));
  WriteRaw(Framed("{}"));
  first_.Reset();
  ASSERT_THAT(b.Receive(kLong), IsOk());
  const absl::Status end = b.Receive(kLong).status();
  EXPECT_TRUE(IsLinkClosed(end)) << end;
  EXPECT_TRUE(IsLinkClosed(b.Receive(kLong).status()));
}

TEST_F(FrameTest, ReportsFrameTornInItsHeader) {
  FrameChannel b(std::move(second_));
  WriteRaw(std::string("\x05\x00", 2));
  first_.Reset();
  EXPECT_THAT(b.Receive(kLong), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("2 bytes")));
}

TEST_F(FrameTest, ReportsFrameTornInItsBody) {
  FrameChannel b(std::move(second_));
  WriteRaw(Framed(R"({"a":1})").substr(0, 8));
  first_.Reset();
  EXPECT_THAT(b.Receive(kLong), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("8 bytes")));
}

TEST_F(FrameTest, RefusesOversizedHeaderWithoutWaitingForTheBody) {
  FrameChannel b(std::move(second_));
  WriteRaw("GET / HTTP");  // "GET " as a length is 542393671
  EXPECT_THAT(b.Receive(kLong),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("542393671 bytes")));
}

TEST_F(FrameTest, RefusesToSendOversizedFrameAndStaysUsable) {
  FrameChannel a(std::move(first_), /*max_frame_bytes=*/16), b(std::move(second_));
  EXPECT_THAT(a.Send(Json{{"k", std::string(17, 'x')}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("limit is 16")));
  ASSERT_THAT(a.Send(Json{{"k", 1}}), IsOk());
  EXPECT_THAT(b.Receive(kLong), IsOk());
}

TEST_F(FrameTest, RefusesWhatIsNoObject) {
  FrameChannel b(std::move(second_));
  WriteRaw(Framed("[1]"));
  EXPECT_THAT(b.Receive(kLong), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("array")));
}

TEST_F(FrameTest, RefusesWhatIsNoJson) {
  FrameChannel b(std::move(second_));
  WriteRaw(Framed("{\"a\":"));
  EXPECT_THAT(b.Receive(kLong), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(FrameTest, SendToClosedPeerIsAnErrorNotASignal) {
  FrameChannel a(std::move(first_));
  second_.Reset();
  EXPECT_THAT(a.Send(Json::object()), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(FrameTest, StuckReaderBreaksTheChannelAfterTheTimeout) {
  FrameChannel a(std::move(first_));
  const Json large{{"k", std::string(4 << 20, 'x')}};  // more than socket buffers hold
  EXPECT_THAT(a.Send(large, absl::Milliseconds(20)),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("of 4194")));
  EXPECT_THAT(a.Send(Json::object()), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(FrameTest, SlowReaderGetsLargeFramesOfSeveralSendersWhole) {
  FrameChannel a(std::move(first_)), b(std::move(second_));
  constexpr int kSenders = 3;
  constexpr int kFrames = 4;
  Thread senders[kSenders];
  for (int s = 0; s < kSenders; ++s) {
    senders[s] = Thread("sender", [&a, s](const StopToken&) {
      const std::string payload(1 << 20, static_cast<char>('a' + s));
      for (int i = 0; i < kFrames; ++i) {
        EXPECT_THAT(a.Send(Json{{"s", s}, {"i", i}, {"p", payload}}), IsOk());
      }
    });
  }
  int next[kSenders] = {};
  for (int n = 0; n < kSenders * kFrames; ++n) {
    absl::StatusOr<Json> frame = b.Receive(kLong);
    ASSERT_THAT(frame, IsOk());
    const int64_t s = JsonGet<int64_t>(*frame, "s").value();
    EXPECT_EQ(JsonGet<int64_t>(*frame, "i").value(), next[s]++);
    EXPECT_EQ(JsonGet<std::string>(*frame, "p").value(),
              std::string(1 << 20, static_cast<char>('a' + s)));
  }
}

}  // namespace
}  // namespace switchyard

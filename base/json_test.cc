#include "base/json.h"

#include "base/status_matchers.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using ::testing::HasSubstr;

TEST(JsonTest, KeepsKeyOrder) {
  EXPECT_EQ(DumpJson(*ParseJson(R"({"b":1,"a":[2]})", "x")), R"({"b":1,"a":[2]})");
}

TEST(JsonTest, ErrorNamesTheTextAndTheByte) {
  EXPECT_THAT(ParseJson(R"({"a": tru})", "recipe"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("recipe")));
}

TEST(JsonTest, PythonsInfinityBecomesNull) {
  auto value = ParseJson(R"({"limit": [0.0, Infinity], "s": "NaN", "n": -Infinity})", "x");
  ASSERT_THAT(value, IsOk());
  EXPECT_TRUE((*value)["limit"][1].is_null());
  EXPECT_EQ((*value)["s"], "NaN");
  EXPECT_TRUE((*value)["n"].is_null());
}

TEST(JsonTest, IntegersComeAsNumbersStringsAndWholeFloats) {
  const Json object = *ParseJson(R"({"a": 7, "b": "7", "c": 7.0, "d": 7.5, "e": null})", "x");
  EXPECT_EQ(*JsonGet<int64_t>(object, "a"), 7);
  EXPECT_EQ(*JsonGet<int64_t>(object, "b"), 7);
  EXPECT_EQ(*JsonGet<int64_t>(object, "c"), 7);
  EXPECT_THAT(JsonGet<int64_t>(object, "d"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("7.5")));
  EXPECT_EQ(*JsonGetOr<int64_t>(object, "e", 3), 3);
  EXPECT_THAT(JsonGet<int64_t>(object, "f"), StatusIs(absl::StatusCode::kNotFound));
}

TEST(JsonTest, WrongTypeIsAnErrorEvenWithAFallback) {
  const Json object = *ParseJson(R"({"a": "yes"})", "x");
  EXPECT_THAT(JsonGetOr<bool>(object, "a", false), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace switchyard

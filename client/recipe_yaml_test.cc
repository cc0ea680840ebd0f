#include "client/recipe_yaml.h"

#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

void ExpectFault(absl::string_view text, const std::string& message,
                 const YamlLimits& limits = {}) {
  EXPECT_THAT(ParseYaml(text, "r.yaml", limits),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)))
      << text;
}

TEST(RecipeYamlTest, KeepsOrderLinesAndQuotes) {
  absl::StatusOr<YamlNode> root = ParseYaml("b: 1\na:\n  - x\n  - 'y'\nc: {d: \"e\"}\n", "r.yaml");
  ASSERT_THAT(root, IsOk());
  ASSERT_EQ(root->members.size(), 3u);
  EXPECT_EQ(root->members[0].first, "b");
  const YamlNode* a = root->Find("a");
  ASSERT_NE(a, nullptr);
  ASSERT_EQ(a->items.size(), 2u);
  EXPECT_EQ(a->items[1].line, 4);
  EXPECT_FALSE(a->items[0].quoted);
  EXPECT_TRUE(a->items[1].quoted);
  EXPECT_EQ(root->Find("c")->Find("d")->text, "e");
  EXPECT_EQ(root->Find("z"), nullptr);
}

TEST(RecipeYamlTest, JsonIsYaml) {
  EXPECT_THAT(ParseYaml("{\n \"a\": {\n  \"b\": [1, true, null]\n }\n}", "r.yaml"), IsOk());
}

TEST(RecipeYamlTest, RefusesWhatCouldSurprise) {
  ExpectFault("a: &x 1\n", "r.yaml:1: anchor '&x': anchors are not allowed");
  ExpectFault("a: 1\nb: *x\n", "r.yaml:2");
  ExpectFault("a: !!python/object:os.system x\n", "tags are not allowed");
  ExpectFault("a: !mine 1\n", "tags are not allowed");
  ExpectFault("a: 1\nb: 2\na: 3\n", "r.yaml:3: duplicate key 'a'");
  ExpectFault("a: {b: 1, b: 2}\n", "duplicate key 'b'");
  ExpectFault("a: 1\n---\nb: 2\n", "a second document");
  ExpectFault("[a, b]: 1\n", "a key must be a scalar");
  ExpectFault("- a\n", "a recipe is sections of keys, found a list");
  ExpectFault("", "empty");
  ExpectFault("a: [1\n", "r.yaml:2");
  ExpectFault("a: 1\n\tb: 2\n", "r.yaml:2");
}

TEST(RecipeYamlTest, LimitsNameTheirNumbers) {
  const auto nested = [](int depth) {
    return absl::StrCat("a: ", std::string(depth, '['), std::string(depth, ']'), "\n");
  };
  ExpectFault(nested(32), "nested more than 32 deep");
  EXPECT_THAT(ParseYaml(nested(31), "r.yaml"), IsOk());
  std::string wide = "a: [";
  for (int i = 0; i < 10001; ++i) wide += "1,";
  ExpectFault(wide + "]\n", "more than 10000 nodes");
  ExpectFault(absl::StrCat("a: ", std::string(1 << 20, 'x')),
              "1048579 bytes, at most 1048576 are read");
}

YamlNode Scalar(const std::string& text, bool quoted = false) {
  YamlNode node;
  node.text = text;
  node.quoted = quoted;
  return node;
}

TEST(RecipeYamlTest, NullsAreYamlsAndPythons) {
  for (const char* text : {"", "~", "null", "NULL", "none", "None"}) {
    EXPECT_TRUE(IsNull(Scalar(text))) << text;
  }
  EXPECT_TRUE(IsNull(Scalar("None", true)));
  EXPECT_FALSE(IsNull(Scalar("", true)));
  EXPECT_FALSE(IsNull(Scalar("null", true)));
  EXPECT_FALSE(IsNull(Scalar("nothing")));
}

TEST(RecipeYamlTest, BoolsAreYamlsAndPythons) {
  EXPECT_EQ(AsBool(Scalar("True")), true);
  EXPECT_EQ(AsBool(Scalar("true", true)), true);
  EXPECT_EQ(AsBool(Scalar("off")), false);
  EXPECT_EQ(AsBool(Scalar("yes", true)), std::nullopt);
  EXPECT_EQ(AsBool(Scalar("1")), std::nullopt);
}

TEST(RecipeYamlTest, NumbersAreYamlsAndPythons) {
  EXPECT_EQ(AsInteger(Scalar("1_000")), 1000);
  EXPECT_EQ(AsInteger(Scalar("0x10")), 16);
  EXPECT_EQ(AsInteger(Scalar("-3")), -3);
  EXPECT_EQ(AsInteger(Scalar("1.0")), std::nullopt);
  EXPECT_EQ(AsInteger(Scalar("99999999999999999999")), std::nullopt);
  EXPECT_EQ(AsNumber(Scalar("1e-8")), 1e-8);
  EXPECT_EQ(AsNumber(Scalar("1.0E-4", true)), 1e-4);
  EXPECT_EQ(AsNumber(Scalar("3")), 3.0);
  EXPECT_EQ(AsNumber(Scalar("nan")), std::nullopt);
  EXPECT_EQ(AsNumber(Scalar("inf")), std::nullopt);
  EXPECT_EQ(AsNumber(Scalar("")), std::nullopt);
}

}  // namespace
}  // namespace switchyard

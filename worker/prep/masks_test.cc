#include "worker/prep/masks.h"

#include "base/status_matchers.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// "ab" "c" "dé" (three bytes in two tokens: both cover the letter) " f"
constexpr uint32_t kOffsets[] = {0, 2, 2, 3, 3, 6, 4, 6, 6, 8};

TEST(MasksTest, SpansSelectTheTokensThatHoldTheirEnds) {
  EXPECT_THAT(MaskFromSpans(kOffsets, {{2, 3}}), ElementsAre(0, 1, 0, 0, 0));
  EXPECT_THAT(MaskFromSpans(kOffsets, {{1, 3}}), ElementsAre(1, 1, 0, 0, 0));
  EXPECT_THAT(MaskFromSpans(kOffsets, {{0, 1}, {7, 8}}), ElementsAre(1, 0, 0, 0, 1));
  EXPECT_THAT(MaskFromSpans(kOffsets, {{0, 8}}), ElementsAre(1, 1, 1, 1, 1));
}

TEST(MasksTest, AllTokensOfASharedCharacterAreSelected) {
  EXPECT_THAT(MaskFromSpans(kOffsets, {{2, 6}}), ElementsAre(0, 1, 1, 1, 0));
  EXPECT_THAT(MaskFromSpans(kOffsets, {{4, 6}}), ElementsAre(0, 0, 1, 1, 0));
  // Two spans that meet inside one character.
  EXPECT_THAT(MaskFromSpans(kOffsets, {{2, 5}, {5, 7}}), ElementsAre(0, 1, 1, 1, 1));
}

TEST(MasksTest, EmptySpansAndSpansPastTheTextSelectNothing) {
  EXPECT_THAT(MaskFromSpans(kOffsets, {{3, 3}, {8, 12}}), ElementsAre(0, 0, 0, 0, 0));
  EXPECT_TRUE(MaskFromSpans({}, {{0, 4}}).empty());
}

TEST(MasksTest, AfterPromptStartsAtTheFirstTokenThatBeginsThere) {
  // bos and eos cover no text.
  constexpr uint32_t offsets[] = {0, 0, 0, 3, 3, 5, 5, 7, 0, 0};
  EXPECT_THAT(MaskAfterPrompt(offsets, 3), ElementsAre(0, 0, 1, 1, 1));
  EXPECT_THAT(MaskAfterPrompt(offsets, 4), ElementsAre(0, 0, 0, 1, 1));  // 3..5 straddles
  EXPECT_THAT(MaskAfterPrompt(offsets, 0), ElementsAre(0, 1, 1, 1, 1));
  EXPECT_THAT(MaskAfterPrompt(offsets, 7), ElementsAre(0, 0, 0, 0, 0));
}

TEST(MasksTest, KeepLastRunClearsEarlierRuns) {
  std::vector<uint8_t> mask = {1, 1, 0, 1, 0, 1, 1, 0};
  KeepLastRun(&mask);
  EXPECT_THAT(mask, ElementsAre(0, 0, 0, 0, 0, 1, 1, 0));
  mask = {1, 1, 1};
  KeepLastRun(&mask);
  EXPECT_THAT(mask, ElementsAre(1, 1, 1));
  mask = {0, 0};
  KeepLastRun(&mask);
  EXPECT_THAT(mask, ElementsAre(0, 0));
}

TEST(MasksTest, PrefixesGiveTheTurn) {
  const auto span = SpanFromPrefixes("[u]Q[a]A.[u]R", {"[u]Q[a]", "[u]Q[a]A."}, "");
  ASSERT_THAT(span, IsOk());
  EXPECT_EQ(*span, (ByteSpan{7, 9}));
}

TEST(MasksTest, AClosingEosThatOnlyTheShorterRenderHasIsTolerated) {
  const auto span = SpanFromPrefixes("[u]Q[a]A[u]R", {"[u]Q[a]", "[u]Q[a]A</s>"}, "</s>");
  ASSERT_THAT(span, IsOk());
  EXPECT_EQ(*span, (ByteSpan{7, 8}));
}

TEST(MasksTest, RewrittenTurnsAreRefused) {
  const auto refused = StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("last_turn"));
  EXPECT_THAT(SpanFromPrefixes("[u]Q[a]A", {"[u]Q[a]<think>", "[u]Q[a]A"}, ""), refused);
  EXPECT_THAT(SpanFromPrefixes("[u]Q[a]A[u]R", {"[u]Q[a]", "[u]Q[a]<t></t>A"}, ""), refused);
  EXPECT_THAT(SpanFromPrefixes("[u]Q[a]A", {"[u]Q[a]", "[u]Q"}, ""), refused);
}

}  // namespace
}  // namespace switchyard

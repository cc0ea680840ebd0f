#include "worker/prep/masks.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace switchyard {

std::vector<uint8_t> MaskFromSpans(absl::Span<const uint32_t> offsets,
                                   const std::vector<ByteSpan>& spans) {
  const size_t num_tokens = offsets.size() / 2;
  std::vector<uint8_t> mask(num_tokens, 0);
  size_t token = 0;
  for (const ByteSpan& span : spans) {
    if (span.begin >= span.end) continue;
    // Several tokens may share a character, and so its bytes: back to the first of them.
    while (token > 0 && offsets[2 * token - 1] > span.begin) --token;
    while (token < num_tokens && offsets[2 * token + 1] <= span.begin) ++token;
    for (; token < num_tokens && offsets[2 * token] < span.end; ++token) mask[token] = 1;
  }
  return mask;
}

std::vector<uint8_t> MaskAfterPrompt(absl::Span<const uint32_t> offsets, uint64_t prompt_bytes) {
  std::vector<uint8_t> mask(offsets.size() / 2, 0);
  for (size_t token = 0; token < mask.size(); ++token) {
    const bool is_text = offsets[2 * token] < offsets[2 * token + 1];
    if (is_text && offsets[2 * token] >= prompt_bytes) {
      std::fill(mask.begin() + token, mask.end(), 1);
      break;
    }
  }
  return mask;
}

void KeepLastRun(std::vector<uint8_t>* mask) {
  const auto last = std::find(mask->rbegin(), mask->rend(), 1);
  const auto before = std::find(last, mask->rend(), 0);
  std::fill(before, mask->rend(), 0);
}

absl::StatusOr<ByteSpan> SpanFromPrefixes(absl::string_view whole, const TurnRenders& turn,
                                          absl::string_view eos) {
  const auto fault = [&](absl::string_view what) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the chat template renders ", what,
        " differently when messages follow, so the assistant's tokens cannot be told from it; give "
        "data.chat_template one with {% generation %} blocks, or learn the last turn only "
        "(loss_mask: last_turn)"));
  };
  if (!absl::StartsWith(whole, turn.before)) return fault("the conversation before a turn");
  absl::string_view through = turn.through;
  if (!absl::StartsWith(whole, through)) {
    if (eos.empty() || !absl::ConsumeSuffix(&through, eos) || !absl::StartsWith(whole, through)) {
      return fault("a turn");
    }
  }
  if (through.size() < turn.before.size()) return fault("the generation prompt");
  return ByteSpan{turn.before.size(), through.size()};
}

}  // namespace switchyard

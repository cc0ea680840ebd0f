// Which tokens are learnt. Pure functions over ids' byte offsets.
#ifndef SWITCHYARD_WORKER_PREP_MASKS_H_
#define SWITCHYARD_WORKER_PREP_MASKS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "worker/text/text_cc.h"

namespace switchyard {

// 1 for the tokens from the first one that holds a span's first byte to the last one that holds its
// last byte, as Transformers derives assistant masks; where a span's last character is made of
// several tokens, all of them (Transformers stops at the first). Empty spans select nothing.
// `offsets`: begin, end per token, ascending; `spans` by begin.
std::vector<uint8_t> MaskFromSpans(absl::Span<const uint32_t> offsets,
                                   const std::vector<ByteSpan>& spans);

// 1 from the first token that begins at or after byte `prompt_bytes` on, whatever follows it (an
// eos included). A token that straddles the border belongs to the prompt.
std::vector<uint8_t> MaskAfterPrompt(absl::Span<const uint32_t> offsets, uint64_t prompt_bytes);

// Clears all but the last run of ones.
void KeepLastRun(std::vector<uint8_t>* mask);

// The renders that tell where assistant turn `i` of a conversation lies, when the template marks
// nothing: the messages before it with the generation prompt, and the messages up to and with it.
struct TurnRenders {
  absl::string_view before;
  absl::string_view through;
};

// The turn's byte range in `whole`, the render of all messages: what follows the generation prompt,
// up to the end of the turn's render (its end-of-turn token and whatever the template puts after
// it). Valid only if both renders are prefixes of the whole, which is checked; a closing `eos` that
// only the shorter render has is tolerated. Errors: FailedPrecondition: the template rewrites
// earlier turns; says what to do.
absl::StatusOr<ByteSpan> SpanFromPrefixes(absl::string_view whole, const TurnRenders& turn,
                                          absl::string_view eos);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_PREP_MASKS_H_

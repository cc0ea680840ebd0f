// Records -> ids and masks, a batch at a time.
#ifndef SWITCHYARD_WORKER_PREP_BATCH_H_
#define SWITCHYARD_WORKER_PREP_BATCH_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "worker/prep/config.h"
#include "worker/prep/records.h"
#include "worker/prep/text_model.h"

namespace switchyard {

struct TokenizedRecord {
  std::vector<int32_t> ids;
  std::vector<uint8_t> supervised;  // as in a token file: the first is 0
  absl::Status status;              // InvalidArgument: the row cannot be rendered or masked
};

// One entry per record, in order.
//
// Chat: rendered once and tokenized once, without the post-processor's tokens. What is learnt comes
// from {% generation %} blocks; without them from renders of the conversation's beginnings, whose
// prefix property is checked (masks.h). When the last turn reaches the end of the text without any
// added token in it, the template has no end-of-turn token, and eos is appended and learnt.
// Plain: tokenized once with the post-processor's tokens; eos is appended unless it is there.
// Pieces: prompt and completion tokenized apart; between them the specials that the post-processor
// put at the prompt's end and at the completion's start are removed; no eos is added.
//
// Errors: of the library only; faults of single records are in their status.
absl::StatusOr<std::vector<TokenizedRecord>> TokenizeBatch(const TextModel& model,
                                                           LossMask loss_mask,
                                                           absl::Span<Record> records);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_PREP_BATCH_H_

#include "kernels/dispatch/layout.h"

namespace switchyard::kernels {
namespace {

bool IsSupported(const DispatchShape& s) {
  return s.ranks >= 1 && s.ranks <= kMaxDispatchRanks && s.experts >= 1 &&
         s.experts <= kMaxDispatchExperts && s.experts % s.ranks == 0 && s.top_k >= 1 &&
         s.top_k <= kMaxDispatchTopK && s.top_k <= s.experts && s.hidden > 0 &&
         s.hidden <= kMaxDispatchHidden && s.hidden % 8 == 0 && s.max_tokens >= 0 &&
         s.ranks * s.max_tokens * s.top_k <= kPlaceRowMask;
}

// Offsets of consecutive parts, each on 128 bytes.
class Cursor {
 public:
  int64_t Take(int64_t bytes) {
    const int64_t at = next_;
    next_ += CeilDiv(bytes, 128) * 128;
    return at;
  }

 private:
  int64_t next_ = 0;
};

}  // namespace

bool IsSupported(const DispatchGroup& group, const DispatchPlanData& plan) {
  return IsSupported(group.shape) && group.rank >= 0 && group.rank < group.shape.ranks &&
         plan.tokens >= 0 && plan.tokens <= group.shape.max_tokens && plan.max_rows >= 0;
}

DispatchArena DispatchArenaLayout(const DispatchShape& s) {
  const int64_t row_bytes = 2 * int64_t{s.hidden};
  const int64_t slot_bytes = 4 * int64_t{DispatchHeaderSlots(s)};
  Cursor cursor;
  DispatchArena arena;
  arena.counts = cursor.Take(2 * 8 * int64_t{s.ranks} * (s.experts + s.ranks));
  arena.signals = cursor.Take(8 * kNumDispatchSignals * s.ranks);
  arena.state = cursor.Take(sizeof(DispatchState));
  arena.records = cursor.Take(2 * MaxDispatchRecords(s) * row_bytes);
  arena.headers = cursor.Take(2 * MaxDispatchRecords(s) * 2 * slot_bytes);
  arena.sums = cursor.Take(2 * MaxDispatchSums(s) * row_bytes);
  arena.weight_sums = cursor.Take(2 * MaxDispatchSums(s) * slot_bytes);
  arena.bytes = cursor.Take(0);
  return arena;
}

namespace {

// Lays a plan out from `words` on; `end` is behind it.
DispatchPlanData PlanAt(const DispatchShape& s, int64_t tokens, int64_t max_rows, int32_t* words,
                        int64_t* num_words) {
  Cursor cursor;
  const auto take = [&](int64_t count) {
    const int64_t at = cursor.Take(4 * count) / 4;
    return words == nullptr ? nullptr : words + at;
  };
  DispatchPlanData plan;
  plan.tokens = tokens;
  plan.max_rows = max_rows;
  plan.offsets = take(s.experts / s.ranks + 1);
  plan.needed_rows = take(1);
  plan.tables = take(sizeof(DispatchTables) / 4);
  plan.slots = take(tokens * s.ranks);
  plan.places = take(tokens * s.top_k);
  plan.segments = take(NumDispatchSegments(tokens) * s.ranks);
  plan.record_rows = take(MaxDispatchRecords(s) * s.top_k);
  *num_words = cursor.Take(0) / 4;
  return plan;
}

}  // namespace

int64_t DispatchPlanWords(const DispatchShape& shape, int64_t tokens) {
  int64_t num_words = 0;
  PlanAt(shape, tokens, 0, nullptr, &num_words);
  return num_words;
}

DispatchPlanData DispatchPlanAt(const DispatchShape& shape, int64_t tokens, int64_t max_rows,
                                int32_t* words) {
  int64_t num_words = 0;
  return PlanAt(shape, tokens, max_rows, words, &num_words);
}

}  // namespace switchyard::kernels

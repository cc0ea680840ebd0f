#include "worker/trainer/checkpoint/reshard.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"

namespace switchyard {

absl::StatusOr<std::vector<CopyRange>> Reshard(const TensorFiles& saved, absl::string_view suffix,
                                               bool optional, const BucketLayout& bucket,
                                               int64_t begin, int64_t end) {
  std::vector<CopyRange> ranges;
  for (size_t s = 0; s < bucket.slots.size(); ++s) {
    const TensorSlot& slot = bucket.slots[s];
    const int64_t first = std::max(begin, slot.offset);
    const int64_t last = std::min(end, slot.offset + slot.numel);
    if (first >= last) continue;
    const std::string name = absl::StrCat(slot.name, suffix);
    const auto it = saved.at.find(name);
    if (it == saved.at.end()) {
      if (optional) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("reshard ", bucket.name, ": ", saved.folder, " has no tensor '", name, "'"));
    }
    const TensorLocation& location = it->second;
    if (location.numel != slot.numel) {
      return absl::InvalidArgumentError(absl::StrCat("reshard ", bucket.name, ": tensor '", name,
                                                     "' has ", location.numel,
                                                     " elements, the model needs ", slot.numel));
    }
    CopyRange range;
    range.slot = static_cast<int>(s);
    range.file = location.file;
    range.dtype = location.dtype;
    range.offset =
        location.offset + static_cast<uint64_t>(first - slot.offset) * (DtypeBits(range.dtype) / 8);
    range.shard_begin = first - begin;
    range.count = last - first;
    ranges.push_back(range);
  }
  return ranges;
}

}  // namespace switchyard

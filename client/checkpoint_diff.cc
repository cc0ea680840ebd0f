// checkpoints diff: two model folders, tensor by tensor.
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "client/checkpoints.h"
#include "client/tensor_values.h"
#include "worker/trainer/checkpoint/hf_model.h"
#include "worker/trainer/checkpoint/safetensors.h"

namespace switchyard {
namespace {

// The files of one model, mapped as they are needed.
class OpenModel {
 public:
  static absl::StatusOr<OpenModel> Open(const std::string& folder) {
    OpenModel out;
    ASSIGN_OR_RETURN(out.model_, OpenHfModel(folder));
    for (const HfTensor& tensor : out.model_.tensors) out.by_name_[tensor.name] = &tensor;
    for (const std::string& file : out.model_.files) {
      ASSIGN_OR_RETURN(auto opened, SafetensorsFile::Open(absl::StrCat(folder, "/", file)));
      out.files_.push_back(std::move(opened));
    }
    return out;
  }
  const std::map<std::string, const HfTensor*>& tensors() const { return by_name_; }
  absl::string_view Bytes(const HfTensor& tensor) const {
    const SafetensorsFile& file = *files_[static_cast<size_t>(tensor.file)];
    return file.Bytes(*file.Find(tensor.name));
  }

 private:
  HfModel model_;
  std::map<std::string, const HfTensor*> by_name_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
};

struct TensorDiff {
  std::string name;
  std::string status;  // same, values, dtype, shape, missing, added
  std::string a, b;    // "BF16 [4, 8]"
  bool compared = false;
  double max_abs = 0;
  // Of the largest difference to the largest value of the first.
  double max_relative = 0;
  // Euclidean norm of the difference to that of the first.
  double norm_relative = 0;
};

std::string Text(const TensorSpec& tensor) {
  return absl::StrCat(DtypeName(tensor.dtype), " [", absl::StrJoin(tensor.shape, ", "), "]");
}

// Values that are not finite in one of them only count as infinitely far apart.
void CompareValues(absl::string_view a, TensorDtype a_dtype, absl::string_view b,
                   TensorDtype b_dtype, TensorDiff& diff) {
  const size_t count = a.size() * 8 / static_cast<size_t>(DtypeBits(a_dtype));
  double largest = 0, squares = 0, difference_squares = 0;
  for (size_t i = 0; i < count; ++i) {
    const double x = ElementAt(a, a_dtype, i), y = ElementAt(b, b_dtype, i);
    const bool same = x == y || (std::isnan(x) && std::isnan(y));
    const double difference = same                                   ? 0
                              : std::isfinite(x) && std::isfinite(y) ? std::fabs(x - y)
                                                                     : INFINITY;
    diff.max_abs = std::max(diff.max_abs, difference);
    difference_squares += difference * difference;
    if (std::isfinite(x)) {
      largest = std::max(largest, std::fabs(x));
      squares += x * x;
    }
  }
  diff.compared = true;
  const auto ratio = [](double part, double whole) {
    return part == 0 ? 0 : whole == 0 ? INFINITY : part / whole;
  };
  diff.max_relative = ratio(diff.max_abs, largest);
  diff.norm_relative = std::sqrt(ratio(difference_squares, squares));
}

TensorDiff Compare(const OpenModel& a, const HfTensor& x, const OpenModel& b, const HfTensor& y) {
  TensorDiff diff{x.name, "same", Text(x), Text(y)};
  if (x.shape != y.shape) {
    diff.status = "shape";
    return diff;
  }
  if (IsFloating(x.dtype) && IsFloating(y.dtype)) {
    CompareValues(a.Bytes(x), x.dtype, b.Bytes(y), y.dtype, diff);
    if (x.dtype != y.dtype) {
      diff.status = "dtype";
    } else if (diff.max_abs > 0) {
      diff.status = "values";
    }
    return diff;
  }
  if (x.dtype != y.dtype) {
    diff.status = "dtype";
  } else if (a.Bytes(x) != b.Bytes(y)) {
    diff.status = "values";
  }
  return diff;
}

Json Number(double value) {
  return std::isfinite(value) ? Json(value) : Json("Infinity");  // as protobuf's JSON has it
}

}  // namespace

int RunDiff(CommandContext& context) {
  std::vector<OpenModel> models;
  for (size_t i = 1; i <= 2; ++i) {
    const std::string& word = context.parsed.arguments[i];
    const std::string doing = absl::StrCat("read ", word);
    const absl::StatusOr<std::string> folder = LocalFolder(context, word);
    if (!folder.ok()) return FailCheckpoint(context, folder.status(), doing);
    absl::StatusOr<OpenModel> model = OpenModel::Open(*folder);
    if (!model.ok()) return FailCheckpoint(context, model.status(), doing);
    models.push_back(*std::move(model));
  }
  std::vector<TensorDiff> diffs;
  for (const auto& [name, tensor] : models[0].tensors()) {
    if (context.terminal.interrupt.triggered()) return context.Fail(absl::CancelledError(), "diff");
    const auto other = models[1].tensors().find(name);
    diffs.push_back(other == models[1].tensors().end()
                        ? TensorDiff{name, "missing", Text(*tensor), "-"}
                        : Compare(models[0], *tensor, models[1], *other->second));
  }
  for (const auto& [name, tensor] : models[1].tensors()) {
    if (models[0].tensors().count(name) == 0) {
      diffs.push_back({name, "added", "-", Text(*tensor)});
    }
  }
  std::map<std::string, int64_t> counts;
  double max_abs = 0, max_relative = 0;
  for (const TensorDiff& diff : diffs) {
    ++counts[diff.status];
    max_abs = std::max(max_abs, diff.max_abs);
    max_relative = std::max(max_relative, diff.max_relative);
  }
  const bool same = counts["same"] == static_cast<int64_t>(diffs.size());
  const bool all = context.parsed.Has("all");
  if (context.format != Format::kTable) {
    Json tensors = Json::array();
    for (const TensorDiff& diff : diffs) {
      if (diff.status == "same" && !all) continue;
      Json entry = {{"name", diff.name}, {"status", diff.status}, {"a", diff.a}, {"b", diff.b}};
      if (diff.compared) {
        entry["max_abs"] = Number(diff.max_abs);
        entry["max_relative"] = Number(diff.max_relative);
        entry["norm_relative"] = Number(diff.norm_relative);
      }
      tensors.push_back(std::move(entry));
    }
    Json summary = {
        {"same", same}, {"max_abs", Number(max_abs)}, {"max_relative", Number(max_relative)}};
    for (const char* status : {"same", "values", "dtype", "shape", "missing", "added"}) {
      summary["tensors"][status] = counts[status];
    }
    context.terminal.out << Print(Json{{"summary", summary}, {"tensors", tensors}}, context.format);
    return same ? 0 : 8;
  }
  std::vector<std::vector<std::string>> rows;
  for (const TensorDiff& diff : diffs) {
    if (diff.status == "same" && !all) continue;
    const auto number = [&](double value) {
      return diff.compared ? absl::StrFormat("%.3g", value) : std::string("-");
    };
    rows.push_back({diff.name, diff.status, diff.a, diff.a == diff.b ? "as before" : diff.b,
                    number(diff.max_abs), number(diff.max_relative), number(diff.norm_relative)});
  }
  if (!rows.empty()) {
    context.terminal.out << Table(
        {"TENSOR", "DIFFERS IN", "FIRST", "SECOND", "MAX ABS", "MAX REL", "NORM REL"}, rows);
  }
  context.terminal.out << diffs.size() << " tensors, " << counts["same"] << " the same, "
                       << counts["values"] << " of other values, " << counts["dtype"]
                       << " of another dtype, " << counts["shape"] << " of another shape, "
                       << counts["missing"] << " missing, " << counts["added"]
                       << " added; largest difference "
                       << absl::StrFormat("%.3g (%.3g of the largest value)\n", max_abs,
                                          max_relative);
  return same ? 0 : 8;
}

}  // namespace switchyard

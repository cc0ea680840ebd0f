#include "worker/trainer/checkpoint/shard_source.h"

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/trainer/checkpoint/master_bits.h"
#include "worker/trainer/checkpoint/reshard.h"

namespace switchyard {

std::vector<std::string> TensorFileNames(const CheckpointPlan& plan) {
  std::vector<std::string> names = plan.weights.files.files;
  names.insert(names.end(), plan.optimizer.files.files.begin(), plan.optimizer.files.files.end());
  return names;
}

std::vector<const SafetensorsLayout*> TensorFileLayouts(const CheckpointPlan& plan) {
  std::vector<const SafetensorsLayout*> layouts;
  for (const FileSet* files : {&plan.weights, &plan.optimizer}) {
    for (const SafetensorsLayout& layout : files->layouts) layouts.push_back(&layout);
  }
  return layouts;
}

absl::StatusOr<ShardSource> ShardSource::Make(const CheckpointPlan& plan,
                                              const std::vector<BucketShard>& shards) {
  ShardSource source;
  const int first_optimizer_file = static_cast<int>(plan.weights.files.files.size());
  for (const BucketShard& shard : shards) {
    if (!shard.writer) continue;
    RETURN_IF_ERROR(source.Add(plan.weights, 0, shard, Kind::kWeights));
    if (plan.optimizer.layouts.empty()) continue;
    if (!shard.exp_avg.defined()) {
      return absl::InternalError(absl::StrCat("bug: shard of ", shard.layout.name,
                                              ": the plan saves moments, which are undefined"));
    }
    for (const Kind kind : {Kind::kExpAvg, Kind::kExpAvgSq, Kind::kRemainder}) {
      RETURN_IF_ERROR(source.Add(plan.optimizer, first_optimizer_file, shard, kind));
    }
  }
  return source;
}

absl::Status ShardSource::Add(const FileSet& files, int first_file, const BucketShard& shard,
                              Kind kind) {
  const char* suffix = kind == Kind::kWeights     ? ""
                       : kind == Kind::kRemainder ? ".remainder"
                       : kind == Kind::kExpAvg    ? ".exp_avg"
                                                  : ".exp_avg_sq";
  ASSIGN_OR_RETURN(const std::vector<CopyRange> ranges,
                   Reshard(files.files, suffix, /*optional=*/kind == Kind::kRemainder, shard.layout,
                           shard.begin, shard.end));
  for (const CopyRange& range : ranges) {
    const uint64_t bytes = static_cast<uint64_t>(range.count * (DtypeBits(range.dtype) / 8));
    ranges_.push_back({first_file + range.file, range.offset, bytes, sources_.size()});
    sources_.push_back({&shard, kind, range.dtype, range.shard_begin});
  }
  return absl::OkStatus();
}

at::Tensor ShardSource::Encode(const Source& source, int64_t first, int64_t n) {
  const BucketShard& shard = *source.shard;
  const at::ScalarType wanted =
      source.dtype == TensorDtype::kBf16 ? at::kBFloat16 : at::kFloat;  // but of remainders
  if (source.kind == Kind::kExpAvg) return shard.exp_avg.narrow(0, first, n).to(wanted);
  if (source.kind == Kind::kExpAvgSq) return shard.exp_avg_sq.narrow(0, first, n).to(wanted);
  const at::Tensor weights = shard.weights.narrow(0, first, n);
  const bool is_bf16 = weights.scalar_type() == at::kBFloat16;
  at::Tensor remainder;
  if (shard.remainder.defined()) remainder = shard.remainder.narrow(0, first, n);
  if (source.kind == Kind::kRemainder) {
    if (remainder.defined()) return remainder;
    if (!is_bf16) return SplitMaster(weights).remainder;
    return at::zeros({n}, weights.options().dtype(at::kShort));  // the weight is all there is
  }
  if (wanted == at::kBFloat16) return is_bf16 ? weights : SplitMaster(weights).weight;
  return remainder.defined() ? JoinMaster(weights, remainder) : weights.to(at::kFloat);
}

absl::Status ShardSource::Fill(const std::vector<RangePart>& parts) const try {
  std::optional<at::Device> device;
  for (const RangePart& part : parts) {
    const Source& source = sources_[part.source];
    const uint64_t element = static_cast<uint64_t>(DtypeBits(source.dtype) / 8);
    const at::Tensor values =
        Encode(source, source.first + static_cast<int64_t>(part.skip / element),
               static_cast<int64_t>(part.bytes / element));
    TORCH_CHECK(values.nbytes() == part.bytes && part.skip % element == 0, "bug: ", values.nbytes(),
                " bytes of ", source.shard->layout.name, " for ", part.bytes, " after ", part.skip);
    if (values.is_cpu()) {
      std::memcpy(part.to, values.const_data_ptr(), part.bytes);
    } else {
      at::from_blob(part.to, values.sizes(), values.options().device(at::kCPU))
          .copy_(values, /*non_blocking=*/true);
      device = values.device();
    }
  }
  if (device.has_value()) {
    c10::Event copied(device->type());
    copied.record(c10::impl::VirtualGuardImpl(device->type()).getStream(*device));
    copied.synchronize();
  }
  return absl::OkStatus();
} catch (const c10::Error& e) {
  return absl::InternalError(e.what_without_backtrace());
} catch (const std::exception& e) {
  return absl::InternalError(e.what());
}

}  // namespace switchyard

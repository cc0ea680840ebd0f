#include "worker/trainer/checkpoint/snapshot.h"

#include <ATen/ATen.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <utility>

#include "base/status_macros.h"

namespace switchyard {
namespace {

constexpr int64_t kAlign = 64;

}  // namespace

Snapshot::Snapshot(const std::vector<BucketShard>& shards, bool with_optimizer)
    : device_(shards.empty() ? at::Device(at::kCPU) : shards[0].weights.device()) {
  for (const BucketShard& shard : shards) {
    if (!shard.writer) continue;
    BucketShard kept = shard;
    if (!with_optimizer) kept.exp_avg = kept.exp_avg_sq = at::Tensor();
    for (const at::Tensor* tensor :
         {&kept.weights, &kept.remainder, &kept.exp_avg, &kept.exp_avg_sq}) {
      Add(*tensor);
    }
    device_shards_.push_back(std::move(kept));
  }
}

void Snapshot::Add(const at::Tensor& tensor) {
  if (!tensor.defined()) return;
  copies_.push_back({tensor, bytes_});
  bytes_ += (static_cast<int64_t>(tensor.nbytes()) + kAlign - 1) / kAlign * kAlign;
}

absl::Status Snapshot::Reserve() {
  ASSIGN_OR_RETURN(arena_, HostArena::Make(bytes_, /*pinned=*/!device_.is_cpu()));
  auto copy = copies_.begin();
  const auto next = [&](const at::Tensor& tensor) {
    if (!tensor.defined()) return at::Tensor();
    at::Tensor host = at::from_blob(arena_->data() + copy->position, tensor.sizes(),
                                    tensor.options().device(at::kCPU));
    on_host_.push_back(host);
    ++copy;
    return host;
  };
  for (const BucketShard& shard : device_shards_) {
    BucketShard host = shard;
    host.weights = next(shard.weights);
    host.remainder = next(shard.remainder);
    host.exp_avg = next(shard.exp_avg);
    host.exp_avg_sq = next(shard.exp_avg_sq);
    host_shards_.push_back(std::move(host));
  }
  return absl::OkStatus();
}

void Snapshot::Take() {
  TORCH_CHECK(arena_ != nullptr, "bug: snapshot: Take before Reserve");
  std::optional<c10::StreamGuard> guard;
  if (!device_.is_cpu()) {
    const c10::impl::VirtualGuardImpl device(device_.type());
    if (!stream_.has_value()) stream_ = device.getStreamFromGlobalPool(device_);
    c10::Event computed(device_.type());
    computed.record(device.getStream(device_));
    computed.block(*stream_);
    guard.emplace(*stream_);
  }
  for (size_t i = 0; i < copies_.size(); ++i) {
    const at::Tensor& from = copies_[i].from;
    const int64_t element = static_cast<int64_t>(from.element_size());
    for (int64_t done = 0; done < from.numel();) {
      const int64_t position = copies_[i].position + done * element;
      const int64_t room = HostArena::kRunBytes - position % HostArena::kRunBytes;
      const int64_t n = std::min(from.numel() - done, room / element);
      on_host_[i].narrow(0, done, n).copy_(from.narrow(0, done, n), /*non_blocking=*/true);
      done += n;
    }
  }
  if (!device_.is_cpu()) {
    copied_.emplace(device_.type());
    copied_->record(*stream_);
  }
}

void Snapshot::BeforeUpdate() {
  if (!copied_.has_value()) return;
  copied_->block(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
}

const std::vector<BucketShard>& Snapshot::Wait() {
  if (copied_.has_value()) copied_->synchronize();
  return host_shards_;
}

}  // namespace switchyard

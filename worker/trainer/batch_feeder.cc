#include "worker/trainer/batch_feeder.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

namespace switchyard {
namespace {

constexpr size_t kAhead = 2;  // micro-batches that wait to be taken

at::Tensor Copy(const std::vector<int64_t>& values) {
  at::Tensor tensor = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), tensor.mutable_data_ptr<int64_t>());
  return tensor;
}

}  // namespace

DecoderBatch ToTensors(const Microbatch& rows) {
  return {Copy(rows.tokens), Copy(rows.targets), Copy(rows.positions), rows.cu_seqlens};
}

BatchFeeder::BatchFeeder(const Loader& loader, int64_t first_step, int64_t end_step)
    : loader_(loader), thread_("batches", [this, first_step, end_step](const StopToken& token) {
        Fill(first_step, end_step, token);
      }) {}

BatchFeeder::~BatchFeeder() {
  absl::MutexLock lock(&mu_);
  closed_ = true;
}

void BatchFeeder::Fill(int64_t first_step, int64_t end_step, const StopToken& token) {
  for (int64_t step = first_step; step < end_step; ++step) {
    for (int64_t m = 0; m < loader_.microbatches_per_step(); ++m) {
      if (token.StopRequested()) return;
      Item item{step, m, {}, nullptr};
      try {
        item.batch = ToTensors(loader_.Get(step, m));
      } catch (...) {
        item.fault = std::current_exception();
      }
      const bool faulty = item.fault != nullptr;
      if (!Push(std::move(item)) || faulty) return;
    }
  }
}

bool BatchFeeder::Push(Item item) {
  const auto room = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return closed_ || ready_.size() < kAhead;
  };
  absl::MutexLock lock(&mu_);
  mu_.Await(absl::Condition(&room));
  if (closed_) return false;
  ready_.push_back(std::move(item));
  return true;
}

DecoderBatch BatchFeeder::Next(int64_t step, int64_t microbatch) {
  const auto arrived = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return !ready_.empty(); };
  Item item;
  {
    absl::MutexLock lock(&mu_);
    TORCH_CHECK(!closed_, "bug: batch feeder: asked after its end");
    mu_.Await(absl::Condition(&arrived));
    item = std::move(ready_.front());
    ready_.pop_front();
  }
  if (item.fault != nullptr) std::rethrow_exception(item.fault);
  TORCH_CHECK(item.step == step && item.microbatch == microbatch, "bug: batch feeder: asked for ",
              step, ".", microbatch, ", next is ", item.step, ".", item.microbatch);
  return std::move(item.batch);
}

}  // namespace switchyard

#include "worker/trainer/parallel/in_process_comm.h"

#include <ATen/ATen.h>

#include <cstring>
#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/thread.h"
#include "worker/trainer/parallel/comm_error.h"
#include "worker/trainer/parallel/rank_order_comm.h"
#include "worker/trainer/parallel/side_stream.h"

namespace switchyard {

// One meeting point: each rank shows what it sends, all copy what is theirs, all leave. On a GPU
// the host only queues: points of the ranks' streams order offer -> copies -> reuse of what was
// offered.
class InProcessGroup {
 public:
  InProcessGroup(int size, absl::Duration timeout)
      : timeout_(timeout), offers_(size), copied_(size) {}

  struct Offer {
    const char* collective = nullptr;
    at::Tensor data;                  // uint8, 1-D
    std::vector<int64_t> send_bytes;  // one per rank
    StreamPoint ready{};              // the data is there
  };

  // Returns when all ranks have offered; the reference is valid until Leave. What the current
  // stream of this rank is told afterwards comes after all offers.
  const std::vector<Offer>& Meet(int rank, Offer offer, const std::string& where) {
    offer.ready = CurrentPoint(offer.data.device());
    {
      absl::MutexLock lock(&mu_);
      offers_[rank] = std::move(offer);
    }
    Wait(where);
    for (const Offer& other : offers_) other.ready.WaitOn(offers_[rank].data.device());
    return offers_;
  }
  // What the current stream of this rank is told afterwards comes after all ranks' copies.
  void Leave(int rank, const std::string& where) {
    const at::Device device = offers_[rank].data.device();
    copied_[rank] = CurrentPoint(device);
    Wait(where);
    for (const StreamPoint& copied : copied_) copied.WaitOn(device);
  }

  void Abort(const std::string& why) {
    absl::MutexLock lock(&mu_);
    if (aborted_.empty()) aborted_ = why;
  }

 private:
  void Wait(const std::string& where) {
    absl::MutexLock lock(&mu_);
    const int64_t round = round_;
    if (++arrived_ == static_cast<int>(offers_.size())) {
      arrived_ = 0;
      ++round_;
      return;
    }
    const auto done = [this, round]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return round_ != round || !aborted_.empty();
    };
    const bool in_time = mu_.AwaitWithTimeout(absl::Condition(&done), timeout_);
    if (round_ != round) return;
    if (in_time) throw CommError(absl::StrCat(where, ": lost a peer: ", aborted_));
    const std::string fault =
        absl::StrCat(where, ": timed out after ", absl::FormatDuration(timeout_), ", ",
                     offers_.size() - arrived_, " of ", offers_.size(), " ranks did not come");
    aborted_ = fault;  // the group is out of step from here on
    throw CommError(fault);
  }

  const absl::Duration timeout_;
  absl::Mutex mu_;
  // Slots are written before and read after a Wait of all ranks, which orders them.
  std::vector<Offer> offers_;
  std::vector<StreamPoint> copied_;
  int arrived_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t round_ ABSL_GUARDED_BY(mu_) = 0;
  std::string aborted_ ABSL_GUARDED_BY(mu_);
};

namespace {

class InProcessComm final : public RankOrderComm {
 public:
  InProcessComm(std::string name, int rank, int size, std::shared_ptr<InProcessGroup> group)
      : RankOrderComm(std::move(name), rank, size), group_(std::move(group)) {}

 protected:
  void Exchange(const char* collective, at::Tensor& out, const at::Tensor& in,
                const std::vector<int64_t>& recv_bytes,
                const std::vector<int64_t>& send_bytes) override {
    const std::string where = Where(collective);
    const auto& offers = group_->Meet(rank(), {collective, in, send_bytes}, where);
    int64_t target = 0;
    for (int r = 0; r < size(); ++r) {
      const InProcessGroup::Offer& offer = offers[r];
      TORCH_CHECK(std::strcmp(offer.collective, collective) == 0, where, ": bug: rank ", r,
                  " is in ", offer.collective);
      TORCH_CHECK(offer.send_bytes[rank()] == recv_bytes[r], where, ": bug: rank ", r, " sends ",
                  offer.send_bytes[rank()], " bytes, ", recv_bytes[r], " are expected");
      int64_t offset = 0;
      for (int to = 0; to < rank(); ++to) offset += offer.send_bytes[to];
      out.narrow(0, target, recv_bytes[r]).copy_(offer.data.narrow(0, offset, recv_bytes[r]));
      target += recv_bytes[r];
    }
    group_->Leave(rank(), where);
  }

  void Gather(const char* collective, at::Tensor& out, const at::Tensor& in) override {
    const std::string where = Where(collective);
    const int64_t bytes = in.numel();
    const auto& offers = group_->Meet(rank(), {collective, in, {bytes}}, where);
    for (int r = 0; r < size(); ++r) {
      TORCH_CHECK(
          std::strcmp(offers[r].collective, collective) == 0 && offers[r].send_bytes[0] == bytes,
          where, ": bug: rank ", r, " is in ", offers[r].collective, " with ",
          offers[r].send_bytes[0], " bytes, here are ", bytes);
      out.narrow(0, r * bytes, bytes).copy_(offers[r].data);
    }
    group_->Leave(rank(), where);
  }

 private:
  std::shared_ptr<InProcessGroup> group_;
};

}  // namespace

InProcessWorld::~InProcessWorld() = default;

Comms InProcessWorld::MakeComms(const Mesh& mesh) {
  return Comms(
      mesh, [this](const std::string& name, const std::vector<int>& ranks, int rank, bool) {
        absl::MutexLock lock(&mu_);
        std::shared_ptr<InProcessGroup>& group = groups_[name];
        if (group == nullptr) {
          group = std::make_shared<InProcessGroup>(static_cast<int>(ranks.size()), timeout_);
          if (!aborted_.empty()) group->Abort(aborted_);
        }
        return std::make_shared<InProcessComm>(name, rank, static_cast<int>(ranks.size()), group);
      });
}

void InProcessWorld::Abort(const std::string& why) {
  absl::MutexLock lock(&mu_);
  aborted_ = why;
  for (auto& [name, group] : groups_) group->Abort(why);
}

void RunInProcess(int world_size, absl::Duration timeout,
                  const std::function<void(int rank, InProcessWorld& world)>& body) {
  InProcessWorld world(timeout);
  absl::Mutex mu;
  std::exception_ptr first;
  {
    std::vector<Thread> threads(world_size);
    for (int rank = 0; rank < world_size; ++rank) {
      threads[rank] = Thread(absl::StrCat("rank ", rank), [&, rank](const StopToken&) {
        try {
          body(rank, world);
        } catch (const std::exception& e) {
          {
            absl::MutexLock lock(&mu);
            if (first == nullptr) first = std::current_exception();
          }
          world.Abort(absl::StrCat("rank ", rank, ": ", e.what()));
        }
      });
    }
    for (Thread& thread : threads) thread.StopAndJoin();
  }
  if (first != nullptr) std::rethrow_exception(first);
}

}  // namespace switchyard

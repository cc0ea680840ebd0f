// Weight gradients that can wait: nothing of the backward needs them, so they are computed while
// token rows travel (docs/overlap.md).
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_DEFERRED_GRADIENTS_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_DEFERRED_GRADIENTS_H_

#include <functional>
#include <utility>
#include <vector>

namespace switchyard {

// One thread. What is added keeps its operands alive until it has been computed.
class DeferredGradients {
 public:
  void Add(std::function<void()> compute) { waiting_.push_back(std::move(compute)); }
  // In the order in which they were added.
  void Compute() {
    for (std::function<void()>& compute : std::exchange(waiting_, {})) {
      compute();
      compute = nullptr;  // its operands go before the next one's results come
    }
  }

 private:
  std::vector<std::function<void()>> waiting_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_DEFERRED_GRADIENTS_H_

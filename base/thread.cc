#include "base/thread.h"

#include <pthread.h>

#include <utility>

namespace switchyard {

Thread::Thread(const std::string& name, std::function<void(const StopToken&)> body)
    : token_(std::make_unique<StopToken>()) {
  thread_ = std::thread([name = name.substr(0, 15), body = std::move(body), token = token_.get()] {
    pthread_setname_np(pthread_self(), name.c_str());
    body(*token);
  });
}

Thread& Thread::operator=(Thread&& other) {
  StopAndJoin();
  token_ = std::move(other.token_);
  thread_ = std::move(other.thread_);
  return *this;
}

void Thread::RequestStop() {
  if (token_ != nullptr) token_->Stop();
}

void Thread::StopAndJoin() {
  RequestStop();
  if (thread_.joinable()) thread_.join();
}

}  // namespace switchyard

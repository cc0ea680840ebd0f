#include "worker/trainer/parallel/side_stream.h"

#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace switchyard {

StreamPoint::StreamPoint(const c10::Stream& stream) {
  event_.emplace(stream.device_type());
  event_->record(stream);
}

void StreamPoint::WaitOn(const c10::Stream& stream) const {
  if (event_.has_value()) event_->block(stream);
}

void StreamPoint::WaitOn(at::Device device) const {
  if (event_.has_value()) WaitOn(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
}

StreamPoint CurrentPoint(at::Device device) {
  if (device.is_cpu()) return {};
  return StreamPoint(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
}

StreamPoint SideStream::Run(const std::function<void()>& queue) {
  if (device_.is_cpu()) {
    queue();
    return {};
  }
  if (!stream_.has_value()) {
    stream_ = c10::impl::VirtualGuardImpl(device_.type())
                  .getStreamFromGlobalPool(device_, /*isHighPriority=*/true);
  }
  CurrentPoint(device_).WaitOn(*stream_);
  const c10::StreamGuard guard(*stream_);
  queue();
  return StreamPoint(*stream_);
}

}  // namespace switchyard

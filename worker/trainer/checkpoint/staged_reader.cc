#include "worker/trainer/checkpoint/staged_reader.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <utility>

#include "base/crc32c.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

constexpr int64_t kDeviceBuffer = int64_t{64} << 20;
constexpr int64_t kHostBuffer = int64_t{16} << 20;
constexpr int64_t kReadAtOnce = int64_t{4} << 20;  // of one thread
constexpr int64_t kAlign = 64;                     // of pieces in a buffer

at::ScalarType TorchDtype(TensorDtype dtype) {
  switch (dtype) {
    case TensorDtype::kF32:
      return at::kFloat;
    case TensorDtype::kBf16:
      return at::kBFloat16;
    case TensorDtype::kF16:
      return at::kHalf;
    case TensorDtype::kI16:
      return at::kShort;
    default:
      TORCH_CHECK(false, "bug: no tensors of dtype ", std::string(DtypeName(dtype)), " are read");
  }
}

}  // namespace

StagedReader::StagedReader(std::string folder, std::vector<std::string> files, at::Device device,
                           int64_t buffer_bytes)
    : files_(std::move(folder), std::move(files)), device_(device) {
  const bool on_host = device.is_cpu();
  if (buffer_bytes == 0) buffer_bytes = on_host ? kHostBuffer : kDeviceBuffer;
  buffers_.resize(on_host ? 1 : 2);
  for (Buffer& buffer : buffers_) {
    buffer.bytes =
        at::empty({buffer_bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(!on_host));
  }
}

absl::Status StagedReader::Read(const CopyRange& range, Use use, bool counted) {
  RETURN_IF_ERROR(files_.Open(range.file));
  const int64_t element_bytes = DtypeBits(range.dtype) / 8;
  const int64_t capacity = buffers_[0].bytes.numel();
  for (int64_t done = 0; done < range.count;) {
    int64_t room = (capacity - used_) / element_bytes;
    if (room == 0) {
      RETURN_IF_ERROR(Flush());
      room = capacity / element_bytes;
    }
    const int64_t n = std::min(room, range.count - done);
    pieces_.push_back({range.file, range.offset + static_cast<uint64_t>(done * element_bytes),
                       n * element_bytes, used_, range.shard_begin + done, TorchDtype(range.dtype),
                       use, counted});
    used_ = std::min(capacity, (used_ + n * element_bytes + kAlign - 1) / kAlign * kAlign);
    done += n;
  }
  return absl::OkStatus();
}

absl::Status StagedReader::Flush() {
  if (pieces_.empty()) return absl::OkStatus();
  Buffer& buffer = buffers_[current_];
  if (buffer.copied.has_value()) buffer.copied->synchronize();

  struct Transfer {
    const Piece* piece;
    int64_t begin, bytes;
  };
  std::vector<Transfer> transfers;
  for (const Piece& piece : pieces_) {
    for (int64_t begin = 0; begin < piece.bytes; begin += kReadAtOnce) {
      transfers.push_back({&piece, begin, std::min(kReadAtOnce, piece.bytes - begin)});
    }
  }
  std::vector<absl::Status> statuses(transfers.size());
  std::vector<uint32_t> crcs(transfers.size());
  uint8_t* const host = buffer.bytes.mutable_data_ptr<uint8_t>();
  at::parallel_for(0, static_cast<int64_t>(transfers.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto& [piece, at, bytes] = transfers[i];
      statuses[i] = files_.ReadAt(piece->file, piece->offset + static_cast<uint64_t>(at),
                                  host + piece->position + at, static_cast<size_t>(bytes));
      if (piece->counted) {  // while the bytes are in this core's cache
        crcs[i] = Crc32c(0, host + piece->position + at, static_cast<size_t>(bytes));
      }
    }
  });
  for (const absl::Status& status : statuses) RETURN_IF_ERROR(status);
  for (size_t i = 0; i < transfers.size(); ++i) {
    const auto& [piece, at, bytes] = transfers[i];
    if (!piece->counted) continue;
    runs_.push_back({piece->file, piece->offset + static_cast<uint64_t>(at),
                     static_cast<uint64_t>(bytes), crcs[i]});
  }

  const at::Tensor values = buffer.bytes.narrow(0, 0, used_).to(device_, /*non_blocking=*/true);
  for (const Piece& piece : pieces_) {
    piece.use(piece.first, values.narrow(0, piece.position, piece.bytes).view(piece.dtype));
  }
  if (!device_.is_cpu()) {
    buffer.copied.emplace(device_.type());
    buffer.copied->record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
  }
  current_ = (current_ + 1) % buffers_.size();
  used_ = 0;
  pieces_.clear();
  return absl::OkStatus();
}

}  // namespace switchyard

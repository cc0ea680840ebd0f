// Frames of one rank out of the file into which its shim wrote them, byte for byte.
#ifndef SWITCHYARD_WORKER_LINK_FRAME_FILE_H_
#define SWITCHYARD_WORKER_LINK_FRAME_FILE_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "base/fd.h"
#include "base/json.h"

namespace switchyard {

// Not thread-safe.
class FrameFile {
 public:
  // Begins at byte `position` of `path`, the end of a frame. The file may not be there yet.
  FrameFile(std::string path, int64_t position) : path_(std::move(path)), position_(position) {}

  // The next frame that ends at or before byte `limit` of the file.
  // Errors: DeadlineExceeded: there is none. InvalidArgument: not a frame; DataLoss, NotFound: the
  // file cannot be read. After any but DeadlineExceeded the file is of no use.
  absl::StatusOr<Json> Next(int64_t limit);

  // The byte after the last frame handed out.
  int64_t position() const { return position_; }
  // Gives the disk space of bytes before `end` back, where the file system can.
  void Free(int64_t end);

 private:
  const std::string path_;
  UniqueFd fd_;
  int64_t position_;
  int64_t freed_ = 0;
  std::string buffer_;  // bytes from position_ on
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_LINK_FRAME_FILE_H_

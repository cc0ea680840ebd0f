// The safetensors container: header, checks and layout. Torch-free.
//
//   u64 N, little-endian | N bytes of JSON, padded with spaces | data, little-endian, row-major
//
// Reading applies every check of the reference implementation (huggingface/safetensors, tensor.rs)
// under its error names, plus: duplicate names and unknown fields are refused. Layout gives the
// same bytes as the reference, from names, dtypes and shapes alone, so that several ranks can write
// their parts of one file.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_SAFETENSORS_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_SAFETENSORS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace switchyard {

// In the reference's order, which decides the layout of a file.
enum class TensorDtype : uint8_t {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3Fnuz,
  kF8E5M2Fnuz,
  kI16,
  kU16,
  kF16,
  kBf16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
};

// "BF16".
absl::string_view DtypeName(TensorDtype dtype);
// Bits of one element: 4, 6, 8, ... 64.
int DtypeBits(TensorDtype dtype);
// Errors: InvalidArgument for an unknown name.
absl::StatusOr<TensorDtype> ParseDtype(absl::string_view name);

struct TensorSpec {
  std::string name;
  TensorDtype dtype = TensorDtype::kF32;
  std::vector<int64_t> shape;  // empty: a scalar
};

// A tensor in a file. Bytes [begin, end) from the start of the data, which is not the file's start.
struct TensorInfo : TensorSpec {
  uint64_t begin = 0;
  uint64_t end = 0;
};

using SafetensorsMetadata = std::vector<std::pair<std::string, std::string>>;

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  // ascending offset
  SafetensorsMetadata metadata;
  uint64_t data_offset = 0;  // of the data, from the start of the file
  uint64_t file_bytes = 0;
};

// Parses `head`, the first bytes of a file of `file_bytes` bytes: all 8 + N, or as many as there
// are. `what` names the file in errors. Errors: InvalidArgument: "<what>: <reference's error name>:
// <which tensor, which numbers>".
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view head,
                                                         uint64_t file_bytes,
                                                         absl::string_view what);

// A mapped file. Immutable, thread-safe; views live as long as the object.
class SafetensorsFile {
 public:
  // Errors: NotFound and others as the file system; InvalidArgument as ParseSafetensorsHeader.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  const SafetensorsHeader& header() const { return header_; }
  // nullptr when there is no such tensor.
  const TensorInfo* Find(absl::string_view name) const;
  // The tensor's bytes in the mapping. Not aligned when the file's header is not.
  absl::string_view Bytes(const TensorInfo& tensor) const;

 private:
  SafetensorsFile() = default;
  std::string path_;
  SafetensorsHeader header_;
  absl::flat_hash_map<std::string, size_t> by_name_;
  void* map_ = nullptr;
  size_t map_bytes_ = 0;
};

// Where everything goes in a file yet to be written.
struct SafetensorsLayout {
  std::string head;                 // the first bytes, up to the data
  std::vector<TensorInfo> tensors;  // ascending offset
  uint64_t file_bytes = 0;
};

// Orders the tensors (dtype descending, then name), places them back to back and makes the header.
// A loader of Transformers v4 refuses files without the metadata {"format": "pt"}.
// Errors: InvalidArgument: duplicate or reserved name, negative dimension, sizes that overflow or
// do not fill bytes.
absl::StatusOr<SafetensorsLayout> LayOutSafetensors(std::vector<TensorSpec> tensors,
                                                    const SafetensorsMetadata& metadata = {
                                                        {"format", "pt"}});

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_SAFETENSORS_H_

#include "worker/trainer/checkpoint/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kLengthBytes = 8;
constexpr char kMetadataKey[] = "__metadata__";

struct DtypeRow {
  absl::string_view name;
  int bits;
};
constexpr DtypeRow kDtypes[] = {
    {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
    {"I64", 64},        {"U64", 64}};
static_assert(std::size(kDtypes) == static_cast<size_t>(TensorDtype::kU64) + 1);

absl::Status Fault(absl::string_view what, absl::string_view name, absl::string_view detail) {
  return absl::InvalidArgumentError(absl::StrCat(what, ": ", name, ": ", detail));
}

// RFC 3629: shortest forms only, no surrogates, at most U+10FFFF.
bool IsUtf8(absl::string_view text) {
  const auto* p = reinterpret_cast<const unsigned char*>(text.data());
  const unsigned char* const end = p + text.size();
  while (p < end) {
    const unsigned char lead = *p++;
    if (lead < 0x80) continue;
    int more;
    unsigned char low = 0x80, high = 0xbf;  // of the second byte
    if (lead >= 0xc2 && lead <= 0xdf) {
      more = 1;
    } else if (lead >= 0xe0 && lead <= 0xef) {
      more = 2;
      if (lead == 0xe0) low = 0xa0;
      if (lead == 0xed) high = 0x9f;
    } else if (lead >= 0xf0 && lead <= 0xf4) {
      more = 3;
      if (lead == 0xf0) low = 0x90;
      if (lead == 0xf4) high = 0x8f;
    } else {
      return false;
    }
    for (int i = 0; i < more; ++i) {
      if (p == end || *p < low || *p > high) return false;
      low = 0x80;
      high = 0xbf;
      ++p;
    }
  }
  return true;
}

// Reads {name: {dtype, shape, data_offsets}, "__metadata__": {string: string}} event by event: a
// header may have 100 MB, and a DOM would drop duplicate names.
class HeaderHandler final : public nlohmann::json_sax<Json> {
 public:
  explicit HeaderHandler(SafetensorsHeader& header) : header_(header) {}
  const std::string& error() const { return error_; }

  bool start_object(std::size_t) override {
    switch (state_) {
      case State::kStart:
        state_ = State::kNames;
        return true;
      case State::kValue:
        if (is_metadata_) {
          state_ = State::kMetadata;
        } else {
          state_ = State::kFields;
          has_dtype_ = has_shape_ = has_offsets_ = false;
        }
        return true;
      default:
        return Fail("an object where none belongs");
    }
  }

  bool end_object() override {
    if (state_ == State::kFields && !(has_dtype_ && has_shape_ && has_offsets_)) {
      return Fail(!has_dtype_   ? "missing field dtype"
                  : !has_shape_ ? "missing field shape"
                                : "missing field data_offsets");
    }
    state_ = state_ == State::kNames ? State::kEnd : State::kNames;
    return true;
  }

  bool key(string_t& key) override {
    if (state_ == State::kNames) {
      if (!names_.insert(key).second) return Fail(absl::StrCat("duplicate name '", key, "'"));
      if (key.find('\0') != std::string::npos) return Fail("a name with a NUL character");
      is_metadata_ = key == kMetadataKey;
      if (!is_metadata_) {
        header_.tensors.emplace_back();
        header_.tensors.back().name = key;
      }
      state_ = State::kValue;
      return true;
    }
    if (state_ == State::kMetadata) {
      for (const auto& entry : header_.metadata) {
        if (entry.first == key) return Fail(absl::StrCat("duplicate metadata key '", key, "'"));
      }
      header_.metadata.emplace_back(key, "");
      return true;
    }
    if (key == "dtype" && !has_dtype_) {
      field_ = Field::kDtype;
    } else if (key == "shape" && !has_shape_) {
      field_ = Field::kShape;
    } else if (key == "data_offsets" && !has_offsets_) {
      field_ = Field::kOffsets;
    } else {
      return Fail(absl::StrCat("unknown or repeated field '", key, "'"));
    }
    return true;
  }

  bool string(string_t& value) override {
    if (state_ == State::kMetadata) {
      header_.metadata.back().second = value;
      return true;
    }
    if (state_ == State::kFields && field_ == Field::kDtype) {
      const absl::StatusOr<TensorDtype> dtype = ParseDtype(value);
      if (!dtype.ok()) return Fail(dtype.status().message());
      header_.tensors.back().dtype = *dtype;
      has_dtype_ = true;
      field_ = Field::kNone;
      return true;
    }
    return Fail("a string where none belongs");
  }

  bool start_array(std::size_t) override {
    if (state_ != State::kFields || (field_ != Field::kShape && field_ != Field::kOffsets)) {
      return Fail("an array where none belongs");
    }
    state_ = State::kNumbers;
    numbers_.clear();
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (state_ != State::kNumbers) return Fail("a number where none belongs");
    numbers_.push_back(value);
    return true;
  }

  bool end_array() override {
    TensorInfo& tensor = header_.tensors.back();
    if (field_ == Field::kOffsets) {
      if (numbers_.size() != 2) return Fail("data_offsets must be two numbers");
      tensor.begin = numbers_[0];
      tensor.end = numbers_[1];
      has_offsets_ = true;
    } else {
      // A dimension of 2^63 and more stays visible as a negative one; Validate refuses it.
      tensor.shape.assign(numbers_.begin(), numbers_.end());
      has_shape_ = true;
    }
    state_ = State::kFields;
    field_ = Field::kNone;
    return true;
  }

  bool null() override { return Fail("null"); }
  bool boolean(bool) override { return Fail("a boolean"); }
  bool number_integer(number_integer_t value) override {
    return Fail(absl::StrCat("the negative number ", value));
  }
  bool number_float(number_float_t, const string_t& text) override {
    return Fail(absl::StrCat("the number ", text, ", which is not an unsigned 64-bit integer"));
  }
  bool binary(binary_t&) override { return Fail("binary data"); }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    if (error_.empty()) error_ = absl::StrCat("invalid JSON at byte ", position);
    return false;
  }

 private:
  enum class State { kStart, kNames, kValue, kMetadata, kFields, kNumbers, kEnd };
  enum class Field { kNone, kDtype, kShape, kOffsets };

  bool Fail(absl::string_view problem) {
    const bool in_tensor = state_ != State::kStart && state_ != State::kNames && !is_metadata_ &&
                           !header_.tensors.empty();
    error_ = in_tensor ? absl::StrCat("tensor '", header_.tensors.back().name, "': ", problem)
                       : std::string(problem);
    return false;
  }

  SafetensorsHeader& header_;
  absl::flat_hash_set<std::string> names_;
  std::string error_;
  State state_ = State::kStart;
  Field field_ = Field::kNone;
  bool is_metadata_ = false;
  bool has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
  std::vector<uint64_t> numbers_;
};

// The bytes of one tensor, from its dtype and shape.
absl::StatusOr<uint64_t> TensorBytes(const TensorSpec& tensor, absl::string_view what) {
  const auto fault = [&](absl::string_view name, absl::string_view detail) {
    return Fault(what, name,
                 absl::StrCat("tensor '", tensor.name, "' of shape [",
                              absl::StrJoin(tensor.shape, ", "), "]: ", detail));
  };
  uint64_t elements = 1;
  for (int64_t dim : tensor.shape) {
    if (dim < 0) return fault("ValidationOverflow", "a dimension is 2^63 or more");
    if (__builtin_mul_overflow(elements, static_cast<uint64_t>(dim), &elements)) {
      return fault("ValidationOverflow", "the number of elements exceeds 64 bits");
    }
  }
  uint64_t bits;
  if (__builtin_mul_overflow(elements, static_cast<uint64_t>(DtypeBits(tensor.dtype)), &bits)) {
    return fault("ValidationOverflow", "the number of bits exceeds 64 bits");
  }
  if (bits % 8 != 0) {
    return fault("MisalignedSlice", absl::StrCat(bits, " bits do not fill whole bytes"));
  }
  return bits / 8;
}

// Checks 6 to 10 of the reference, in its order.
absl::Status Validate(const SafetensorsHeader& header, absl::string_view what) {
  uint64_t end = 0;
  for (const TensorInfo& tensor : header.tensors) {
    if (tensor.begin != end || tensor.end < tensor.begin) {
      return Fault(what, "InvalidOffset",
                   absl::StrCat("tensor '", tensor.name, "' is at [", tensor.begin, ", ",
                                tensor.end, "), the one before ends at ", end));
    }
    end = tensor.end;
    ASSIGN_OR_RETURN(const uint64_t bytes, TensorBytes(tensor, what));
    if (tensor.end - tensor.begin != bytes) {
      return Fault(what, "TensorInvalidInfo",
                   absl::StrCat("tensor '", tensor.name, "': ", DtypeName(tensor.dtype), " [",
                                absl::StrJoin(tensor.shape, ", "), "] has ", bytes,
                                " bytes, data_offsets give ", tensor.end - tensor.begin));
    }
  }
  // data_offset <= file_bytes was checked; the sum could overflow.
  if (end != header.file_bytes - header.data_offset) {
    return Fault(what, "MetadataIncompleteBuffer",
                 absl::StrCat("the tensors end at byte ", end, " of the data, which has ",
                              header.file_bytes - header.data_offset));
  }
  return absl::OkStatus();
}

}  // namespace

absl::string_view DtypeName(TensorDtype dtype) { return kDtypes[static_cast<size_t>(dtype)].name; }

int DtypeBits(TensorDtype dtype) { return kDtypes[static_cast<size_t>(dtype)].bits; }

absl::StatusOr<TensorDtype> ParseDtype(absl::string_view name) {
  for (size_t i = 0; i < std::size(kDtypes); ++i) {
    if (kDtypes[i].name == name) return static_cast<TensorDtype>(i);
  }
  return absl::InvalidArgumentError(absl::StrCat("unknown dtype '", name, "'"));
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view head,
                                                         uint64_t file_bytes,
                                                         absl::string_view what) {
  if (head.size() < kLengthBytes || file_bytes < kLengthBytes) {
    return Fault(what, "HeaderTooSmall",
                 absl::StrCat("the file has ", file_bytes, " bytes, the header's length needs 8"));
  }
  uint64_t length;
  memcpy(&length, head.data(), kLengthBytes);
  if (length > kMaxHeaderBytes) {
    return Fault(what, "HeaderTooLarge",
                 absl::StrCat("header of ", length, " bytes, the limit is ", kMaxHeaderBytes));
  }
  if (length > file_bytes - kLengthBytes || length > head.size() - kLengthBytes) {
    return Fault(what, "InvalidHeaderLength",
                 absl::StrCat("header of ", length, " bytes in a file of ", file_bytes));
  }
  const absl::string_view text = head.substr(kLengthBytes, length);
  if (!IsUtf8(text)) return Fault(what, "InvalidHeader", "the header is not UTF-8");
  if (text.empty() || text[0] != '{') {
    return Fault(what, "InvalidHeaderDeserialization", "the header does not start with '{'");
  }
  SafetensorsHeader header;
  header.data_offset = kLengthBytes + length;
  header.file_bytes = file_bytes;
  HeaderHandler handler(header);
  if (!Json::sax_parse(text.begin(), text.end(), &handler)) {
    return Fault(what, "InvalidHeaderDeserialization", handler.error());
  }
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) {
              return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
            });
  RETURN_IF_ERROR(Validate(header, what));
  return header;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("open", path, errno);
  struct stat st;
  if (::fstat(fd.get(), &st) != 0) return ErrnoStatus("stat", path, errno);
  if (!S_ISREG(st.st_mode)) return Fault(path, "HeaderTooSmall", "not a regular file");
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile);
  file->path_ = path;
  const size_t size = static_cast<size_t>(st.st_size);
  if (size > 0) {
    void* map = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd.get(), 0);
    if (map == MAP_FAILED) return ErrnoStatus("mmap", path, errno);
    file->map_ = map;
    file->map_bytes_ = size;
  }
  ASSIGN_OR_RETURN(file->header_,
                   ParseSafetensorsHeader(
                       absl::string_view(static_cast<const char*>(file->map_), size), size, path));
  for (size_t i = 0; i < file->header_.tensors.size(); ++i) {
    file->by_name_.emplace(file->header_.tensors[i].name, i);
  }
  return file;
}

SafetensorsFile::~SafetensorsFile() {
  if (map_ != nullptr) ::munmap(map_, map_bytes_);
}

const TensorInfo* SafetensorsFile::Find(absl::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &header_.tensors[it->second];
}

absl::string_view SafetensorsFile::Bytes(const TensorInfo& tensor) const {
  return absl::string_view(static_cast<const char*>(map_) + header_.data_offset + tensor.begin,
                           tensor.end - tensor.begin);
}

absl::StatusOr<SafetensorsLayout> LayOutSafetensors(std::vector<TensorSpec> tensors,
                                                    const SafetensorsMetadata& metadata) {
  constexpr absl::string_view kWhat = "lay out safetensors";
  std::sort(tensors.begin(), tensors.end(), [](const TensorSpec& a, const TensorSpec& b) {
    return a.dtype != b.dtype ? a.dtype > b.dtype : a.name < b.name;
  });
  SafetensorsLayout layout;
  absl::flat_hash_set<std::string> names = {kMetadataKey};
  // Written by hand: a DOM of 100,000 experts would be ten times the text.
  std::string json = "{";
  if (!metadata.empty()) {
    absl::StrAppend(&json, "\"", kMetadataKey, "\":{");
    for (size_t i = 0; i < metadata.size(); ++i) {
      absl::StrAppend(&json, i == 0 ? "" : ",", DumpJson(metadata[i].first), ":",
                      DumpJson(metadata[i].second));
    }
    json += "}";
  }
  uint64_t end = 0;
  for (TensorSpec& spec : tensors) {
    if (!names.insert(spec.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(kWhat, ": duplicate or reserved name '", spec.name, "'"));
    }
    ASSIGN_OR_RETURN(const uint64_t bytes, TensorBytes(spec, kWhat));
    TensorInfo info;
    static_cast<TensorSpec&>(info) = std::move(spec);
    info.begin = end;
    if (__builtin_add_overflow(end, bytes, &end)) {
      return Fault(kWhat, "ValidationOverflow", "the file exceeds 64 bits");
    }
    info.end = end;
    absl::StrAppend(&json, json.size() > 1 ? "," : "", DumpJson(info.name), ":{\"dtype\":\"",
                    DtypeName(info.dtype), "\",\"shape\":[", absl::StrJoin(info.shape, ","),
                    "],\"data_offsets\":[", info.begin, ",", info.end, "]}");
    layout.tensors.push_back(std::move(info));
  }
  json += "}";
  json.resize((json.size() + 7) / 8 * 8, ' ');
  if (json.size() > kMaxHeaderBytes) {
    return Fault(kWhat, "HeaderTooLarge",
                 absl::StrCat("header of ", json.size(), " bytes, the limit is ", kMaxHeaderBytes));
  }
  const uint64_t length = json.size();
  layout.head.assign(reinterpret_cast<const char*>(&length), kLengthBytes);
  layout.head += json;
  if (__builtin_add_overflow(layout.head.size(), end, &layout.file_bytes)) {
    return Fault(kWhat, "ValidationOverflow", "the file exceeds 64 bits");
  }
  return layout;
}

}  // namespace switchyard

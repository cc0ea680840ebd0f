#include "worker/trainer/data/token_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/crc32c.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

constexpr char kMagic[] = "SYTOKEN1";
constexpr size_t kMagicBytes = 8;
constexpr size_t kPrefixBytes = 16;  // magic and header length
constexpr size_t kAlignment = 64;
constexpr uint64_t kMaxHeaderBytes = 1 << 20;

uint64_t AlignUp(uint64_t value) { return (value + kAlignment - 1) / kAlignment * kAlignment; }

// One section: its name and its bytes in memory.
struct Section {
  const char* name;
  absl::string_view data;
};

template <typename T>
absl::string_view AsBytes(const std::vector<T>& values) {
  return absl::string_view(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

// `starts` cut [0, total) into pieces that are not empty; the closing entry is included.
absl::Status CheckStarts(absl::string_view what, absl::string_view name,
                         absl::Span<const int64_t> starts, int64_t total) {
  if (starts.empty() || starts.front() != 0 || starts.back() != total) {
    return absl::InvalidArgumentError(absl::StrCat(
        what, ": section ", name, " must go from 0 to ", total, ", goes from ",
        starts.empty() ? -1 : starts.front(), " to ", starts.empty() ? -1 : starts.back()));
  }
  for (size_t i = 1; i < starts.size(); ++i) {
    if (starts[i] <= starts[i - 1]) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, ": section ", name, ": entry ", i, " is ", starts[i],
                       ", not above the one before, ", starts[i - 1]));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckRowLengths(absl::string_view what, absl::Span<const int64_t> documents,
                             absl::Span<const int64_t> rows, int64_t row_length) {
  for (size_t r = 0; r + 1 < rows.size(); ++r) {
    const int64_t length = documents[rows[r + 1]] - documents[rows[r]];
    if (length > row_length) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, ": row ", r, " has ", length, " tokens, row_length is ", row_length));
    }
  }
  return absl::OkStatus();
}

// Ids in [0, vocab_size), flags 0 or 1, and 0 for the first token of each document.
absl::Status CheckTokens(absl::string_view what, absl::Span<const int32_t> tokens,
                         absl::Span<const uint8_t> supervised, absl::Span<const int64_t> documents,
                         int64_t vocab_size) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(what, ": token ", i, " has id ", tokens[i],
                                                     ", outside [0, ", vocab_size, ")"));
    }
    if (supervised[i] > 1) {
      return absl::InvalidArgumentError(absl::StrCat(what, ": supervised flag ", i, " is ",
                                                     static_cast<int>(supervised[i]),
                                                     ", must be 0 or 1"));
    }
  }
  for (size_t d = 0; d + 1 < documents.size(); ++d) {
    if (supervised[documents[d]] != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, ": the first token of document ", d,
                       " is marked as a target, but nothing precedes it"));
    }
  }
  return absl::OkStatus();
}

// The header of a file with these sections, ending at a multiple of kAlignment. Section offsets
// depend on the header's length, which depends on their digits: repeated until it fits.
std::string MakeHeader(Json fields, const std::vector<Section>& sections) {
  uint64_t header_bytes = AlignUp(kPrefixBytes + 256) - kPrefixBytes;
  while (true) {
    uint64_t offset = kPrefixBytes + header_bytes;
    Json list = Json::object();
    for (const Section& section : sections) {
      offset = AlignUp(offset);
      list[section.name] = {{"offset", offset}, {"bytes", section.data.size()}};
      offset += section.data.size();
    }
    fields["sections"] = std::move(list);
    std::string text = DumpJson(fields);
    if (text.size() <= header_bytes) {
      text.resize(header_bytes, ' ');
      return text;
    }
    header_bytes = AlignUp(kPrefixBytes + text.size()) - kPrefixBytes;
  }
}

absl::Status WritePieces(int fd, const std::vector<absl::string_view>& pieces,
                         const std::string& path) {
  for (absl::string_view piece : pieces) RETURN_IF_ERROR(WriteAll(fd, piece, path));
  if (::fsync(fd) != 0) return ErrnoStatus("fsync", path, errno);
  return absl::OkStatus();
}

std::string FolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

absl::Status WriteTokenFile(const std::string& path, const TokenData& data) {
  const std::string what = absl::StrCat("write ", path);
  if (data.supervised.size() != data.tokens.size()) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": ", data.tokens.size(), " tokens but ",
                                                   data.supervised.size(), " supervised flags"));
  }
  std::vector<int64_t> documents = data.documents;
  documents.push_back(static_cast<int64_t>(data.tokens.size()));
  std::vector<int64_t> rows = data.rows;
  rows.push_back(static_cast<int64_t>(data.documents.size()));
  RETURN_IF_ERROR(
      CheckStarts(what, "documents", documents, static_cast<int64_t>(data.tokens.size())));
  RETURN_IF_ERROR(CheckStarts(what, "rows", rows, static_cast<int64_t>(data.documents.size())));
  RETURN_IF_ERROR(CheckRowLengths(what, documents, rows, data.row_length));
  const int64_t vocab_size =
      data.tokens.empty() ? 0
                          : int64_t{*std::max_element(data.tokens.begin(), data.tokens.end())} + 1;
  RETURN_IF_ERROR(CheckTokens(what, data.tokens, data.supervised, documents, vocab_size));

  const std::vector<Section> sections = {{"tokens", AsBytes(data.tokens)},
                                         {"supervised", AsBytes(data.supervised)},
                                         {"documents", AsBytes(documents)},
                                         {"rows", AsBytes(rows)}};
  // Sections with the zeros that bring each to its place; the header itself ends aligned.
  static constexpr char kZeros[kAlignment] = {};
  std::vector<absl::string_view> pieces(1);
  uint32_t crc = 0;
  uint64_t end = 0;
  for (const Section& section : sections) {
    pieces.emplace_back(kZeros, AlignUp(end) - end);
    pieces.push_back(section.data);
    end = AlignUp(end) + section.data.size();
  }
  for (absl::string_view piece : pieces) crc = Crc32c(crc, piece.data(), piece.size());

  int64_t supervised_tokens = 0;
  for (uint8_t flag : data.supervised) supervised_tokens += flag;
  Json fields = {{"version", 1},
                 {"num_tokens", data.tokens.size()},
                 {"num_documents", data.documents.size()},
                 {"num_rows", data.rows.size()},
                 {"row_length", data.row_length},
                 {"vocab_size", vocab_size},
                 {"supervised_tokens", supervised_tokens},
                 {"fingerprint", data.fingerprint},
                 {"crc32c", absl::StrFormat("%08x", crc)}};
  const std::string header = MakeHeader(std::move(fields), sections);
  std::string head(kMagic, kMagicBytes);
  const uint64_t header_bytes = header.size();
  head.append(reinterpret_cast<const char*>(&header_bytes), sizeof(header_bytes));
  head += header;
  pieces[0] = head;

  const std::string temporary = absl::StrCat(path, ".tmp.", ::getpid());
  UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!fd.valid()) return ErrnoStatus("create", temporary, errno);
  absl::Status written = WritePieces(fd.get(), pieces, temporary);
  if (written.ok() && ::rename(temporary.c_str(), path.c_str()) != 0) {
    written = ErrnoStatus("rename to", path, errno);
  }
  if (!written.ok()) {
    ::unlink(temporary.c_str());
    return written;
  }
  return SyncFolder(FolderOf(path));
}

namespace {

// A header field; a missing one is a broken file, not a missing file.
template <typename T>
absl::StatusOr<T> Field(const std::string& path, const Json& object, const char* key) {
  absl::StatusOr<T> value = JsonGet<T>(object, key);
  if (value.ok()) return value;
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": not a valid header: ", value.status().message()));
}

// The bytes of section `name` as T[count], checked against the file's size.
template <typename T>
absl::StatusOr<absl::Span<const T>> MapSection(const std::string& path, absl::string_view file,
                                               const Json& sections, const char* name,
                                               int64_t count) {
  const Json* entry = JsonFind(sections, name);
  if (entry == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": header has no section ", name));
  }
  ASSIGN_OR_RETURN(const int64_t offset, Field<int64_t>(path, *entry, "offset"));
  ASSIGN_OR_RETURN(const int64_t bytes, Field<int64_t>(path, *entry, "bytes"));
  if (count < 0 || count > std::numeric_limits<int64_t>::max() / static_cast<int64_t>(sizeof(T)) ||
      bytes != count * static_cast<int64_t>(sizeof(T))) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": section ", name, " has ", bytes,
                                                   " bytes, ", count, " entries of ", sizeof(T),
                                                   " were stated"));
  }
  if (offset < 0 || offset % static_cast<int64_t>(kAlignment) != 0 ||
      static_cast<uint64_t>(offset) > file.size() ||
      static_cast<uint64_t>(bytes) > file.size() - static_cast<uint64_t>(offset)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": section ", name, " is at ", offset,
                                                   " + ", bytes, " bytes, the file has ",
                                                   file.size(), ": truncated?"));
  }
  return absl::Span<const T>(reinterpret_cast<const T*>(file.data() + offset),
                             static_cast<size_t>(count));
}

}  // namespace

absl::StatusOr<std::unique_ptr<TokenFile>> TokenFile::Open(const std::string& path, bool verify) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("open", path, errno);
  struct stat st;
  if (::fstat(fd.get(), &st) != 0) return ErrnoStatus("stat", path, errno);
  const uint64_t size = static_cast<uint64_t>(st.st_size);
  if (!S_ISREG(st.st_mode) || size < kPrefixBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a token file: ", size, " bytes, even an empty one has more"));
  }
  std::unique_ptr<TokenFile> result(new TokenFile);
  void* map = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (map == MAP_FAILED) return ErrnoStatus("mmap", path, errno);
  result->map_ = map;
  result->map_bytes_ = size;
  const absl::string_view file(static_cast<const char*>(map), size);

  if (memcmp(file.data(), kMagic, kMagicBytes) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a token file: it does not start with ", kMagic));
  }
  uint64_t header_bytes = 0;
  memcpy(&header_bytes, file.data() + kMagicBytes, sizeof(header_bytes));
  if (header_bytes > kMaxHeaderBytes || header_bytes > size - kPrefixBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": header of ", header_bytes,
                                                   " bytes, the file has ", size, ": truncated?"));
  }
  ASSIGN_OR_RETURN(const Json header, ParseJson(file.substr(kPrefixBytes, header_bytes),
                                                absl::StrCat("header of ", path)));
  if (!header.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": the header is not a JSON object"));
  }
  ASSIGN_OR_RETURN(const int64_t version, Field<int64_t>(path, header, "version"));
  if (version != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": version ", version, ", this program reads version 1"));
  }
  ASSIGN_OR_RETURN(const int64_t num_tokens, Field<int64_t>(path, header, "num_tokens"));
  ASSIGN_OR_RETURN(const int64_t num_documents, Field<int64_t>(path, header, "num_documents"));
  ASSIGN_OR_RETURN(const int64_t num_rows, Field<int64_t>(path, header, "num_rows"));
  ASSIGN_OR_RETURN(result->row_length_, Field<int64_t>(path, header, "row_length"));
  ASSIGN_OR_RETURN(result->vocab_size_, Field<int64_t>(path, header, "vocab_size"));
  ASSIGN_OR_RETURN(result->supervised_tokens_, Field<int64_t>(path, header, "supervised_tokens"));
  ASSIGN_OR_RETURN(result->fingerprint_, Field<std::string>(path, header, "fingerprint"));
  ASSIGN_OR_RETURN(const std::string crc, Field<std::string>(path, header, "crc32c"));
  const Json* sections = JsonFind(header, "sections");
  if (sections == nullptr || num_tokens < 0 || num_documents < 0 || num_rows < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": header has no sections or negative counts"));
  }
  ASSIGN_OR_RETURN(result->tokens_,
                   MapSection<int32_t>(path, file, *sections, "tokens", num_tokens));
  ASSIGN_OR_RETURN(result->supervised_,
                   MapSection<uint8_t>(path, file, *sections, "supervised", num_tokens));
  // The counts were stated by the file: one more must not overflow before the bounds check.
  constexpr int64_t kMaxCount = std::numeric_limits<int64_t>::max() - 1;
  ASSIGN_OR_RETURN(result->documents_, MapSection<int64_t>(path, file, *sections, "documents",
                                                           std::min(num_documents, kMaxCount) + 1));
  ASSIGN_OR_RETURN(result->rows_, MapSection<int64_t>(path, file, *sections, "rows",
                                                      std::min(num_rows, kMaxCount) + 1));
  RETURN_IF_ERROR(CheckStarts(path, "documents", result->documents_, num_tokens));
  RETURN_IF_ERROR(CheckStarts(path, "rows", result->rows_, num_documents));
  RETURN_IF_ERROR(CheckRowLengths(path, result->documents_, result->rows_, result->row_length_));
  if (verify) {
    const absl::string_view body = file.substr(kPrefixBytes + header_bytes);
    const std::string found = absl::StrFormat("%08x", Crc32c(body));
    if (found != crc) {
      return absl::DataLossError(
          absl::StrCat(path, ": crc32c is ", found, ", the header states ", crc));
    }
    RETURN_IF_ERROR(CheckTokens(path, result->tokens_, result->supervised_, result->documents_,
                                result->vocab_size_));
    int64_t supervised = 0;
    for (uint8_t flag : result->supervised_) supervised += flag;
    if (supervised != result->supervised_tokens_) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": ", supervised,
                                                     " supervised tokens, the header states ",
                                                     result->supervised_tokens_));
    }
  }
  return result;
}

TokenFile::~TokenFile() {
  if (map_ != nullptr) ::munmap(map_, map_bytes_);
}

}  // namespace switchyard

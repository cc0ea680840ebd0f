// A prepared data set: tokenized documents, grouped into rows, in one file that trainers mmap.
// Written by switchyard-prep. Torch-free.
//
// Layout, little-endian, every section at a multiple of 64 bytes:
//   magic "SYTOKEN1" | u64 header bytes | header, JSON | sections at the offsets the header states
//     tokens      int32 [num_tokens]          documents back to back, in row order
//     supervised  uint8 [num_tokens]          1: the token is a target (its predecessor inside the
//                                             document predicts it); a document's first token is 0
//     documents   int64 [num_documents + 1]   first token of each document, then num_tokens
//     rows        int64 [num_rows + 1]        first document of each row, then num_documents
// Header keys: version (1), num_tokens, num_documents, num_rows, row_length (capacity of a row in
// tokens), vocab_size (1 + the largest id), supervised_tokens, fingerprint (hex digest of inputs
// and settings), crc32c (of everything after the header), sections {name: {offset, bytes}}. There
// is no padding in the file: rows hold real tokens only.
#ifndef SWITCHYARD_WORKER_TRAINER_DATA_TOKEN_FILE_H_
#define SWITCHYARD_WORKER_TRAINER_DATA_TOKEN_FILE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace switchyard {

// What a writer collects. Documents in row order.
struct TokenData {
  std::vector<int32_t> tokens;
  std::vector<uint8_t> supervised;  // same size
  std::vector<int64_t> documents;   // starts; the closing entry is added by the writer
  std::vector<int64_t> rows;        // first document of each row; likewise
  int64_t row_length = 0;
  std::string fingerprint;
};

// Writes `path` atomically (temporary file, fsync, rename).
// Errors: InvalidArgument: sizes that contradict each other, a row longer than row_length, a
// negative token; else as the file system.
absl::Status WriteTokenFile(const std::string& path, const TokenData& data);

// A mapped token file. Immutable, thread-safe; spans live as long as the object.
class TokenFile {
 public:
  // `verify` also reads everything once and compares the crc32c.
  // Errors: NotFound; InvalidArgument: not a token file, truncated (both sizes), inconsistent
  // sections; DataLoss: wrong checksum.
  static absl::StatusOr<std::unique_ptr<TokenFile>> Open(const std::string& path, bool verify);
  ~TokenFile();
  TokenFile(const TokenFile&) = delete;
  TokenFile& operator=(const TokenFile&) = delete;

  absl::Span<const int32_t> tokens() const { return tokens_; }
  absl::Span<const uint8_t> supervised() const { return supervised_; }
  absl::Span<const int64_t> documents() const { return documents_; }  // num_documents + 1
  absl::Span<const int64_t> rows() const { return rows_; }            // num_rows + 1
  int64_t num_rows() const { return static_cast<int64_t>(rows_.size()) - 1; }
  int64_t row_length() const { return row_length_; }
  int64_t vocab_size() const { return vocab_size_; }
  int64_t supervised_tokens() const { return supervised_tokens_; }
  const std::string& fingerprint() const { return fingerprint_; }

 private:
  TokenFile() = default;
  void* map_ = nullptr;
  size_t map_bytes_ = 0;
  absl::Span<const int32_t> tokens_;
  absl::Span<const uint8_t> supervised_;
  absl::Span<const int64_t> documents_;
  absl::Span<const int64_t> rows_;
  int64_t row_length_ = 0;
  int64_t vocab_size_ = 0;
  int64_t supervised_tokens_ = 0;
  std::string fingerprint_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_DATA_TOKEN_FILE_H_

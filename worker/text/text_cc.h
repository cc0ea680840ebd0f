// text.h for C++: owners that free themselves, and Status for errors. Built without exceptions.
#ifndef SWITCHYARD_WORKER_TEXT_TEXT_CC_H_
#define SWITCHYARD_WORKER_TEXT_TEXT_CC_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "worker/text/text.h"

namespace switchyard {

// A half-open range of bytes of a text.
struct ByteSpan {
  uint64_t begin = 0;
  uint64_t end = 0;
  friend bool operator==(const ByteSpan&, const ByteSpan&) = default;
};

// The ids of a batch of texts. Immutable; spans live as long as the object.
class Encodings {
 public:
  explicit Encodings(sy_encodings* handle, size_t count) : handle_(handle), count_(count) {}
  size_t size() const { return count_; }
  absl::Span<const uint32_t> ids(size_t index) const {
    return {sy_encodings_ids(handle_.get()) + start(index), length(index)};
  }
  // begin, end, begin, end, ... of text `index`; empty unless offsets were asked for.
  absl::Span<const uint32_t> offsets(size_t index) const {
    const uint32_t* all = sy_encodings_offsets(handle_.get());
    if (all == nullptr) return {};
    return {all + 2 * start(index), 2 * length(index)};
  }

 private:
  struct Free {
    void operator()(sy_encodings* handle) const { sy_encodings_free(handle); }
  };
  size_t start(size_t index) const { return sy_encodings_starts(handle_.get())[index]; }
  size_t length(size_t index) const { return start(index + 1) - start(index); }

  std::unique_ptr<sy_encodings, Free> handle_;
  size_t count_;
};

enum class Offsets { kNone, kBytes, kCodePoints };

// Thread-safe after Open.
class Tokenizer {
 public:
  // `path`: a model folder or a tokenizer.json. Errors: InvalidArgument, with the file.
  static absl::StatusOr<Tokenizer> Open(const std::string& path);

  uint32_t vocab_size() const { return sy_tokenizer_vocab_size(handle_.get()); }
  std::optional<uint32_t> TokenToId(absl::string_view token) const;
  bool IsAdded(uint32_t id) const { return sy_tokenizer_is_added(handle_.get(), id); }
  // The content of "eos_token" and the like.
  std::optional<std::string> Special(const char* name) const;
  // The chat template called "default" or "tool_use".
  std::optional<std::string> Template(const char* name) const;
  // Errors: InvalidArgument: a text is not UTF-8.
  absl::StatusOr<Encodings> Encode(absl::Span<const absl::string_view> texts, bool add_special,
                                   Offsets offsets) const;
  absl::StatusOr<std::string> Decode(absl::Span<const uint32_t> ids, bool skip_special) const;

  const sy_tokenizer* handle() const { return handle_.get(); }

 private:
  struct Free {
    void operator()(sy_tokenizer* handle) const { sy_tokenizer_free(handle); }
  };
  explicit Tokenizer(sy_tokenizer* handle) : handle_(handle) {}
  std::unique_ptr<sy_tokenizer, Free> handle_;
};

// The outcome of rendering a batch of contexts. Immutable.
class Renders {
 public:
  explicit Renders(sy_renders* handle) : handle_(handle) {}
  // InvalidArgument with the template's line when this context did not render.
  absl::Status status(size_t index) const;
  absl::string_view text(size_t index) const {
    const sy_view view = sy_renders_text(handle_.get(), index);
    return {view.data, view.size};
  }
  // What {% generation %} blocks wrote, by begin.
  std::vector<ByteSpan> spans(size_t index) const;

 private:
  struct Free {
    void operator()(sy_renders* handle) const { sy_renders_free(handle); }
  };
  std::unique_ptr<sy_renders, Free> handle_;
};

// Thread-safe after Compile.
class ChatTemplate {
 public:
  // The tokenizer's bos_token, eos_token, ... become variables; it may be null and is not kept.
  // Errors: InvalidArgument with the line.
  static absl::StatusOr<ChatTemplate> Compile(absl::string_view source, const Tokenizer* tokenizer);

  bool has_generation() const { return sy_template_has_generation(handle_.get()); }
  // Each context is a JSON object. Faults of single contexts are in Renders.
  absl::StatusOr<Renders> Render(absl::Span<const std::string> contexts) const;

 private:
  struct Free {
    void operator()(sy_template* handle) const { sy_template_free(handle); }
  };
  explicit ChatTemplate(sy_template* handle) : handle_(handle) {}
  std::unique_ptr<sy_template, Free> handle_;
};

// A file's bytes, unpacked; parquet as JSON lines. One thread.
class ByteSource {
 public:
  // Errors: NotFound for a missing file, else InvalidArgument.
  static absl::StatusOr<ByteSource> Open(const std::string& path);
  bool is_parquet() const { return sy_source_is_parquet(handle_.get()); }
  // Appends up to `capacity` bytes to `out`; the number appended, 0 at the end.
  // Errors: DataLoss: damaged or truncated.
  absl::StatusOr<size_t> Read(size_t capacity, std::string* out);

 private:
  struct Free {
    void operator()(sy_source* handle) const { sy_source_free(handle); }
  };
  ByteSource(sy_source* handle, std::string path) : handle_(handle), path_(std::move(path)) {}
  std::unique_ptr<sy_source, Free> handle_;
  std::string path_;
};

class Sha256 {
 public:
  Sha256() : handle_(sy_sha256_new()) {}
  void Update(absl::string_view data) {
    sy_sha256_update(handle_.get(), sy_view{data.data(), data.size()});
  }
  // 64 lower-case hex digits; the object starts anew.
  std::string Hex();

 private:
  struct Free {
    void operator()(sy_sha256* handle) const { sy_sha256_free(handle); }
  };
  std::unique_ptr<sy_sha256, Free> handle_;
};

// A tokenizer.json with a byte-level BPE trained on `texts`; see sy_train_bpe.
absl::StatusOr<std::string> TrainBpe(absl::Span<const absl::string_view> texts, uint32_t vocab_size,
                                     absl::Span<const absl::string_view> specials);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TEXT_TEXT_CC_H_

#include "worker/text/text_cc.h"

#include <sys/stat.h>

#include "absl/strings/str_cat.h"
#include "base/fd.h"

namespace switchyard {
namespace {

// Takes the message over.
absl::Status TakeError(char* error, absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
  absl::Status status(code, error == nullptr ? "bug: no message" : error);
  sy_string_free(error);
  return status;
}

std::string TakeString(char* text, size_t size) {
  std::string out(text, size);
  sy_string_free(text);
  return out;
}

template <typename String>
std::vector<sy_view> Views(absl::Span<const String> texts) {
  std::vector<sy_view> views;
  views.reserve(texts.size());
  for (const String& text : texts) views.push_back({text.data(), text.size()});
  return views;
}

std::optional<std::string> OptionalString(const char* text) {
  if (text == nullptr) return std::nullopt;
  return text;
}

}  // namespace

absl::StatusOr<Tokenizer> Tokenizer::Open(const std::string& path) {
  char* error = nullptr;
  sy_tokenizer* handle = sy_tokenizer_open(path.c_str(), &error);
  if (handle == nullptr) return TakeError(error);
  return Tokenizer(handle);
}

std::optional<uint32_t> Tokenizer::TokenToId(absl::string_view token) const {
  const int64_t id = sy_tokenizer_token_to_id(handle_.get(), {token.data(), token.size()});
  if (id < 0) return std::nullopt;
  return static_cast<uint32_t>(id);
}

std::optional<std::string> Tokenizer::Special(const char* name) const {
  return OptionalString(sy_tokenizer_special(handle_.get(), name));
}

std::optional<std::string> Tokenizer::Template(const char* name) const {
  return OptionalString(sy_tokenizer_chat_template(handle_.get(), name));
}

absl::StatusOr<Encodings> Tokenizer::Encode(absl::Span<const absl::string_view> texts,
                                            bool add_special, Offsets offsets) const {
  uint32_t flags = add_special ? SY_ENCODE_SPECIAL : 0;
  if (offsets == Offsets::kBytes) flags |= SY_ENCODE_BYTE_OFFSETS;
  if (offsets == Offsets::kCodePoints) flags |= SY_ENCODE_CHAR_OFFSETS;
  const std::vector<sy_view> views = Views(texts);
  char* error = nullptr;
  sy_encodings* out = sy_tokenizer_encode(handle_.get(), views.data(), views.size(), flags, &error);
  if (out == nullptr) return TakeError(error);
  return Encodings(out, texts.size());
}

absl::StatusOr<std::string> Tokenizer::Decode(absl::Span<const uint32_t> ids,
                                              bool skip_special) const {
  char* error = nullptr;
  size_t size = 0;
  char* text =
      sy_tokenizer_decode(handle_.get(), ids.data(), ids.size(), skip_special, &size, &error);
  if (text == nullptr) return TakeError(error);
  return TakeString(text, size);
}

absl::Status Renders::status(size_t index) const {
  const char* error = sy_renders_error(handle_.get(), index);
  if (error == nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("chat template, ", error));
}

std::vector<ByteSpan> Renders::spans(size_t index) const {
  size_t count = 0;
  const uint64_t* all = sy_renders_spans(handle_.get(), index, &count);
  std::vector<ByteSpan> spans(count);
  for (size_t i = 0; i < count; ++i) spans[i] = {all[2 * i], all[2 * i + 1]};
  return spans;
}

absl::StatusOr<ChatTemplate> ChatTemplate::Compile(absl::string_view source,
                                                   const Tokenizer* tokenizer) {
  char* error = nullptr;
  sy_template* handle = sy_template_compile(
      {source.data(), source.size()}, tokenizer == nullptr ? nullptr : tokenizer->handle(), &error);
  if (handle == nullptr) return TakeError(error);
  return ChatTemplate(handle);
}

absl::StatusOr<Renders> ChatTemplate::Render(absl::Span<const std::string> contexts) const {
  const std::vector<sy_view> views = Views(contexts);
  char* error = nullptr;
  sy_renders* out = sy_template_render(handle_.get(), views.data(), views.size(), &error);
  if (out == nullptr) return TakeError(error);
  return Renders(out);
}

absl::StatusOr<ByteSource> ByteSource::Open(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return ErrnoStatus("open", path, errno);
  char* error = nullptr;
  sy_source* handle = sy_source_open(path.c_str(), &error);
  if (handle == nullptr) return TakeError(error);
  return ByteSource(handle, path);
}

absl::StatusOr<size_t> ByteSource::Read(size_t capacity, std::string* out) {
  const size_t old_size = out->size();
  out->resize(old_size + capacity);
  char* error = nullptr;
  const int64_t count = sy_source_read(handle_.get(), out->data() + old_size, capacity, &error);
  out->resize(old_size + (count < 0 ? 0 : static_cast<size_t>(count)));
  if (count >= 0) return static_cast<size_t>(count);
  const absl::Status reason = TakeError(error, absl::StatusCode::kDataLoss);
  return absl::DataLossError(absl::StrCat("read ", path_, ": ", reason.message()));
}

std::string Sha256::Hex() {
  char hex[65];
  sy_sha256_hex(handle_.get(), hex);
  return std::string(hex, 64);
}

absl::StatusOr<std::string> TrainBpe(absl::Span<const absl::string_view> texts, uint32_t vocab_size,
                                     absl::Span<const absl::string_view> specials) {
  const std::vector<sy_view> views = Views(texts);
  const std::vector<sy_view> special_views = Views(specials);
  char* error = nullptr;
  size_t size = 0;
  char* json = sy_train_bpe(views.data(), views.size(), vocab_size, special_views.data(),
                            special_views.size(), &size, &error);
  if (json == nullptr) return TakeError(error);
  return TakeString(json, size);
}

}  // namespace switchyard

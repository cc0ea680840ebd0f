/* Tokenizers, chat templates, parquet and compressed files: the C face of the Rust library in this
 * folder. It wraps the `tokenizers`, `minijinja` and `parquet` crates; text_cc.h is the C++ face.
 *
 * Conventions
 *   Text is UTF-8. A sy_view borrows bytes and is not NUL-terminated.
 *   A function that can fail takes `char** error` last. On failure it stores a message there (free
 * it with sy_string_free) and returns NULL, false or -1. On success it leaves *error alone. Objects
 * are owned by the caller and freed by their own _free function, which accepts NULL. Pointers
 * returned by accessors live as long as the object. Tokenizers and templates are immutable and may
 * be used by several threads at once; every other object by one thread at a time. Batch calls use
 * RAYON_NUM_THREADS threads (default: all cores). A panic inside the library never crosses this
 * boundary: it becomes an error ("bug: ...").
 */
#ifndef SWITCHYARD_WORKER_TEXT_TEXT_H_
#define SWITCHYARD_WORKER_TEXT_TEXT_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sy_view {
  const char* data;
  size_t size;
} sy_view;

void sy_string_free(char* text);

/* ---- Tokenizers -------------------------------------------------------------------------------
 * The folder's tokenizer.json is used verbatim, but for `truncation` and `padding`, which are
 * ignored. Tokens that only tokenizer_config.json's added_tokens_decoder knows are added; one whose
 * id would come out different from the one stated there is an error. */
typedef struct sy_tokenizer sy_tokenizer;

/* `path`: a model folder or a tokenizer.json (whose folder is then searched for the side files). */
sy_tokenizer* sy_tokenizer_open(const char* path, char** error);
void sy_tokenizer_free(sy_tokenizer* tokenizer);
/* 1 + the largest token id. */
uint32_t sy_tokenizer_vocab_size(const sy_tokenizer* tokenizer);
/* -1: no such token. */
int64_t sy_tokenizer_token_to_id(const sy_tokenizer* tokenizer, sy_view token);
/* True for added tokens (control tokens such as <|im_end|>, whether marked special or not). */
bool sy_tokenizer_is_added(const sy_tokenizer* tokenizer, uint32_t id);
/* The content of "bos_token", "eos_token", "pad_token", ... of tokenizer_config.json or
 * special_tokens_map.json. NULL: not set. */
const char* sy_tokenizer_special(const sy_tokenizer* tokenizer, const char* name);
/* The chat template called `name` ("default", "tool_use"): chat_template.jinja first, then
 * tokenizer_config.json's chat_template. NULL: none. */
const char* sy_tokenizer_chat_template(const sy_tokenizer* tokenizer, const char* name);

/* The ids of a batch of texts, back to back. */
typedef struct sy_encodings sy_encodings;
enum {
  SY_ENCODE_SPECIAL = 1,      /* apply the post-processor (bos, eos) */
  SY_ENCODE_BYTE_OFFSETS = 2, /* offsets into the text, in bytes */
  SY_ENCODE_CHAR_OFFSETS = 4, /* offsets in code points, as Python reports them */
};
/* Errors: a text that is not UTF-8, by index. */
sy_encodings* sy_tokenizer_encode(const sy_tokenizer* tokenizer, const sy_view* texts, size_t count,
                                  uint32_t flags, char** error);
void sy_encodings_free(sy_encodings* encodings);
const uint32_t* sy_encodings_ids(const sy_encodings* encodings);
/* [begin, end) pairs, one per id; NULL unless offsets were asked for. (0, 0) for tokens that the
 * post-processor added. */
const uint32_t* sy_encodings_offsets(const sy_encodings* encodings);
/* [count + 1]: where each text's ids start. */
const uint64_t* sy_encodings_starts(const sy_encodings* encodings);

/* NUL-terminated (text with NULs is cut there; *size has the whole length). */
char* sy_tokenizer_decode(const sy_tokenizer* tokenizer, const uint32_t* ids, size_t count,
                          bool skip_special, size_t* size, char** error);

/* Trains a byte-level BPE (NFC, Qwen2's pre-tokenizer) and returns its tokenizer.json. The
 * `specials` get the first ids. The same texts give the same bytes, whatever the number of threads.
 * Errors: vocab_size below 256 + the number of specials; fewer merges in the texts than asked for
 * is no error. */
char* sy_train_bpe(const sy_view* texts, size_t count, uint32_t vocab_size, const sy_view* specials,
                   size_t num_specials, size_t* size, char** error);

/* ---- Chat templates ---------------------------------------------------------------------------
 * Jinja as Transformers sets it up: trim_blocks, lstrip_blocks, loop controls, no autoescape,
 * lenient undefined; tojson as json.dumps(ensure_ascii=False), raise_exception, strftime_now;
 * Python's str() when values are printed; Python's string, list and dict methods. `tools`,
 * `documents` are none and `add_generation_prompt` is false unless a context sets them. */
typedef struct sy_template sy_template;

/* `specials`: its bos_token, eos_token, ... become variables; may be NULL. Not kept. */
sy_template* sy_template_compile(sy_view source, const sy_tokenizer* specials, char** error);
void sy_template_free(sy_template* chat_template);
/* The source has a {% generation %} block. */
bool sy_template_has_generation(const sy_template* chat_template);

typedef struct sy_renders sy_renders;
/* Each context is a JSON object: the template's variables. A context that fails has an error of its
 * own and does not disturb the others. */
sy_renders* sy_template_render(const sy_template* chat_template, const sy_view* contexts,
                               size_t count, char** error);
void sy_renders_free(sy_renders* renders);
/* NULL: the render succeeded. Else why not: "line 3: ..." */
const char* sy_renders_error(const sy_renders* renders, size_t index);
sy_view sy_renders_text(const sy_renders* renders, size_t index);
/* Byte ranges [begin, end) of the text that {% generation %} blocks wrote, by begin. `*count` is
 * the number of pairs. Unlike Transformers, blocks inside macros and {% set %} blocks are found
 * too. */
const uint64_t* sy_renders_spans(const sy_renders* renders, size_t index, size_t* count);

/* ---- Files ------------------------------------------------------------------------------------
 * A stream of bytes: the file as it is, or unpacked when its first bytes say gzip or zstd (several
 * members or frames are read through). A parquet file reads as JSON lines, one row each, with
 * lists, structs and maps nested; bytes must be UTF-8, times are integers in the file's unit. */
typedef struct sy_source sy_source;
sy_source* sy_source_open(const char* path, char** error);
void sy_source_free(sy_source* source);
/* True when the stream is made of parquet rows. */
bool sy_source_is_parquet(const sy_source* source);
/* Up to `capacity` bytes; 0 at the end, -1 on error. */
int64_t sy_source_read(sy_source* source, char* buffer, size_t capacity, char** error);

/* ---- SHA-256 ----------------------------------------------------------------------------------
 */
typedef struct sy_sha256 sy_sha256;
sy_sha256* sy_sha256_new(void);
void sy_sha256_free(sy_sha256* hash);
void sy_sha256_update(sy_sha256* hash, sy_view data);
/* Writes 64 lower-case hex digits and a NUL; the object starts anew. */
void sy_sha256_hex(sy_sha256* hash, char hex[65]);

#ifdef __cplusplus
}
#endif

#endif /* SWITCHYARD_WORKER_TEXT_TEXT_H_ */

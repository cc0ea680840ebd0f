//! The C face; text.h says what each function promises. Every function checks its input, runs under
//! catch_unwind and turns errors into strings.
#![allow(clippy::missing_safety_doc)] // the contract of every function is text.h

mod python;
mod source;
mod template;
mod tokenizer;

use std::ffi::{c_char, CStr, CString};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;
use std::ptr;
use std::sync::Once;

use sha2::{Digest, Sha256};

use source::Source;
use template::{ChatTemplate, Render};
use tokenizer::{Encodings, Offsets, Tokenizer};

/// As a C string; NULs, which it cannot hold, become U+FFFD.
pub(crate) fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct View {
    data: *const c_char,
    size: usize,
}

impl View {
    unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.size == 0 {
            &[] // data may be NULL then
        } else {
            std::slice::from_raw_parts(self.data.cast(), self.size)
        }
    }

    unsafe fn text<'a>(self, what: &dyn Fn() -> String) -> Result<&'a str, String> {
        let fail = |error| format!("{}: invalid UTF-8 ({error})", what());
        std::str::from_utf8(self.bytes()).map_err(fail)
    }
}

unsafe fn views<'a>(data: *const View, count: usize) -> &'a [View] {
    if count == 0 {
        &[]
    } else {
        std::slice::from_raw_parts(data, count)
    }
}

unsafe fn texts<'a>(data: *const View, count: usize) -> Result<Vec<&'a str>, String> {
    let all = views(data, count).iter().enumerate();
    all.map(|(i, view)| view.text(&|| format!("text {i}"))).collect()
}

/// Runs `body`; an error or a panic lands in `*error` and `otherwise` is returned.
unsafe fn guard<T>(
    error: *mut *mut c_char,
    otherwise: T,
    body: impl FnOnce() -> Result<T, String>,
) -> T {
    static QUIET: Once = Once::new();
    // The panic's message goes to the caller, not to stderr.
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    let message = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => return value,
        Ok(Err(message)) => message,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            format!("bug: panic in the text library: {}", text.unwrap_or("no message"))
        }
    };
    if !error.is_null() {
        *error = give_text(&message.replace('\0', "\u{fffd}"), ptr::null_mut());
    }
    otherwise
}

unsafe fn path_of<'a>(path: *const c_char) -> Result<&'a str, String> {
    CStr::from_ptr(path).to_str().map_err(|_| "the path is not UTF-8".to_string())
}

unsafe fn free<T>(object: *mut T) {
    if !object.is_null() {
        drop(Box::from_raw(object));
    }
}

fn give<T>(object: T) -> *mut T {
    Box::into_raw(Box::new(object))
}

/// A malloc'd copy with a closing NUL, for sy_string_free. NULs inside stay; `*size` tells.
unsafe fn give_text(text: &str, size: *mut usize) -> *mut c_char {
    if !size.is_null() {
        *size = text.len();
    }
    let block = libc::malloc(text.len() + 1).cast::<u8>();
    if block.is_null() {
        std::process::abort(); // as Rust's own allocator does
    }
    ptr::copy_nonoverlapping(text.as_ptr(), block, text.len());
    *block.add(text.len()) = 0;
    block.cast()
}

#[no_mangle]
pub unsafe extern "C" fn sy_string_free(text: *mut c_char) {
    libc::free(text.cast());
}

// ---- Tokenizers

#[no_mangle]
pub unsafe extern "C" fn sy_tokenizer_open(
    path: *const c_char,
    error: *mut *mut c_char,
) -> *mut Tokenizer {
    guard(error, ptr::null_mut(), || Ok(give(Tokenizer::open(Path::new(path_of(path)?))?)))
}

#[no_mangle]
pub unsafe extern "C" fn sy_tokenizer_free(tokenizer: *mut Tokenizer) {
    free(tokenizer);
}

#[no_mangle]
pub unsafe extern "C" fn sy_tokenizer_vocab_size(tokenizer: *const Tokenizer) -> u32 {
    (*tokenizer).vocab_size
}

#[no_mangle]
pub unsafe extern "C" fn sy_tokenizer_token_to_id(tokenizer: *const Tokenizer, token: View) -> i64 {
    let id = std::str::from_utf8(token.bytes()).ok().and_then(|text| (*tokenizer).token_to_id(text));
    id.map_or(-1, i64::from)
}

#[no_mangle]
pub unsafe extern "C" fn sy_tokenizer_is_added(tokenizer: *const Tokenizer, id: u32) -> bool {
    (*tokenizer).is_added(id)
}

#[no_mangle]
pub unsafe extern "C" fn sy_tokenizer_special(
    tokenizer: *const Tokenizer,
    name: *const c_char,
) -> *const c_char {
    let found = path_of(name).ok().and_then(|name| (&(*tokenizer).specials).get(name));
    found.map_or(ptr::null(), |content| content.as_ptr())
}

#[no_mangle]
pub unsafe extern "C" fn sy_tokenizer_chat_template(
    tokenizer: *const Tokenizer,
    name: *const c_char,
) -> *const c_char {
    let found = path_of(name).ok().and_then(|name| (&(*tokenizer).templates).get(name));
    found.map_or(ptr::null(), |source| source.as_ptr())
}

const ENCODE_SPECIAL: u32 = 1;
const ENCODE_BYTE_OFFSETS: u32 = 2;
const ENCODE_CHAR_OFFSETS: u32 = 4;

#[no_mangle]
pub unsafe extern "C" fn sy_tokenizer_encode(
    tokenizer: *const Tokenizer,
    input: *const View,
    count: usize,
    flags: u32,
    error: *mut *mut c_char,
) -> *mut Encodings {
    guard(error, ptr::null_mut(), || {
        let offsets = if flags & ENCODE_CHAR_OFFSETS != 0 {
            Offsets::Chars
        } else if flags & ENCODE_BYTE_OFFSETS != 0 {
            Offsets::Bytes
        } else {
            Offsets::None
        };
        let special = flags & ENCODE_SPECIAL != 0;
        Ok(give((*tokenizer).encode(&texts(input, count)?, special, offsets)?))
    })
}

#[no_mangle]
pub unsafe extern "C" fn sy_encodings_free(encodings: *mut Encodings) {
    free(encodings);
}

#[no_mangle]
pub unsafe extern "C" fn sy_encodings_ids(encodings: *const Encodings) -> *const u32 {
    (&(*encodings).ids).as_ptr()
}

#[no_mangle]
pub unsafe extern "C" fn sy_encodings_offsets(encodings: *const Encodings) -> *const u32 {
    let (offsets, ids) = (&(*encodings).offsets, &(*encodings).ids);
    if offsets.is_empty() && !ids.is_empty() {
        ptr::null()
    } else {
        offsets.as_ptr()
    }
}

#[no_mangle]
pub unsafe extern "C" fn sy_encodings_starts(encodings: *const Encodings) -> *const u64 {
    (&(*encodings).starts).as_ptr()
}

#[no_mangle]
pub unsafe extern "C" fn sy_tokenizer_decode(
    tokenizer: *const Tokenizer,
    ids: *const u32,
    count: usize,
    skip_special: bool,
    size: *mut usize,
    error: *mut *mut c_char,
) -> *mut c_char {
    guard(error, ptr::null_mut(), || {
        let ids = if count == 0 { &[] } else { std::slice::from_raw_parts(ids, count) };
        Ok(give_text(&(*tokenizer).decode(ids, skip_special)?, size))
    })
}

#[no_mangle]
pub unsafe extern "C" fn sy_train_bpe(
    input: *const View,
    count: usize,
    vocab_size: u32,
    specials: *const View,
    num_specials: usize,
    size: *mut usize,
    error: *mut *mut c_char,
) -> *mut c_char {
    guard(error, ptr::null_mut(), || {
        let (input, specials) = (texts(input, count)?, texts(specials, num_specials)?);
        Ok(give_text(&tokenizer::train_bpe(&input, vocab_size as usize, &specials)?, size))
    })
}

// ---- Chat templates

#[no_mangle]
pub unsafe extern "C" fn sy_template_compile(
    source: View,
    specials: *const Tokenizer,
    error: *mut *mut c_char,
) -> *mut ChatTemplate {
    guard(error, ptr::null_mut(), || {
        let source = source.text(&|| "chat template".into())?;
        let names = specials.as_ref().map(|tokenizer| tokenizer.specials.iter());
        let variables = names.into_iter().flatten();
        let variables = variables.map(|(k, v)| (k.as_str(), v.to_str().unwrap_or_default()));
        Ok(give(ChatTemplate::compile(source, variables)?))
    })
}

#[no_mangle]
pub unsafe extern "C" fn sy_template_free(chat_template: *mut ChatTemplate) {
    free(chat_template);
}

#[no_mangle]
pub unsafe extern "C" fn sy_template_has_generation(chat_template: *const ChatTemplate) -> bool {
    (*chat_template).has_generation
}

#[no_mangle]
pub unsafe extern "C" fn sy_template_render(
    chat_template: *const ChatTemplate,
    contexts: *const View,
    count: usize,
    error: *mut *mut c_char,
) -> *mut Vec<Render> {
    guard(error, ptr::null_mut(), || {
        let contexts: Vec<&[u8]> = views(contexts, count).iter().map(|view| view.bytes()).collect();
        Ok(give((*chat_template).render(&contexts)))
    })
}

#[no_mangle]
pub unsafe extern "C" fn sy_renders_free(renders: *mut Vec<Render>) {
    free(renders);
}

#[no_mangle]
pub unsafe extern "C" fn sy_renders_error(renders: *const Vec<Render>, index: usize) -> *const c_char {
    let error = &(&*renders)[index].error;
    error.as_ref().map_or(ptr::null(), |message| message.as_ptr())
}

#[no_mangle]
pub unsafe extern "C" fn sy_renders_text(renders: *const Vec<Render>, index: usize) -> View {
    let text = &(&*renders)[index].text;
    View { data: text.as_ptr().cast(), size: text.len() }
}

#[no_mangle]
pub unsafe extern "C" fn sy_renders_spans(
    renders: *const Vec<Render>,
    index: usize,
    count: *mut usize,
) -> *const u64 {
    let spans = &(&*renders)[index].spans;
    *count = spans.len() / 2;
    spans.as_ptr()
}

// ---- Files

#[no_mangle]
pub unsafe extern "C" fn sy_source_open(path: *const c_char, error: *mut *mut c_char) -> *mut Source {
    guard(error, ptr::null_mut(), || Ok(give(Source::open(path_of(path)?)?)))
}

#[no_mangle]
pub unsafe extern "C" fn sy_source_free(source: *mut Source) {
    free(source);
}

#[no_mangle]
pub unsafe extern "C" fn sy_source_is_parquet(source: *const Source) -> bool {
    (*source).is_parquet
}

#[no_mangle]
pub unsafe extern "C" fn sy_source_read(
    source: *mut Source,
    buffer: *mut c_char,
    capacity: usize,
    error: *mut *mut c_char,
) -> i64 {
    guard(error, -1, || {
        if capacity == 0 {
            return Ok(0);
        }
        let buffer = std::slice::from_raw_parts_mut(buffer.cast(), capacity);
        Ok((*source).read(buffer)? as i64)
    })
}

// ---- SHA-256

#[no_mangle]
pub extern "C" fn sy_sha256_new() -> *mut Sha256 {
    give(Sha256::new())
}

#[no_mangle]
pub unsafe extern "C" fn sy_sha256_free(hash: *mut Sha256) {
    free(hash);
}

#[no_mangle]
pub unsafe extern "C" fn sy_sha256_update(hash: *mut Sha256, data: View) {
    (*hash).update(data.bytes());
}

#[no_mangle]
pub unsafe extern "C" fn sy_sha256_hex(hash: *mut Sha256, hex: *mut [u8; 65]) {
    let digest = (*hash).finalize_reset();
    for (i, byte) in digest.iter().enumerate() {
        for (j, nibble) in [byte >> 4, byte & 15].into_iter().enumerate() {
            (*hex)[2 * i + j] = b"0123456789abcdef"[nibble as usize];
        }
    }
    (*hex)[64] = 0;
}

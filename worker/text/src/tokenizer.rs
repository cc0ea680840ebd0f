//! tokenizer.json with its side files, and training of a byte-level BPE.
use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::Path;

use serde_json::Value as Json;
use tokenizers::models::bpe::{BpeTrainer, BPE};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, TokenizerBuilder};

pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pub vocab_size: u32,
    pub specials: BTreeMap<String, CString>,
    pub templates: BTreeMap<String, CString>,
}

#[derive(Default)]
pub struct Encodings {
    pub ids: Vec<u32>,
    pub offsets: Vec<u32>,
    pub starts: Vec<u64>,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Offsets {
    None,
    Bytes,
    Chars,
}

fn read_json(path: &Path) -> Result<Option<Json>, String> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("read {}: {error}", path.display())),
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| format!("parse {}: {error}", path.display()))
}

/// A special token is written as a string or as an AddedToken object.
fn token_content(value: &Json) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

fn added_token(fields: &Json) -> Option<AddedToken> {
    let flag = |name: &str, default: bool| fields.get(name).and_then(Json::as_bool).unwrap_or(default);
    let special = flag("special", false);
    Some(
        AddedToken::from(fields.get("content")?.as_str()?, special)
            .single_word(flag("single_word", false))
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .normalized(flag("normalized", !special)),
    )
}

impl Tokenizer {
    pub fn open(path: &Path) -> Result<Self, String> {
        let is_folder = path.is_dir();
        let folder = if is_folder { path } else { path.parent().unwrap_or(Path::new("")) };
        let file = if is_folder { path.join("tokenizer.json") } else { path.to_path_buf() };
        let text = std::fs::read(&file).map_err(|error| format!("read {}: {error}", file.display()))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&text)
            .map_err(|error| format!("parse {}: {error}", file.display()))?;
        inner.with_truncation(None).map_err(|error| error.to_string())?;
        inner.with_padding(None);

        let config = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or(Json::Null);
        add_missing_tokens(&mut inner, &config)
            .map_err(|error| format!("{}: {error}", folder.join("tokenizer_config.json").display()))?;
        let specials_map = read_json(&folder.join("special_tokens_map.json"))?.unwrap_or(Json::Null);
        let mut specials = BTreeMap::new();
        for source in [&specials_map, &config] {
            for name in ["bos", "eos", "unk", "sep", "pad", "cls", "mask"] {
                let name = format!("{name}_token");
                if let Some(content) = source.get(&name).and_then(token_content) {
                    specials.insert(name, crate::c_string(content));
                }
            }
        }
        let largest = inner.get_vocab(true).into_values().max();
        let vocab_size = largest.map_or(0, |id| id + 1);
        Ok(Tokenizer { inner, vocab_size, specials, templates: read_templates(folder, &config)? })
    }

    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    pub fn is_added(&self, id: u32) -> bool {
        self.inner.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id)
    }

    pub fn encode(&self, texts: &[&str], special: bool, offsets: Offsets) -> Result<Encodings, String> {
        let input = texts.to_vec();
        let encoded = match offsets {
            Offsets::None => self.inner.encode_batch_fast(input, special),
            Offsets::Bytes => self.inner.encode_batch(input, special),
            Offsets::Chars => self.inner.encode_batch_char_offsets(input, special),
        }
        .map_err(|error| format!("encode: {error}"))?;
        let total = encoded.iter().map(|encoding| encoding.len()).sum();
        let mut out = Encodings { ids: Vec::with_capacity(total), ..Encodings::default() };
        out.starts.reserve(texts.len() + 1);
        out.starts.push(0);
        for encoding in &encoded {
            out.ids.extend_from_slice(encoding.get_ids());
            if offsets != Offsets::None {
                let pairs = encoding.get_offsets().iter();
                out.offsets.extend(pairs.flat_map(|&(begin, end)| [begin as u32, end as u32]));
            }
            out.starts.push(out.ids.len() as u64);
        }
        Ok(out)
    }

    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, String> {
        self.inner.decode(ids, skip_special).map_err(|error| format!("decode: {error}"))
    }
}

/// Adds what only tokenizer_config.json lists, in the order of ids.
fn add_missing_tokens(tokenizer: &mut tokenizers::Tokenizer, config: &Json) -> Result<(), String> {
    let Some(entries) = config.get("added_tokens_decoder").and_then(Json::as_object) else {
        return Ok(());
    };
    let mut wanted = BTreeMap::new();
    for (id, fields) in entries {
        let id: u32 = id.parse().map_err(|_| format!("added_tokens_decoder: bad id '{id}'"))?;
        let token = added_token(fields)
            .ok_or_else(|| format!("added_tokens_decoder: entry {id} has no content"))?;
        wanted.insert(id, token);
    }
    for (id, token) in wanted {
        let content = token.content.clone();
        if tokenizer.token_to_id(&content).is_none() {
            tokenizer.add_tokens([token]).map_err(|error| error.to_string())?;
        }
        let got = tokenizer.token_to_id(&content);
        if got != Some(id) {
            return Err(format!(
                "added token '{content}' has id {id}, but tokenizer.json makes it {got:?}"
            ));
        }
    }
    Ok(())
}

fn read_templates(folder: &Path, config: &Json) -> Result<BTreeMap<String, CString>, String> {
    let mut templates = BTreeMap::new();
    match config.get("chat_template") {
        Some(Json::String(text)) => {
            templates.insert("default".to_string(), crate::c_string(text));
        }
        Some(Json::Array(named)) => {
            for entry in named {
                let field = |key: &str| entry.get(key).and_then(Json::as_str);
                if let (Some(name), Some(text)) = (field("name"), field("template")) {
                    templates.insert(name.to_string(), crate::c_string(text));
                }
            }
        }
        _ => {}
    }
    let file = folder.join("chat_template.jinja");
    match std::fs::read_to_string(&file) {
        Ok(text) => {
            templates.insert("default".to_string(), crate::c_string(&text));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(format!("read {}: {error}", file.display())),
    }
    Ok(templates)
}

/// The pre-tokenizer's pattern of Qwen2 and Qwen3.
const QWEN_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

pub fn train_bpe(texts: &[&str], vocab_size: usize, specials: &[&str]) -> Result<String, String> {
    let smallest = 256 + specials.len();
    if vocab_size < smallest {
        return Err(format!(
            "train BPE: vocab_size {vocab_size} is below 256 bytes + {} special tokens",
            specials.len()
        ));
    }
    let train = || -> tokenizers::Result<String> {
        let split = Split::new(
            SplitPattern::Regex(QWEN_PATTERN.into()),
            SplitDelimiterBehavior::Isolated,
            false,
        )?;
        let bytes = ByteLevel::new(false, false, false);
        let mut trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(vocab_size)
            .min_frequency(2)
            .special_tokens(specials.iter().map(|text| AddedToken::from(*text, true)).collect())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let mut tokenizer = TokenizerBuilder::<BPE, NFC, Sequence, ByteLevel, ByteLevel>::default()
            .with_model(BPE::default())
            .with_normalizer(Some(NFC))
            .with_pre_tokenizer(Some(Sequence::new(vec![split.into(), bytes.into()])))
            .with_post_processor(Some(bytes))
            .with_decoder(Some(bytes))
            .build()?;
        tokenizer.train(&mut trainer, texts.iter())?;
        tokenizer.to_string(true)
    };
    train().map_err(|error| format!("train BPE: {error}"))
}

//! Python's view of template values: dict and list objects, str(), repr() and json.dumps.
use std::fmt;
use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectExt, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// A dict in insertion order. It differs from minijinja's own maps in one point: `d.items()` calls
/// the method even when there is a key "items", as Jinja2 does for calls.
#[derive(Debug)]
struct Dict(Vec<(Value, Value)>);

impl Object for Dict {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        let found = self.0.iter().find(|(k, _)| k.as_str() == Some(key));
        found.map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.mapped_enumerator(|this| Box::new(this.0.iter().map(|(key, _)| key.clone())))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.0.len())
    }

    fn call_method(
        self: &Arc<Self>,
        state: &State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        if !matches!(method, "items" | "keys" | "values" | "get") {
            if let Some(value) = self.get_value_by_str(method) {
                return value.call(state, args);
            }
        }
        Err(Error::from(ErrorKind::UnknownMethod)) // the environment's callback has Python's methods
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_repr(f, &Value::from_dyn_object(self.clone()))
    }
}

/// A list that prints as Python's, wherever minijinja makes text of it.
#[derive(Debug)]
struct List(Vec<Value>);

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_repr(f, &Value::from_dyn_object(self.clone()))
    }
}

/// A template value read from JSON. Strings that hold one of `template::MARKERS` are refused.
pub struct FromJson(pub Value);

struct FromJsonVisitor;

impl<'de> Visitor<'de> for FromJsonVisitor {
    type Value = FromJson;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<FromJson, E> {
        Ok(FromJson(Value::from(())))
    }
    fn visit_bool<E>(self, v: bool) -> Result<FromJson, E> {
        Ok(FromJson(Value::from(v)))
    }
    fn visit_i64<E>(self, v: i64) -> Result<FromJson, E> {
        Ok(FromJson(Value::from(v)))
    }
    fn visit_u64<E>(self, v: u64) -> Result<FromJson, E> {
        Ok(FromJson(Value::from(v)))
    }
    fn visit_f64<E>(self, v: f64) -> Result<FromJson, E> {
        Ok(FromJson(Value::from(v)))
    }
    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<FromJson, E> {
        if v.contains(crate::template::MARKERS) {
            return Err(E::custom(
                "text contains U+10FFFC or U+10FFFD, which mark {% generation %} blocks",
            ));
        }
        Ok(FromJson(Value::from(v)))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<FromJson, A::Error> {
        let mut items = Vec::with_capacity(seq.size_hint().unwrap_or(0));
        while let Some(FromJson(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(FromJson(Value::from_object(List(items))))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FromJson, A::Error> {
        let mut entries: Vec<(Value, Value)> = Vec::with_capacity(map.size_hint().unwrap_or(0));
        while let Some((FromJson(key), FromJson(value))) = map.next_entry()? {
            match entries.iter_mut().find(|(k, _)| k.as_str() == key.as_str()) {
                Some(entry) => entry.1 = value, // as Python: the last one wins
                None => entries.push((key, value)),
            }
        }
        Ok(FromJson(Value::from_object(Dict(entries))))
    }
}

impl<'de> Deserialize<'de> for FromJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<FromJson, D::Error> {
        deserializer.deserialize_any(FromJsonVisitor)
    }
}

fn as_float(value: &Value) -> Option<f64> {
    if value.kind() == ValueKind::Number && !value.is_integer() {
        f64::try_from(value.clone()).ok()
    } else {
        None
    }
}

/// Python's repr(float): the shortest digits that read back, with an exponent below 1e-4 and from
/// 1e16 on.
pub fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap();
    let exponent: i32 = exponent.parse().unwrap();
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{value}");
    if plain.contains('.') {
        plain
    } else {
        plain + ".0"
    }
}

/// Python's str(value), as Jinja2 prints it.
pub fn write_str(out: &mut dyn fmt::Write, value: &Value) -> fmt::Result {
    match value.as_str() {
        Some(text) => out.write_str(text),
        None => write_repr(out, value),
    }
}

pub fn str_of(value: &Value) -> String {
    let mut out = String::new();
    let _ = write_str(&mut out, value);
    out
}

fn write_str_repr(out: &mut dyn fmt::Write, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for c in text.chars() {
        match c {
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            '\\' => out.write_str("\\\\")?,
            c if c == quote => write!(out, "\\{c}")?,
            c if (c as u32) < 0x20 || (0x7f..0xa1).contains(&(c as u32)) => {
                write!(out, "\\x{:02x}", c as u32)?
            }
            c => out.write_char(c)?,
        }
    }
    out.write_char(quote)
}

/// Python's repr(value).
fn write_repr(out: &mut dyn fmt::Write, value: &Value) -> fmt::Result {
    match value.kind() {
        ValueKind::Undefined => Ok(()),
        ValueKind::None => out.write_str("None"),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => match as_float(value) {
            Some(number) => out.write_str(&float_repr(number)),
            None => write!(out, "{value}"),
        },
        ValueKind::String => write_str_repr(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq => {
            out.write_char('[')?;
            for (i, item) in value.try_iter().into_iter().flatten().enumerate() {
                if i > 0 {
                    out.write_str(", ")?;
                }
                write_repr(out, &item)?;
            }
            out.write_char(']')
        }
        ValueKind::Map => {
            out.write_char('{')?;
            for (i, key) in value.try_iter().into_iter().flatten().enumerate() {
                if i > 0 {
                    out.write_str(", ")?;
                }
                write_repr(out, &key)?;
                out.write_str(": ")?;
                write_repr(out, &value.get_item(&key).unwrap_or_default())?;
            }
            out.write_char('}')
        }
        _ => write!(out, "{value}"),
    }
}

/// Jinja2's int filter: int(value), else int(float(value)), else the default.
pub fn int_of(value: &Value, default: i64) -> Value {
    let truncated = |number: f64| {
        if number.is_finite() && number.abs() < 9e18 {
            Value::from(number.trunc() as i64)
        } else {
            Value::from(default)
        }
    };
    match value.kind() {
        ValueKind::Bool => Value::from(i64::from(value.is_true())),
        ValueKind::Number if value.is_integer() => value.clone(),
        ValueKind::Number => truncated(as_float(value).unwrap_or(f64::NAN)),
        _ => {
            let text = value.as_str().unwrap_or_default().trim();
            match text.parse::<i64>() {
                Ok(number) => Value::from(number),
                Err(_) => truncated(text.parse().unwrap_or(f64::NAN)),
            }
        }
    }
}

/// Jinja2's indent filter, its care for a closing newline included.
pub fn indent(text: &str, indention: &str, first: bool, blank: bool) -> String {
    let mut out = String::from(if first { indention } else { "" });
    for (i, line) in text.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
            if blank || !line.is_empty() {
                out.push_str(indention);
            }
        }
        out.push_str(line);
    }
    out
}

/// How json.dumps lays things out.
pub struct JsonStyle {
    pub indent: Option<usize>,
    pub ensure_ascii: bool,
    pub sort_keys: bool,
    pub item_separator: String,
    pub key_separator: String,
}

fn write_json_string(out: &mut String, text: &str, ensure_ascii: bool) {
    use std::fmt::Write;
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 => write!(out, "\\u{:04x}", c as u32).unwrap(),
            c if ensure_ascii && !(' '..='~').contains(&c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}").unwrap();
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn new_line(out: &mut String, style: &JsonStyle, depth: usize) {
    if let Some(indent) = style.indent {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', indent * depth));
    }
}

/// json.dumps(value).
pub fn write_json(out: &mut String, value: &Value, style: &JsonStyle, depth: usize) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => match as_float(value) {
            Some(number) if number.is_nan() => out.push_str("NaN"),
            Some(number) if number.is_infinite() => {
                out.push_str(if number > 0.0 { "Infinity" } else { "-Infinity" })
            }
            Some(number) => out.push_str(&float_repr(number)),
            None => out.push_str(&value.to_string()),
        },
        ValueKind::String => {
            write_json_string(out, value.as_str().unwrap_or_default(), style.ensure_ascii)
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut empty = true;
            for item in value.try_iter()? {
                if !empty {
                    out.push_str(&style.item_separator);
                }
                empty = false;
                new_line(out, style, depth + 1);
                write_json(out, &item, style, depth + 1)?;
            }
            if !empty {
                new_line(out, style, depth);
            }
            out.push(']');
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sort_keys {
                keys.sort();
            }
            out.push('{');
            for (i, key) in keys.iter().enumerate() {
                if i > 0 {
                    out.push_str(&style.item_separator);
                }
                new_line(out, style, depth + 1);
                match key.as_str() {
                    Some(text) => write_json_string(out, text, style.ensure_ascii),
                    None => {
                        let mut text = String::new();
                        write_json(&mut text, key, style, 0)?;
                        write_json_string(out, &text, style.ensure_ascii);
                    }
                }
                out.push_str(&style.key_separator);
                write_json(out, &value.get_item(key)?, style, depth + 1)?;
            }
            if !keys.is_empty() {
                new_line(out, style, depth);
            }
            out.push('}');
        }
        kind => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("tojson: a value of type {kind} has no JSON form"),
            ))
        }
    }
    Ok(())
}

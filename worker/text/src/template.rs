//! Chat templates: the environment of Transformers' apply_chat_template on minijinja, and the places
//! of {% generation %} blocks in the output.
use std::ffi::CString;

use minijinja::value::{from_args, Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, Value};
use rayon::prelude::*;

use crate::python;

/// Written around what a {% generation %} block renders and removed again: the last two code points
/// of the private use planes. Input text that holds one is refused, so they cannot be confused.
pub const MARKERS: [char; 2] = ['\u{10FFFC}', '\u{10FFFD}'];
const MARKER_BYTES: usize = 4;

pub struct ChatTemplate {
    environment: Environment<'static>,
    pub has_generation: bool,
}

#[derive(Default)]
pub struct Render {
    pub text: String,
    /// begin, end, begin, end, ... in bytes of `text`, by begin.
    pub spans: Vec<u64>,
    pub error: Option<CString>,
}

/// Rewrites `{% generation %}` to a filter block with a scope of its own, so that it keeps the
/// whitespace rules of a block tag and its assignments stay inside, as in Transformers.
fn rewrite_generation(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len() + 64);
    let mut found = false;
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        out.push_str(&rest[..at]);
        let tag = &rest[at..];
        let Some(length) = tag.find("%}").map(|end| end + 2) else { break };
        let inner = &tag[2..length - 2];
        let (left, inner) = match inner.strip_prefix(['-', '+']) {
            Some(stripped) => (&tag[2..3], stripped),
            None => ("", inner),
        };
        let (right, inner) = match inner.strip_suffix(['-', '+']) {
            Some(stripped) => (&tag[length - 3..length - 2], stripped),
            None => ("", inner),
        };
        match inner.trim() {
            "generation" => {
                found = true;
                out += &format!("{{%{left} filter sy_generation %}}{{% with {right}%}}");
            }
            "endgeneration" => {
                out += &format!("{{%{left} endwith %}}{{% endfilter {right}%}}");
            }
            _ => {
                // Only the opening is consumed: a tag may hold "%}" inside a string.
                out.push_str("{%");
                rest = &tag[2..];
                continue;
            }
        }
        rest = &tag[length..];
    }
    out.push_str(rest);
    (out, found)
}

fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let (item_separator, key_separator) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators must be a pair"))
        }
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let style = python::JsonStyle {
        indent,
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        item_separator,
        key_separator,
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    python::write_json(&mut out, value, &style, 0)?;
    Ok(Value::from(out))
}

/// round(precision=0, method="common"), with Python's ties to even.
fn round(value: &Value, precision: Option<usize>, method: Option<&str>) -> Result<Value, Error> {
    let fail = |what: &str| Error::new(ErrorKind::InvalidOperation, format!("round: {what}"));
    if value.is_integer() && method.unwrap_or("common") == "common" {
        return Ok(value.clone());
    }
    let number = f64::try_from(value.clone()).map_err(|_| fail("not a number"))?;
    let precision = precision.unwrap_or(0);
    let scale = 10f64.powi(precision as i32);
    Ok(Value::from(match method.unwrap_or("common") {
        "common" => format!("{number:.precision$}").parse().unwrap_or(number),
        "ceil" => (number * scale).ceil() / scale,
        "floor" => (number * scale).floor() / scale,
        _ => return Err(fail("the method is common, ceil or floor")),
    }))
}

/// indent(width=4, first=false, blank=false); the width may be the text to put in front.
fn indent(
    text: &str,
    width: Option<&Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let named: Option<Value> = kwargs.get("width")?;
    let width = width.or(named.as_ref());
    let indention = match width.and_then(Value::as_str) {
        Some(text) => text.to_string(),
        None => " ".repeat(width.map_or(Some(4), Value::as_usize).unwrap_or(0)),
    };
    let first = first.or(kwargs.get("first")?).unwrap_or(false);
    let blank = blank.or(kwargs.get("blank")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    Ok(python::indent(text, &indention, first, blank))
}

fn strftime_now(format: &str) -> Result<String, Error> {
    let invalid = |_| Error::new(ErrorKind::InvalidOperation, "strftime_now: NUL in the format");
    let format = CString::new(format).map_err(invalid)?;
    let mut buffer = [0u8; 512];
    // SAFETY: every pointer is valid for the call, and strftime writes at most buffer.len() bytes.
    let length = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut parts: libc::tm = std::mem::zeroed();
        libc::localtime_r(&now, &mut parts);
        libc::strftime(buffer.as_mut_ptr().cast(), buffer.len(), format.as_ptr(), &parts)
    };
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Methods of Python's str that minijinja-contrib lacks, then that crate's.
fn python_method(state: &State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        match method {
            "removeprefix" => {
                let (prefix,): (&str,) = from_args(args)?;
                return Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)));
            }
            "removesuffix" => {
                let (suffix,): (&str,) = from_args(args)?;
                return Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)));
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

fn python_environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_keep_trailing_newline(false);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_unknown_method_callback(python_method);
    env.set_formatter(|out, _state, value| {
        python::write_str(out, value).map_err(Error::from)
    });
    env.add_filter("tojson", tojson);
    env.add_filter("string", |value: &Value| python::str_of(value));
    env.add_filter("trim", |value: &Value, chars: Option<&str>| {
        let text = python::str_of(value);
        match chars {
            Some(chars) => text.trim_matches(|c| chars.contains(c)).to_string(),
            None => text.trim().to_string(),
        }
    });
    env.add_filter("int", |value: &Value, default: Option<i64>, kwargs: Kwargs| {
        let named: Option<i64> = kwargs.get("default")?;
        kwargs.assert_all_used()?;
        Ok::<_, Error>(python::int_of(value, default.or(named).unwrap_or(0)))
    });
    env.add_filter("indent", indent);
    env.add_filter("round", round);
    env.add_filter("sy_generation", |text: &str| format!("{}{text}{}", MARKERS[0], MARKERS[1]));
    // Jinja2's tests ask for Python's protocols: strings and dicts are sequences and iterable.
    let sequence = |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map)
    };
    env.add_test("sequence", sequence);
    env.add_test("iterable", move |value: &Value| {
        sequence(value) || value.kind() == ValueKind::Iterable
    });
    env.add_test("number", |value: &Value| {
        matches!(value.kind(), ValueKind::Number | ValueKind::Bool) // bool is an int in Python
    });
    env.add_function("raise_exception", |message: &str| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("the template raised: {message}")))
    });
    env.add_function("strftime_now", strftime_now);
    for name in ["tools", "documents"] {
        env.add_global(name, Value::from(()));
    }
    env.add_global("add_generation_prompt", false);
    env
}

/// "line 3: ..." for people; the template's name is ours and says nothing.
fn describe(error: &Error) -> String {
    let what = match error.detail() {
        Some(detail) if error.kind() == ErrorKind::InvalidOperation => detail.to_string(),
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("line {line}: {what}"),
        None => what,
    }
}

impl ChatTemplate {
    pub fn compile<'a>(
        source: &str,
        specials: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, String> {
        let (source, has_generation) = rewrite_generation(&source.replace("\r\n", "\n"));
        let mut environment = python_environment();
        for (name, content) in specials {
            environment.add_global(name.to_string(), content.to_string());
        }
        environment
            .add_template_owned("chat", source)
            .map_err(|error| format!("chat template, {}", describe(&error)))?;
        Ok(ChatTemplate { environment, has_generation })
    }

    fn render_one(&self, context: &[u8]) -> Result<Render, String> {
        let python::FromJson(context) =
            serde_json::from_slice(context).map_err(|error| format!("the row's variables: {error}"))?;
        if context.kind() != ValueKind::Map {
            return Err("the row's variables are not a JSON object".into());
        }
        let template = self.environment.get_template("chat").map_err(|e| describe(&e))?;
        let marked = template.render(context).map_err(|e| describe(&e))?;
        if !self.has_generation {
            return Ok(Render { text: marked, ..Render::default() });
        }
        remove_markers(&marked)
    }

    pub fn render(&self, contexts: &[&[u8]]) -> Vec<Render> {
        let render = |context: &&[u8]| {
            self.render_one(context).unwrap_or_else(|error| Render {
                error: Some(crate::c_string(&error)),
                ..Render::default()
            })
        };
        contexts.par_iter().with_min_len(16).map(render).collect()
    }
}

fn remove_markers(marked: &str) -> Result<Render, String> {
    let mut render = Render { text: String::with_capacity(marked.len()), ..Render::default() };
    let mut open: Vec<usize> = Vec::new(); // indices into spans
    let mut rest = marked;
    while let Some(at) = rest.find(MARKERS) {
        render.text.push_str(&rest[..at]);
        let place = render.text.len() as u64;
        if rest[at..].starts_with(MARKERS[0]) {
            open.push(render.spans.len());
            render.spans.extend([place, place]);
        } else {
            let Some(index) = open.pop() else { return Err(UNBALANCED.into()) };
            render.spans[index + 1] = place;
        }
        rest = &rest[at + MARKER_BYTES..];
    }
    render.text.push_str(rest);
    if open.is_empty() {
        Ok(render)
    } else {
        Err(UNBALANCED.into())
    }
}

const UNBALANCED: &str = "the template cuts the output of a {% generation %} block into pieces";

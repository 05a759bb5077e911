//! YAML text as a tree of nodes with their places: the only serde for rules and settings files. Knows nothing of what the keys mean.
//!
//! A scalar keeps the text as written, so that `value: 1.10` matches `1.10`. Repeated keys of a mapping all appear, so that
//! the parser can report them among its other problems. Aliases and merge keys (`<<`) are already followed.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::options::{DuplicateKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{Error, Location, Options, Spanned};

/// The most nodes (scalars, lists, maps) in a file: some two million rules.
const MAX_NODES: usize = 20_000_000;
/// The most text in all scalars of a file.
const MAX_SCALAR_BYTES: usize = 256 * 1024 * 1024;
/// The most nodes behind anchors, counting what their own aliases stand for: an alias bomb ends here.
const MAX_ANCHORED: usize = 100_000;
/// The most lists and maps inside each other: bounds the stack of whoever walks the tree ([`super::STACK`]).
const MAX_DEPTH: usize = 128;

/// Where a node is written: 1-based line and column, and its width in characters (0: unknown, or a block).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Span {
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) width: u32,
}

#[derive(Debug)]
pub(crate) struct Node<'s> {
    pub(crate) at: Span,
    pub(crate) value: Value<'s>,
}

#[derive(Debug)]
pub(crate) enum Value<'s> {
    Scalar(Scalar<'s>),
    List(Vec<Node<'s>>),
    Map(Vec<(Node<'s>, Node<'s>)>),
}

#[derive(Debug)]
pub(crate) struct Scalar<'s> {
    /// As written for a plain scalar; unquoted and unescaped for any other.
    pub(crate) text: Cow<'s, str>,
    pub(crate) kind: Kind,
}

/// What a scalar is by the core schema of YAML 1.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Null,
    Bool(bool),
    Integer,
    Float,
    /// Neither, and not quoted: `yes` and `on` are of this kind.
    Plain,
    /// In quotes or a block.
    Quoted,
}

impl Node<'_> {
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar.kind == Kind::Null)
    }
}

/// Why a file is no YAML.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) at: Span,
    pub(crate) message: String,
    pub(crate) hint: Option<&'static str>,
    /// The lines around it, with a caret.
    pub(crate) snippet: String,
}

/// The documents of a file; empty ones are left out.
pub(crate) fn read(source: &str) -> Result<Vec<Node<'_>>, Box<SyntaxError>> {
    read_with(source, options())
}

/// Likewise, for a file that is no rules file.
pub(crate) fn read_with(source: &str, options: Options) -> Result<Vec<Node<'_>>, Box<SyntaxError>> {
    let documents = serde_saphyr::from_multiple_with_options::<Spanned<Content<'_>>>(source, options);
    match documents {
        Ok(documents) => Ok(documents.into_iter().map(|document| node(document, source)).collect()),
        Err(error) => Err(Box::new(syntax_error(&error))),
    }
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: MAX_NODES,
            max_events: 2 * MAX_NODES,
            max_total_scalar_bytes: MAX_SCALAR_BYTES,
            max_depth: MAX_DEPTH,
            max_aliases: MAX_NODES,
            max_merge_keys: MAX_NODES,
            max_recorded_anchor_events: MAX_ANCHORED,
            // One anchor with very many aliases is how people write equal limits; what aliases stand for is bounded on its own.
            enforce_alias_anchor_ratio: false,
        },
        strict_booleans: true,
        emit_comments: false,
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
    }
}

/// In words that need no knowledge of the library.
fn syntax_error(error: &serde_saphyr::Error) -> SyntaxError {
    let at = error.location().map(span).unwrap_or_default();
    let (message, hint) = match breach(error) {
        Some(breach) => too_much(breach),
        None => (error.without_snippet().to_string(), None),
    };
    let message = message.strip_suffix(&format!(" at line {}, column {}", at.line, at.column)).unwrap_or(&message).to_owned();
    let rendered = error.render();
    // What stands behind an alias is shown after a line without a number, and so is the place where an error in it comes up.
    let shown = rendered.lines().skip_while(|line| !line.contains('|')).filter(|line| line.trim() != "|");
    let shown = shown.take_while(|line| !line.trim_start().starts_with("| This value comes indirectly"));
    let snippet = shown.fold(String::new(), |snippet, line| match caret_alone(line) {
        Some(caret) => snippet + caret + "\n",
        None => snippet + line + "\n",
    });
    SyntaxError { at, message, hint, snippet }
}

/// The bound of [`options`] that a file goes beyond.
fn breach(error: &serde_saphyr::Error) -> Option<&BudgetBreach> {
    match error {
        Error::WithSnippet { error, .. } | Error::AliasError { error, .. } => breach(error),
        Error::Budget { breach, .. } => Some(breach),
        _ => None,
    }
}

fn too_much(breach: &BudgetBreach) -> (String, Option<&'static str>) {
    match breach {
        BudgetBreach::Depth { .. } => (
            format!("lists and maps stand inside each other more than {MAX_DEPTH} deep"),
            Some("there is room for 63 levels of `descriptors`"),
        ),
        BudgetBreach::RecordedAnchorEvents { .. } => (
            format!("what the anchors (`&name`) of the file stand for is more than {MAX_ANCHORED} values"),
            Some("aliases of what has aliases multiply: write some of it out"),
        ),
        _ => (
            format!("the file is too large: more than {MAX_NODES} values, or {} MB of them", MAX_SCALAR_BYTES >> 20),
            Some("put some of the domains into other files"),
        ),
    }
}

/// The line under the source without the message that follows its caret: the message is said elsewhere.
fn caret_alone(line: &str) -> Option<&str> {
    let caret = line.strip_prefix(' ').and_then(|_| line.rfind('^'))?;
    line[..caret].chars().all(|c| matches!(c, ' ' | '|' | '^')).then_some(&line[..=caret])
}

/// What serde-saphyr hands over: the kinds that it resolves, without their text.
enum Content<'s> {
    Known(Kind),
    Text(Cow<'s, str>),
    List(Vec<Spanned<Content<'s>>>),
    Map(Vec<(Spanned<Content<'s>>, Spanned<Content<'s>>)>),
}

fn node<'s>(content: Spanned<Content<'s>>, source: &'s str) -> Node<'s> {
    let written = slice(source, &content.defined);
    let value = match content.value {
        Content::Known(kind) => Value::Scalar(Scalar { text: Cow::Borrowed(written), kind }),
        Content::Text(text) => {
            let kind = if text == written { Kind::Plain } else { Kind::Quoted };
            Value::Scalar(Scalar { text, kind })
        }
        Content::List(items) => Value::List(items.into_iter().map(|item| node(item, source)).collect()),
        Content::Map(entries) => {
            Value::Map(entries.into_iter().map(|(key, value)| (node(key, source), node(value, source))).collect())
        }
    };
    Node { at: span(content.referenced), value }
}

fn slice<'s>(source: &'s str, location: &Location) -> &'s str {
    let span = location.span();
    let (Some(start), Some(length)) = (span.byte_offset(), span.byte_len()) else { return "" };
    let range = usize::try_from(start).ok().zip(usize::try_from(start + length).ok());
    range.and_then(|(start, end)| source.get(start..end)).unwrap_or("")
}

fn span(location: Location) -> Span {
    let bounded = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Span { line: bounded(location.line()), column: bounded(location.column()), width: bounded(location.span().len()) }
}

impl<'de> Deserialize<'de> for Content<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content<'de>, E> {
        Ok(Content::Known(Kind::Bool(value)))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Content<'de>, E> {
        Ok(Content::Known(Kind::Integer))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Content<'de>, E> {
        Ok(Content::Known(Kind::Integer))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Content<'de>, E> {
        Ok(Content::Known(Kind::Float))
    }

    fn visit_unit<E>(self) -> Result<Content<'de>, E> {
        Ok(Content::Known(Kind::Null))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Content<'de>, E> {
        Ok(Content::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Content<'de>, E> {
        Ok(Content::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Content<'de>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Content::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Content<'de>, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Content::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalars(source: &str) -> Vec<(String, Kind)> {
        fn walk(node: &Node<'_>, found: &mut Vec<(String, Kind)>) {
            match &node.value {
                Value::Scalar(scalar) => found.push((scalar.text.to_string(), scalar.kind)),
                Value::List(items) => items.iter().for_each(|item| walk(item, found)),
                Value::Map(entries) => entries.iter().for_each(|(_, value)| walk(value, found)),
            }
        }
        let mut found = Vec::new();
        read(source).expect("YAML").iter().for_each(|document| walk(document, &mut found));
        found
    }

    #[test]
    fn scalars_keep_their_text() {
        let found = scalars("a: 1.10\nb: 007.5\nc: yes\nd: 'yes'\ne: ~\nf: true\ng: \"x\\ty\"\n---\nh: 0x10\n");
        let texts: Vec<&str> = found.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(texts, ["1.10", "007.5", "yes", "yes", "~", "true", "x\ty", "0x10"]);
        let kinds = [Kind::Float, Kind::Float, Kind::Plain, Kind::Quoted, Kind::Null, Kind::Bool(true), Kind::Quoted];
        assert_eq!(found.iter().map(|(_, kind)| *kind).take(7).collect::<Vec<_>>(), kinds);
    }

    #[test]
    fn repeated_keys_all_appear_and_merges_are_followed() {
        let documents = read("a: 1\na: 2\nb: &x {c: 3}\nd: {<<: *x, e: 4}\n").expect("YAML");
        let Value::Map(entries) = &documents[0].value else { panic!("a map") };
        assert_eq!(entries.len(), 4);
        let Value::Map(merged) = &entries[3].1.value else { panic!("a map") };
        assert_eq!(merged.len(), 2);
    }

    #[test]
    fn a_syntax_error_has_its_place() {
        let error = read("domain: x\ndescriptors: [\n").expect_err("no YAML");
        assert!(error.at.line >= 2 && error.snippet.contains("descriptors: ["), "{error:?}");
        assert!(!error.message.contains(" at line "), "{error:?}");
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..9 {
            let last = level - 1;
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![format!("*a{last}"); 10].join(", "));
        }
        let error = read(&bomb).expect_err("too much");
        assert!(error.message.contains("anchors") && error.message.contains("100000"), "{error:?}");
        assert!(error.hint.is_some() && !error.snippet.contains('>'), "{error:?}");
    }
}

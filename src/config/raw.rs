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

use crate::shown::pictured;

/// The most nodes (scalars, lists, maps) in all files together, what aliases stand for included: some 300,000 rules. A node takes up
/// to 200 bytes while a file is read.
pub(super) const MAX_NODES: usize = 4_000_000;
/// The most text in all scalars of a file, what aliases stand for included.
const MAX_SCALAR_BYTES: usize = 64 << 20;
/// The most documents in a file.
const MAX_DOCUMENTS: usize = 100_000;
/// The most aliases that follow each other.
const MAX_ALIAS_DEPTH: usize = 64;
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

/// The documents of a file, where other files have left room for so many nodes; empty ones are left out.
pub(super) fn read(source: &str, nodes: usize) -> Result<Vec<Node<'_>>, Box<SyntaxError>> {
    read_with(source, options(nodes))
}

/// How many nodes a document has.
pub(super) fn count(node: &Node<'_>) -> usize {
    1 + match &node.value {
        Value::Scalar(_) => 0,
        Value::List(items) => items.iter().map(count).sum(),
        Value::Map(entries) => entries.iter().map(|(key, value)| count(key) + count(value)).sum(),
    }
}

/// Likewise, for a file that is no rules file.
pub(crate) fn read_with(source: &str, options: Options) -> Result<Vec<Node<'_>>, Box<SyntaxError>> {
    let documents = serde_saphyr::from_multiple_with_options::<Spanned<Content<'_>>>(source, options);
    match documents {
        Ok(documents) => Ok(documents.into_iter().map(|document| node(document.into(), source)).collect()),
        Err(error) => Err(Box::new(syntax_error(&error))),
    }
}

fn options(nodes: usize) -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: nodes,
            max_events: 2 * MAX_NODES + 2 * MAX_DOCUMENTS,
            max_documents: MAX_DOCUMENTS,
            max_total_scalar_bytes: MAX_SCALAR_BYTES,
            max_depth: MAX_DEPTH,
            max_aliases: MAX_NODES,
            max_merge_keys: MAX_NODES,
            max_recorded_anchor_events: MAX_ANCHORED,
            // One anchor with very many aliases is how people write equal limits; what aliases stand for is bounded on its own.
            enforce_alias_anchor_ratio: false,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: nodes,
            max_replay_stack_depth: MAX_ALIAS_DEPTH,
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
    let (message, hint) = too_much(error).unwrap_or_else(|| match error.without_snippet().to_string() {
        // The scanner looks ahead, and counts by itself.
        message if message.starts_with("recursion limit exceeded") => too_deep(),
        message => (message, None),
    });
    let message = message.strip_suffix(&format!(" at line {}, column {}", at.line, at.column)).unwrap_or(&message).to_owned();
    let rendered = error.render();
    // What stands behind an alias is shown after a line without a number, and so is the place where an error in it comes up.
    let shown = rendered.lines().skip_while(|line| !line.contains('|')).filter(|line| line.trim() != "|");
    let shown = shown.take_while(|line| !line.trim_start().starts_with("| This value comes indirectly"));
    let snippet = shown.fold(String::new(), |snippet, line| match caret_alone(line) {
        Some(caret) => snippet + caret + "\n",
        None => snippet + line + "\n",
    });
    let snippet = snippet.chars().map(|c| if c == '\n' { c } else { pictured(c) }).collect();
    SyntaxError { at, message, hint, snippet }
}

/// The bound of [`options`] that a file goes beyond, and what to do about it.
fn too_much(error: &Error) -> Option<(String, Option<&'static str>)> {
    let other_files = Some("put some of the domains into other files");
    Some(match error {
        Error::WithSnippet { error, .. } | Error::AliasError { error, .. } => return too_much(error),
        Error::AliasReplayLimitExceeded { .. } | Error::AliasReplayCounterOverflow { .. } => (
            format!("what the aliases (`*name`) of the files stand for is more than {MAX_NODES} values"),
            Some("each alias counts as all that its anchor stands for: write common settings as `defaults` or `tiers`"),
        ),
        Error::AliasReplayStackDepthExceeded { .. } => {
            (format!("aliases (`*name`) lead to aliases more than {MAX_ALIAS_DEPTH} times"), Some("write some of it out"))
        }
        Error::Budget { breach, .. } => match breach {
            BudgetBreach::Depth { .. } => too_deep(),
            BudgetBreach::RecordedAnchorEvents { .. } => (
                format!("what the anchors (`&name`) of the file stand for is more than {MAX_ANCHORED} values"),
                Some("aliases of what has aliases multiply: write some of it out"),
            ),
            BudgetBreach::Documents { .. } => (format!("the file has more than {MAX_DOCUMENTS} documents"), other_files),
            BudgetBreach::ScalarBytes { .. } => {
                (format!("the values of the file are larger than {} MiB", MAX_SCALAR_BYTES >> 20), other_files)
            }
            BudgetBreach::Nodes { .. } | BudgetBreach::Events { .. } => (
                format!("the rules are too large: more than {MAX_NODES} values in all files together"),
                Some("take out rules that nothing matches, or run a weir for each part of the domains"),
            ),
            _ => ("the file is too large to be read".to_owned(), other_files),
        },
        _ => return None,
    })
}

fn too_deep() -> (String, Option<&'static str>) {
    let message = format!("lists and maps stand inside each other more than {MAX_DEPTH} deep");
    (message, Some("there is room for 63 levels of `descriptors`"))
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
    List(Vec<Placed<'s>>),
    Map(Vec<(Placed<'s>, Placed<'s>)>),
}

/// A content with the part of a [`Spanned`] that is needed: half of its size.
struct Placed<'s> {
    at: Span,
    /// Where its text is in the source, in bytes.
    start: u32,
    length: u32,
    content: Content<'s>,
}

impl<'s> From<Spanned<Content<'s>>> for Placed<'s> {
    fn from(spanned: Spanned<Content<'s>>) -> Placed<'s> {
        let written = spanned.defined.span();
        let place = written.byte_offset().zip(written.byte_len());
        let (start, length) = place.map_or((0, 0), |(start, length)| (bounded(start), bounded(length)));
        Placed { at: span(spanned.referenced), start, length, content: spanned.value }
    }
}

fn node<'s>(placed: Placed<'s>, source: &'s str) -> Node<'s> {
    let (start, length) = (placed.start as usize, placed.length as usize);
    let written = source.get(start..start + length).unwrap_or("");
    let value = match placed.content {
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
    Node { at: placed.at, value }
}

fn bounded(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn span(location: Location) -> Span {
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
        while let Some(item) = items.next_element::<Spanned<Content<'de>>>()? {
            list.push(item.into());
        }
        Ok(Content::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Content<'de>, A::Error> {
        let mut map = Vec::new();
        while let Some((key, value)) = entries.next_entry::<Spanned<Content<'de>>, Spanned<Content<'de>>>()? {
            map.push((key.into(), value.into()));
        }
        Ok(Content::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(source: &str) -> Result<Vec<Node<'_>>, Box<SyntaxError>> {
        super::read(source, MAX_NODES)
    }

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

    #[test]
    fn what_files_and_aliases_hold_is_bounded_in_words() {
        let aliases = format!("a: &a {{b: {{c: [1, 2, 3]}}}}\nlist: [{}]\n", "*a, ".repeat(500));
        assert!(super::read(&aliases, 6_000).is_ok());
        for (source, nodes, words) in [
            (aliases.as_str(), 2_000, "what the aliases (`*name`) of the files stand for is more than"),
            ("[a, b, c]", 2, "the rules are too large: more than"),
            (&"[".repeat(100_000), MAX_NODES, "inside each other more than 128 deep"),
            (&"---\nx: 1\n".repeat(MAX_DOCUMENTS + 1), MAX_NODES, "the file has more than 100000 documents"),
        ] {
            let error = super::read(source, nodes).expect_err("too much");
            assert!(error.message.contains(words) && error.hint.is_some(), "{error:?}");
        }
    }
}

//! What is wrong with rules, and where: for people as text, for programs as fields. A [`Report`] collects the problems of one
//! file; [`Problems`] are those of all files, sorted.

use std::cell::OnceCell;
use std::fmt;

use super::raw::Span;

/// How many problems are printed; the rest is counted.
pub const MAX_PRINTED: usize = 100;
/// The most characters of a source line that are shown.
const MAX_SHOWN: usize = 120;

/// Whether the rules can be used all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    Error,
    Warning,
}

/// One thing to mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub severity: Severity,
    /// Relative to the rules directory.
    pub file: String,
    /// From 1; 0 where the file as a whole is meant.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
    /// Where inside the document, such as `domain api › descriptors[2] › rate_limit`; may be empty.
    pub path: String,
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
    /// The line with a caret below; may be empty.
    pub snippet: String,
}

impl Problem {
    /// About a file as a whole.
    pub(crate) fn of_file(severity: Severity, file: impl Into<String>, message: impl Into<String>) -> Problem {
        Problem {
            severity,
            file: file.into(),
            line: 0,
            column: 0,
            path: String::new(),
            message: message.into(),
            hint: None,
            snippet: String::new(),
        }
    }

    /// Adds what to write instead.
    pub(crate) fn hint(&mut self, hint: impl Into<String>) {
        self.hint = Some(hint.into());
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, ": {severity}: {}", self.message)?;
        if !self.path.is_empty() {
            write!(f, "\n  in {}", self.path)?;
        }
        for line in self.snippet.lines() {
            write!(f, "\n  {line}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

/// All problems, by file, line and column.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Problems(Vec<Problem>);

impl Problems {
    pub(crate) fn new(mut problems: Vec<Problem>) -> Problems {
        problems.sort_by(|a, b| (&a.file, a.line, a.column, &a.message).cmp(&(&b.file, b.line, b.column, &b.message)));
        Problems(problems)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }
}

/// The first [`MAX_PRINTED`], then how many more there are.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in self.0.iter().take(MAX_PRINTED) {
            writeln!(f, "{problem}")?;
        }
        if self.0.len() > MAX_PRINTED {
            writeln!(f, "… and {} more", self.0.len() - MAX_PRINTED)?;
        }
        Ok(())
    }
}

/// A place inside a document, as a chain from the inside out; text only once there is a problem.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path<'p> {
    parent: Option<&'p Path<'p>>,
    step: Step<'p>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'p> {
    Domain(&'p str),
    /// A document without a readable domain, by its place in the file.
    Document(usize),
    Key(&'p str),
    Item(usize),
}

impl<'p> Path<'p> {
    pub(crate) fn domain(name: &'p str) -> Path<'p> {
        Path { parent: None, step: Step::Domain(name) }
    }

    pub(crate) fn document(place: usize) -> Path<'static> {
        Path { parent: None, step: Step::Document(place) }
    }

    pub(crate) fn key(&'p self, key: &'p str) -> Path<'p> {
        Path { parent: Some(self), step: Step::Key(key) }
    }

    pub(crate) fn item(&'p self, place: usize) -> Path<'p> {
        Path { parent: Some(self), step: Step::Item(place) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Domain(name) => write!(f, "domain {name}"),
            Step::Document(place) => write!(f, "document {}", place + 1),
            Step::Key(key) => write!(f, " › {key}"),
            Step::Item(place) => write!(f, "[{place}]"),
        }
    }
}

/// The problems of one file.
#[derive(Debug)]
pub(crate) struct Report<'s> {
    pub(crate) file: &'s str,
    source: &'s str,
    lines: OnceCell<Vec<&'s str>>,
    pub(crate) problems: Vec<Problem>,
    errors: usize,
}

impl<'s> Report<'s> {
    pub(crate) fn new(file: &'s str, source: &'s str) -> Report<'s> {
        Report { file, source, lines: OnceCell::new(), problems: Vec::new(), errors: 0 }
    }

    /// How many errors there are so far.
    pub(crate) fn errors(&self) -> usize {
        self.errors
    }

    pub(crate) fn error(&mut self, at: Span, path: impl fmt::Display, message: impl Into<String>) -> &mut Problem {
        self.errors += 1;
        self.add(Severity::Error, at, path, message)
    }

    pub(crate) fn warning(&mut self, at: Span, path: impl fmt::Display, message: impl Into<String>) -> &mut Problem {
        self.add(Severity::Warning, at, path, message)
    }

    /// A problem that is put together already.
    pub(crate) fn push(&mut self, problem: Problem) {
        self.errors += usize::from(problem.severity == Severity::Error);
        self.problems.push(problem);
    }

    fn add(&mut self, severity: Severity, at: Span, path: impl fmt::Display, message: impl Into<String>) -> &mut Problem {
        let snippet = self.snippet(at);
        self.problems.push(Problem {
            line: at.line,
            column: at.column,
            path: path.to_string(),
            snippet,
            ..Problem::of_file(severity, self.file, message)
        });
        let last = self.problems.len() - 1;
        &mut self.problems[last]
    }

    fn snippet(&self, at: Span) -> String {
        let lines = self.lines.get_or_init(|| self.source.lines().collect());
        let Some(line) = (at.line as usize).checked_sub(1).and_then(|index| lines.get(index)) else { return String::new() };
        let column = (at.column as usize).saturating_sub(1);
        let first = if line.chars().count() > MAX_SHOWN { column.saturating_sub(MAX_SHOWN / 2) } else { 0 };
        let shown: String = line.chars().skip(first).take(MAX_SHOWN).map(|c| if c == '\t' { ' ' } else { c }).collect();
        let rest = shown.chars().count().saturating_sub(column - first);
        let carets = "^".repeat((at.width as usize).clamp(1, rest.max(1)));
        let number = at.line.to_string();
        let (margin, cut) = (" ".repeat(number.len()), if first > 0 { "…" } else { "" });
        let before = " ".repeat(column - first + cut.chars().count());
        format!("{number} | {cut}{shown}\n{margin} | {before}{carets}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_reads_from_place_to_hint() {
        let mut report = Report::new("api.yaml", "domain: api\ndescriptors:\n  - kei: a\n");
        let domain = Path::domain("api");
        let list = domain.key("descriptors");
        report.error(Span { line: 3, column: 5, width: 3 }, list.item(0), "unknown key `kei`").hint("did you mean `key`?");
        let expected = "api.yaml:3:5: error: unknown key `kei`\n  in domain api › descriptors[0]\n  3 |   - kei: a\n    |     ^^^\n  \
                        hint: did you mean `key`?";
        assert_eq!(report.problems[0].to_string(), expected);
    }

    #[test]
    fn long_lines_are_cut_around_the_place() {
        let source = format!("{}BAD{}", "x".repeat(1000), "y".repeat(1000));
        let mut report = Report::new("f", &source);
        let snippet = &report.error(Span { line: 1, column: 1001, width: 3 }, "", "bad").snippet;
        let lines: Vec<&str> = snippet.lines().collect();
        assert!(lines[0].chars().count() < 140 && lines[1].ends_with("^^^"));
        let place = lines[1].chars().position(|c| c == '^').expect("a caret");
        assert_eq!(lines[0].chars().skip(place).take(3).collect::<String>(), "BAD");
    }

    #[test]
    fn many_problems_are_counted() {
        let many = (0..250).map(|n| Problem::of_file(Severity::Error, format!("{n:03}"), "x")).collect();
        let text = Problems::new(many).to_string();
        assert_eq!(text.lines().count(), MAX_PRINTED + 1);
        assert!(text.ends_with("… and 150 more\n"));
    }
}

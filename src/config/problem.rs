//! What is wrong with rules, and where: for people as text, for programs as fields. A [`Report`] collects the problems of one
//! file; [`Problems`] are those of all files, sorted.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::fmt;

use super::raw::Span;
use crate::shown::{escaped, pictured};

/// How many errors of a file are kept, and how many warnings; the rest is counted.
const MAX_OF_A_FILE: usize = 100;
/// How many problems of all files are shown at once, of each severity; the rest is counted.
pub const MAX_SHOWN_AT_ONCE: usize = 1_000;
/// The most characters of a source line that are shown.
const MAX_SHOWN: usize = 120;
/// The most characters of a message or a path that are shown.
const MAX_TEXT: usize = 1_000;
/// How many lines a warning lists that it is repeated on.
const MAX_LINES: usize = 10;

/// Whether the rules can be used all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    Error,
    Warning,
}

impl Severity {
    pub fn name(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}

/// A number with the noun that it counts: `1 problem`, `2 problems`.
pub fn counted(number: usize, noun: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{ending}")
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
    /// Further lines of the file with the same warning, in order.
    pub also_on: Vec<u32>,
    /// How many further problems of the file this one stands for; 0 for a problem of its own.
    pub omitted: usize,
}

impl Problem {
    /// About a file as a whole.
    pub(crate) fn of_file(severity: Severity, file: impl AsRef<str>, message: impl AsRef<str>) -> Problem {
        Problem {
            severity,
            file: escaped(file.as_ref()).into_owned(),
            line: 0,
            column: 0,
            path: String::new(),
            message: escaped(message.as_ref()).into_owned(),
            hint: None,
            snippet: String::new(),
            also_on: Vec::new(),
            omitted: 0,
        }
    }

    /// Stands for this many further problems of a file.
    fn omitted(severity: Severity, file: &str, omitted: usize) -> Problem {
        let message = format!("and {}", counted(omitted, &format!("more {}", severity.name())));
        Problem { omitted, ..Problem::of_file(severity, file, message) }
    }

    /// How many problems it is.
    pub fn count(&self) -> usize {
        self.omitted.max(1)
    }

    /// The other lines with this warning, in words; `None` if there are none.
    pub fn repetitions(&self) -> Option<String> {
        let mut lines = self.also_on.clone();
        lines.sort_unstable();
        lines.dedup();
        lines.retain(|line| *line != self.line);
        let shown: Vec<String> = lines.iter().take(MAX_LINES).map(u32::to_string).collect();
        match (shown.split_last()?, lines.len() - shown.len()) {
            ((line, []), 0) => Some(format!("also on line {line}")),
            ((last, others), 0) => Some(format!("also on lines {} and {last}", others.join(", "))),
            (_, more) => Some(format!("also on lines {} and {more} more", shown.join(", "))),
        }
    }

    /// Adds what to write instead.
    pub(crate) fn hint(&mut self, hint: impl AsRef<str>) {
        self.hint = Some(escaped(hint.as_ref()).into_owned());
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}: {}", self.severity.name(), self.message)?;
        if !self.path.is_empty() {
            write!(f, "\n  in {}", self.path)?;
        }
        for line in self.snippet.lines() {
            write!(f, "\n  {line}")?;
        }
        if let Some(lines) = self.repetitions() {
            write!(f, "\n  {lines}")?;
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
        fn place(problem: &Problem) -> (&str, bool, u32, u32, &str) {
            (&problem.file, problem.omitted > 0, problem.line, problem.column, &problem.message)
        }
        problems.sort_by(|a, b| place(a).cmp(&place(b)));
        Problems(problems)
    }

    /// How many there are, those included that are only counted.
    pub fn len(&self) -> usize {
        self.0.iter().map(Problem::count).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }
}

/// The first [`MAX_SHOWN_AT_ONCE`], then how many more there are.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in self.0.iter().take(MAX_SHOWN_AT_ONCE) {
            writeln!(f, "{problem}")?;
        }
        match self.0.iter().skip(MAX_SHOWN_AT_ONCE).map(Problem::count).sum() {
            0 => Ok(()),
            more => writeln!(f, "… and {more} more"),
        }
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
    problems: Vec<Problem>,
    errors: usize,
    /// How many problems of each severity are kept, and how many are only counted.
    kept: [usize; 2],
    omitted: [usize; 2],
    /// Where the last problem goes that is only counted.
    lost: Problem,
    /// Warnings are errors.
    is_strict: bool,
    /// Where each warning is in `problems`, by its message: what is repeated is said once, with the lines.
    warnings: HashMap<String, usize>,
}

impl<'s> Report<'s> {
    pub(crate) fn new(file: &'s str, source: &'s str) -> Report<'s> {
        let (lines, problems, warnings) = (OnceCell::new(), Vec::new(), HashMap::new());
        let lost = Problem::of_file(Severity::Error, file, "");
        Report { file, source, lines, problems, errors: 0, kept: [0; 2], omitted: [0; 2], lost, is_strict: false, warnings }
    }

    /// The problems that were kept, and how many others there were.
    pub(crate) fn finish(self) -> Vec<Problem> {
        let Report { file, mut problems, omitted, .. } = self;
        for severity in [Severity::Error, Severity::Warning] {
            if omitted[severity as usize] > 0 {
                problems.push(Problem::omitted(severity, file, omitted[severity as usize]));
            }
        }
        problems
    }

    /// Makes errors of the warnings that follow.
    pub(crate) fn strict(self, is_strict: bool) -> Report<'s> {
        Report { is_strict, ..self }
    }

    /// How many errors there are so far.
    pub(crate) fn errors(&self) -> usize {
        self.errors
    }

    /// Further errors are only counted.
    pub(crate) fn is_full(&self) -> bool {
        self.kept[Severity::Error as usize] >= MAX_OF_A_FILE
    }

    pub(crate) fn error(&mut self, at: Span, path: impl fmt::Display, message: impl Into<String>) -> &mut Problem {
        self.errors += 1;
        self.add(Severity::Error, at, path, message)
    }

    /// Adds an error or a warning.
    pub(crate) fn complain(
        &mut self,
        severity: Severity,
        at: Span,
        path: impl fmt::Display,
        message: impl Into<String>,
    ) -> &mut Problem {
        match severity {
            Severity::Error => self.error(at, path, message),
            Severity::Warning => self.warning(at, path, message),
        }
    }

    /// Adds a warning, or lists another line of one that is there already.
    pub(crate) fn warning(&mut self, at: Span, path: impl fmt::Display, message: impl Into<String>) -> &mut Problem {
        let message = message.into();
        if let Some(&index) = self.warnings.get(&message) {
            self.errors += usize::from(self.is_strict);
            let first = &self.problems[index];
            let snippet = ((at.line, at.column) < (first.line, first.column)).then(|| self.snippet(at));
            let problem = &mut self.problems[index];
            match snippet {
                None => problem.also_on.push(at.line),
                // Not everything is read in the order in which it is written.
                Some(snippet) => {
                    problem.also_on.push(problem.line);
                    (problem.line, problem.column, problem.snippet) = (at.line, at.column, snippet);
                    problem.path = shortened(&path.to_string());
                }
            }
            return problem;
        }
        let severity = if self.is_strict { Severity::Error } else { Severity::Warning };
        if self.kept[severity as usize] < MAX_OF_A_FILE {
            self.warnings.insert(message.clone(), self.problems.len());
        }
        if self.is_strict {
            return self.error(at, path, message);
        }
        self.add(Severity::Warning, at, path, message)
    }

    /// A problem that is put together already.
    pub(crate) fn push(&mut self, problem: Problem) {
        self.errors += usize::from(problem.severity == Severity::Error);
        self.kept[problem.severity as usize] += 1;
        self.problems.push(problem);
    }

    fn add(&mut self, severity: Severity, at: Span, path: impl fmt::Display, message: impl Into<String>) -> &mut Problem {
        if self.kept[severity as usize] >= MAX_OF_A_FILE {
            self.omitted[severity as usize] += 1;
            return &mut self.lost;
        }
        self.kept[severity as usize] += 1;
        let snippet = self.snippet(at);
        self.problems.push(Problem {
            line: at.line,
            column: at.column,
            path: shortened(&path.to_string()),
            snippet,
            ..Problem::of_file(severity, self.file, shortened(&message.into()))
        });
        let last = self.problems.len() - 1;
        &mut self.problems[last]
    }

    fn snippet(&self, at: Span) -> String {
        let lines = self.lines.get_or_init(|| self.source.lines().collect());
        // Characters are counted up to the place only: a line may be as long as the file.
        let Some(line) = (at.line as usize).checked_sub(1).and_then(|index| lines.get(index)) else { return String::new() };
        let column = (at.column as usize).saturating_sub(1);
        let first = if line.chars().nth(MAX_SHOWN).is_some() { column.saturating_sub(MAX_SHOWN / 2) } else { 0 };
        let shown: String = line.chars().skip(first).take(MAX_SHOWN).map(pictured).collect();
        let rest = shown.chars().count().saturating_sub(column - first);
        let carets = "^".repeat((at.width as usize).clamp(1, rest.max(1)));
        let number = at.line.to_string();
        let (margin, cut) = (" ".repeat(number.len()), if first > 0 { "…" } else { "" });
        let before = " ".repeat(column - first + cut.chars().count());
        format!("{number} | {cut}{shown}\n{margin} | {before}{carets}\n")
    }
}

/// Escaped, and cut in the middle where it is very long.
fn shortened(text: &str) -> String {
    let count = text.chars().count();
    if count <= MAX_TEXT {
        return escaped(text).into_owned();
    }
    let place = |character: usize| text.char_indices().nth(character).map_or(text.len(), |(place, _)| place);
    let (begin, end) = (&text[..place(MAX_TEXT / 2)], &text[place(count - MAX_TEXT / 2)..]);
    format!("{}…{}", escaped(begin), escaped(end))
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
    fn a_repeated_warning_is_one_with_its_lines() {
        let mut report = Report::new("f", "a\nb\nc\nd\n");
        for line in [3, 2, 2, 4, 1] {
            report.warning(Span { line, column: 1, width: 1 }, "", "it does nothing").hint("leave it out");
        }
        assert_eq!(report.problems.len(), 1);
        let expected = "f:1:1: warning: it does nothing\n  1 | a\n    | ^\n  also on lines 2, 3 and 4\n  hint: leave it out";
        assert_eq!(report.problems[0].to_string(), expected);
        for line in 5..30 {
            report.warning(Span { line, column: 1, width: 1 }, "", "it does nothing");
        }
        let lines = report.problems[0].repetitions();
        assert_eq!(lines.as_deref(), Some("also on lines 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 18 more"));
        assert_eq!(report.errors(), 0);
    }

    #[test]
    fn a_strict_report_has_errors_in_place_of_warnings() {
        let mut report = Report::new("f", "a\n").strict(true);
        report.warning(Span { line: 1, column: 1, width: 1 }, "", "it does nothing");
        assert_eq!((report.errors(), report.problems[0].severity), (1, Severity::Error));
    }

    #[test]
    fn numbers_have_their_nouns() {
        assert_eq!([0, 1, 2].map(|number| counted(number, "problem")), ["0 problems", "1 problem", "2 problems"]);
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
        let many = (0..1250).map(|n| Problem::of_file(Severity::Error, format!("{n:04}"), "x")).collect();
        let text = Problems::new(many).to_string();
        assert_eq!(text.lines().count(), MAX_SHOWN_AT_ONCE + 1);
        assert!(text.ends_with("… and 250 more\n"));
    }

    #[test]
    fn a_file_keeps_its_first_problems_and_counts_the_others() {
        let mut report = Report::new("f", "a\n");
        let at = Span { line: 1, column: 1, width: 1 };
        for number in 0..350 {
            report.error(at, "", format!("error {number}")).hint("mend it");
            report.warning(at, "", format!("warning {number}"));
        }
        assert_eq!(report.errors(), 350);
        let problems = Problems::new(report.finish());
        assert_eq!((problems.iter().count(), problems.len()), (202, 700));
        let text = problems.to_string();
        assert!(text.ends_with("f: error: and 250 more errors\nf: warning: and 250 more warnings\n"), "{text}");
    }

    #[test]
    fn what_is_quoted_forges_no_line() {
        let mut report = Report::new("f", "x: \u{1b}[31my\n");
        report.error(Span { line: 1, column: 4, width: 1 }, "a\nb", "`\u{1b}[31m\u{202e}\n`").hint("\r");
        let expected = "f:1:4: error: `\\u{1b}[31m\\u{202e}\\n`\n  in a\\nb\n  1 | x: ␛[31my\n    |    ^\n  hint: \\r";
        assert_eq!(report.finish()[0].to_string(), expected);
    }
}

//! What `weir check` found, as text for people (in colour on a terminal) and as JSON for programs.

use std::fmt::Write;
use std::io::IsTerminal;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::play::Failure;
use crate::config::problem::{MAX_SHOWN_AT_ONCE, counted};
use crate::config::{Loaded, Problem, Severity};

/// When to print in colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Colour {
    Auto,
    Always,
    Never,
}

impl Colour {
    /// Whether standard output gets colours.
    pub(super) fn is_on(self) -> bool {
        let is_set = |variable: &str| std::env::var_os(variable).is_some_and(|value| !value.is_empty());
        match self {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => {
                let is_dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
                std::io::stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb
            }
        }
    }
}

/// SGR parameters of a terminal.
const BOLD: &str = "1";
const RED: &str = "1;31";
const YELLOW: &str = "1;33";
const BLUE: &str = "34";
const CYAN: &str = "36";
const GREEN: &str = "32";

/// Everything that was found in all paths.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// By path, warnings before errors.
    problems: Vec<Problem>,
    pub(super) failures: Vec<Failure>,
    domains: usize,
    rules: usize,
    pub(super) tests: usize,
}

impl Report {
    pub(super) fn add_rules(&mut self, loaded: &Loaded) {
        self.problems.extend(loaded.warnings.iter().chain(loaded.problems.iter()).cloned());
        self.domains += loaded.rules.domains.len();
        self.rules += loaded.rules.rule_count();
    }

    fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity == severity).map(Problem::count).sum()
    }

    pub(super) fn is_good(&self) -> bool {
        self.count(Severity::Error) == 0 && self.failures.is_empty()
    }

    /// In a few words, why the rules are not good.
    pub(super) fn verdict(&self) -> String {
        let (errors, warnings) = (self.count(Severity::Error), self.count(Severity::Warning));
        let mut parts = Vec::new();
        if errors > 0 {
            parts.push(counted(errors, "problem"));
        }
        if !self.failures.is_empty() {
            parts.push(format!("{} of {} failed", self.failures.len(), counted(self.tests, "test")));
        }
        if warnings > 0 {
            parts.push(counted(warnings, "warning"));
        }
        parts.join(", ")
    }

    /// Every problem and failed test, and of good rules how many they are.
    pub(super) fn text(&self, is_coloured: bool) -> String {
        let paint = |parameters: &str, text: &str| match is_coloured && !text.is_empty() {
            true => format!("\x1b[{parameters}m{text}\x1b[0m"),
            false => text.to_owned(),
        };
        let mut text = String::new();
        // Writing to a string cannot fail.
        for severity in [Severity::Warning, Severity::Error] {
            let of_kind = self.problems.iter().filter(|problem| problem.severity == severity);
            for problem in of_kind.clone().take(MAX_SHOWN_AT_ONCE) {
                let _ = writeln!(text, "{}\n", painted(problem, &paint));
            }
            let more = of_kind.skip(MAX_SHOWN_AT_ONCE).map(Problem::count).sum();
            if more > 0 {
                let _ = writeln!(text, "… and {}\n", counted(more, &format!("more {}", severity.name())));
            }
        }
        for failure in &self.failures {
            let Failure { source, test, domain, step, turn, repeat, expected, found } = failure;
            let turn = if *repeat > 1 { format!(", time {turn} of {repeat}") } else { String::new() };
            let _ = writeln!(text, "{}: {}: {test}", paint(BOLD, source), paint(RED, "test failed"));
            let _ = writeln!(text, "  in domain {domain}, step {step}{turn}\n  expected {expected}, found {found}\n");
        }
        if self.is_good() {
            let (rules, tests) = (counted(self.rules, "rule"), counted(self.tests, "test"));
            let _ = match self.count(Severity::Warning) {
                0 => writeln!(text, "{rules}, {tests}: {}", paint(GREEN, "all is well")),
                warnings => writeln!(text, "{rules}, {tests}: good, with {}", paint(YELLOW, &counted(warnings, "warning"))),
            };
        }
        text
    }

    /// Those that are shown: of each severity the first ones.
    fn shown(&self) -> impl Iterator<Item = &Problem> {
        let of_kind = |severity| self.problems.iter().filter(move |problem| problem.severity == severity).take(MAX_SHOWN_AT_ONCE);
        of_kind(Severity::Warning).chain(of_kind(Severity::Error))
    }

    /// The same, as one JSON object.
    pub(super) fn json(&self) -> String {
        let report = json!({
            "problems": self.shown().map(problem).collect::<Vec<_>>(),
            "failed_tests": self.failures.iter().map(failure).collect::<Vec<_>>(),
            "summary": {
                "good": self.is_good(),
                "errors": self.count(Severity::Error),
                "warnings": self.count(Severity::Warning),
                "domains": self.domains,
                "rules": self.rules,
                "tests": self.tests,
                "failed_tests": self.failures.len(),
            },
        });
        format!("{report:#}\n")
    }
}

/// As [`Problem`] is displayed, in colours.
fn painted(problem: &Problem, paint: &impl Fn(&str, &str) -> String) -> String {
    let colour = if problem.severity == Severity::Error { RED } else { YELLOW };
    let place = match problem.line {
        0 => problem.file.clone(),
        line => format!("{}:{line}:{}", problem.file, problem.column),
    };
    let mut lines = vec![format!("{}: {}: {}", paint(BOLD, &place), paint(colour, problem.severity.name()), problem.message)];
    if !problem.path.is_empty() {
        lines.push(format!("in {}", problem.path));
    }
    for line in problem.snippet.lines() {
        lines.push(match line.split_once(" | ") {
            Some((margin, carets)) if carets.trim_start().starts_with('^') && margin.trim().is_empty() => {
                let (indent, marks) = carets.split_at(carets.len() - carets.trim_start().len());
                format!("{} {indent}{}", paint(BLUE, &format!("{margin} |")), paint(colour, marks))
            }
            Some((margin, source)) => format!("{} {source}", paint(BLUE, &format!("{margin} |"))),
            None => line.to_owned(),
        });
    }
    lines.extend(problem.repetitions());
    if let Some(hint) = &problem.hint {
        lines.push(format!("{} {hint}", paint(CYAN, "hint:")));
    }
    lines.join("\n  ")
}

fn problem(problem: &Problem) -> Value {
    let place = |number: u32| (number > 0).then_some(number);
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    json!({
        "file": problem.file,
        "line": place(problem.line),
        "column": place(problem.column),
        "severity": problem.severity.name(),
        "path": text(&problem.path),
        "message": problem.message,
        "hint": problem.hint,
        "also_on_lines": problem.also_on,
    })
}

fn failure(failure: &Failure) -> Value {
    let (file, line) = failure.source.rsplit_once(':').unwrap_or((&failure.source, ""));
    json!({
        "file": file,
        "line": line.parse::<u32>().ok(),
        "test": failure.test,
        "domain": failure.domain,
        "step": failure.step,
        "turn": failure.turn,
        "expected": failure.expected,
        "found": failure.found,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{LoadOptions, load_texts};
    use crate::rules::RuleSet;

    const BAD: &str = "domain: d\ndescriptors:\n  - {kei: a}\n  - {key: a, detailed_metric: true, limits: 5}\n";

    fn report(text: &str) -> Report {
        let mut report = Report::default();
        report.add_rules(&load_texts(&[("a.yaml", text)], &LoadOptions::default(), &RuleSet::default()));
        report
    }

    #[test]
    fn without_colours_a_problem_is_as_the_log_has_it() {
        let loaded = load_texts(&[("a.yaml", BAD)], &LoadOptions::default(), &RuleSet::default());
        let expected: String =
            loaded.warnings.iter().chain(loaded.problems.iter()).map(|problem| format!("{problem}\n\n")).collect();
        assert_eq!(report(BAD).text(false), expected);
    }

    #[test]
    fn colours_add_nothing_but_colours() {
        let coloured = report(BAD).text(true);
        assert!(coloured.contains("\x1b[1;31merror\x1b[0m") && coloured.contains("\x1b[1;33mwarning\x1b[0m"), "{coloured}");
        assert!(coloured.contains("\x1b[36mhint:\x1b[0m") && coloured.contains("\x1b[1;31m^^^\x1b[0m"), "{coloured}");
        let codes = regex::Regex::new("\x1b\\[[0-9;]*m").expect("compiles");
        assert_eq!(codes.replace_all(&coloured, ""), report(BAD).text(false));
    }

    #[test]
    fn a_verdict_counts_each_kind() {
        assert_eq!(report(BAD).verdict(), "2 problems, 1 warning");
        assert_eq!(report("domain: d\ndescriptors: x\n").verdict(), "1 problem");
    }
}

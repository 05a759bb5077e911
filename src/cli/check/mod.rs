//! `weir check`: all problems of the rules, then their own `tests`, played on a clock set by hand with counters in memory.

mod play;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::config::{Loaded, MAX_FILE_BYTES, SourceFile, load_all};
use crate::regular_file;
use crate::settings::{Given, check_settings};
use report::{Colour, Report};

/// The path that stands for standard input, and how problems name it.
const STDIN: (&str, &str) = ("-", "<stdin>");

#[derive(Debug, Args)]
#[command(after_help = "Exit code: 0 if the rules are good, 1 if they have problems or a test fails, 2 if weir cannot check them.")]
pub(super) struct CheckArgs {
    /// Rules files and directories; `-` is standard input. Files are checked together, as if they stood in one directory, and
    /// each directory by itself. Without a path, the rules of a server with the same environment (config/rules).
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Lets several documents add to one domain, as a server with MERGE_DOMAIN_CONFIG does.
    #[arg(long)]
    merge_domains: bool,
    /// Takes warnings for errors, as a server with --strict does.
    #[arg(long)]
    strict: bool,
    /// Prints problems, failed tests and a summary as JSON.
    #[arg(long)]
    json: bool,
    /// When to print in colour; `auto`: to a terminal, unless NO_COLOR is set.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Colour::Auto)]
    color: Colour,
}

/// Prints what is wrong.
pub(super) fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let flags = [("merge_domain_config", args.merge_domains), ("strict", args.strict)];
    let flags = flags.into_iter().filter(|(_, is_on)| *is_on).map(|(key, _)| (key, true.to_string()));
    let (rules, options) = match check_settings(&Given::of(flags), &|variable| std::env::var_os(variable)) {
        Ok(settings) => settings,
        Err(problems) => return Ok(cannot(&problems.to_string())),
    };
    let mut report = Report::default();
    let paths = if args.paths.is_empty() { vec![rules] } else { args.paths.clone() };
    let (directories, files): (Vec<PathBuf>, Vec<PathBuf>) = paths.into_iter().partition(|path| path.is_dir());
    let (inputs, files): (Vec<PathBuf>, Vec<PathBuf>) = files.into_iter().partition(|path| path.as_os_str() == STDIN.0);
    let input = match (!inputs.is_empty()).then(|| regular_file::read_stdin(MAX_FILE_BYTES)).transpose() {
        Ok(input) => input.map(|bytes| SourceFile::of_bytes(STDIN.1, bytes)),
        Err(error) => return Ok(cannot(&format!("cannot read standard input: {error}"))),
    };
    if input.is_some() || !files.is_empty() {
        add(&mut report, &load_all(&files, input, &options));
    }
    for directory in directories {
        add(&mut report, &load_all(&[directory], None, &options));
    }
    super::print(&if args.json { report.json() } else { report.text(args.color.is_on()) })?;
    let is_good = report.is_good();
    if !is_good && !args.json {
        eprintln!("weir: {}", report.verdict());
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The rules were not looked at.
fn cannot(reason: &str) -> ExitCode {
    eprintln!("weir: {reason}");
    ExitCode::from(2)
}

/// Adds the problems of rules, and the tests of good ones.
fn add(report: &mut Report, loaded: &Loaded) {
    report.add_rules(loaded);
    if loaded.problems.is_empty() {
        report.tests += loaded.tests.len();
        report.failures.extend(loaded.tests.iter().filter_map(|test| play::failure(&loaded.rules, test)));
    }
}

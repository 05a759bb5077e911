//! The command line: one file per command.

mod admin;
pub mod bench;
mod check;
mod completions;
mod schema;
mod serve;
mod welcome;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::settings::{Given, unknown_variables};

/// A rate-limit service for Envoy: exact decisions in memory or in Redis.
///
/// Every setting is a flag, an environment variable (--grpc-listen is WEIR_GRPC_LISTEN) and a key of the settings file
/// (grpc_listen); the flag counts before the variable, the variable before the file.
#[derive(Debug, Parser)]
#[command(name = "weir", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Given,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answers rate-limit calls; what `weir` does without a command.
    Serve(Given),
    /// Reports every problem of the rules, then plays their own tests.
    Check(check::CheckArgs),
    /// Measures any Envoy rate-limit service: rate, latency, answers, and the server's CPU per decision.
    Bench(Box<bench::BenchArgs>),
    #[command(flatten)]
    Admin(admin::AdminCommand),
    /// Prints the JSON Schema of rules files, for editors.
    Schema,
    /// Prints a script that completes weir's commands and flags in a shell.
    Completions(completions::CompletionsArgs),
}

/// Runs what the arguments ask for, to its exit code.
///
/// # Errors
/// Whatever kept it from doing so, in words for the person who typed it.
pub fn run() -> anyhow::Result<ExitCode> {
    let Cli { command, serve } = Cli::parse_from(arguments(std::env::args_os()));
    let command = command.unwrap_or(Command::Serve(serve));
    // A server logs them.
    if matches!(command, Command::Check(_) | Command::Admin(_)) {
        for warning in unknown_variables(std::env::vars_os()) {
            eprintln!("weir: warning: {warning}");
        }
    }
    match command {
        Command::Serve(given) => return serve::run(&given),
        Command::Check(args) => return check::run(&args),
        Command::Bench(args) => bench::run(*args),
        Command::Admin(command) => return admin::run(command),
        Command::Schema => schema::run(),
        Command::Completions(args) => completions::run(&args, Cli::command()),
    }
    .map(|()| ExitCode::SUCCESS)
}

/// What was typed. After `help`, clap takes `--help` for the name of a command; it asks for what `help` alone prints.
fn arguments(typed: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = typed.collect();
    if arguments.get(1).is_some_and(|command| command == "help") {
        let typed = arguments.len();
        arguments.retain(|argument| argument != "--help" && argument != "-h");
        if arguments.len() == 2 && typed > 2 {
            arguments.push("help".into());
        }
    }
    arguments
}

/// A reader who has seen enough is no error.
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

//! The command line: one file per command.

pub mod bench;
mod serve;

use clap::{Parser, Subcommand};

/// A rate-limit service for Envoy.
#[derive(Debug, Parser)]
#[command(name = "weir", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answers rate-limit calls; what `weir` alone does.
    Serve,
    /// Measures any Envoy rate-limit service: rate, latency, answers, and the server's CPU per decision.
    Bench(Box<bench::BenchArgs>),
}

/// Runs what the arguments ask for.
///
/// # Errors
/// Whatever kept it from doing so, in words for the person who typed it.
pub fn run() -> anyhow::Result<()> {
    match Cli::parse().command.unwrap_or(Command::Serve) {
        Command::Serve => serve::run(),
        Command::Bench(args) => bench::run(*args),
    }
}

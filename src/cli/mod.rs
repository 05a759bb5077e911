//! The command line: one file per command.

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
}

/// Runs what the arguments ask for.
///
/// # Errors
/// Whatever kept it from doing so, in words for the person who typed it.
pub fn run() -> anyhow::Result<()> {
    match Cli::parse().command.unwrap_or(Command::Serve) {
        Command::Serve => serve::run(),
    }
}

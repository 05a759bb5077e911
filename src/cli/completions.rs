//! `weir completions`.

use clap::{Args, Command};
use clap_complete::{Shell, generate};

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell that is to read the script.
    shell: Shell,
}

/// Prints the script for all that can be typed.
pub(super) fn run(args: &CompletionsArgs, mut command: Command) -> anyhow::Result<()> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    generate(args.shell, &mut command, name, &mut script);
    super::print(&String::from_utf8(script)?)
}

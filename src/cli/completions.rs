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
    let script = String::from_utf8(script)?;
    super::print(&match args.shell {
        Shell::Bash => in_bash(&script),
        Shell::Fish => in_fish(&script, &closed_values(&command)),
        Shell::Elvish => in_elvish(&script, &closed_values(&command)),
        Shell::PowerShell => in_powershell(&script, &closed_values(&command)),
        _ => script,
    })
}

/// Bash takes the `=` of `--log-level=debug` for a word of its own: the value is that of the flag before it.
fn in_bash(script: &str) -> String {
    const PREVIOUS: &str = "    prev=\"$3\"\n";
    const EQUALS: &str = "    if [[ \"${prev}\" == \"=\" ]] ; then prev=\"${COMP_WORDS[COMP_CWORD-2]}\" ; fi\n    \
                          if [[ \"${cur}\" == \"=\" ]] ; then cur=\"\" ; fi\n";
    after(script, PREVIOUS, EQUALS)
}

/// The values of a flag, or of an argument, that takes one of a few.
struct Values {
    /// `serve --log-level`; `reset` for an argument of it; ` --log-level` without a command.
    place: String,
    values: Vec<String>,
}

/// `clap_complete` tells them to bash and zsh; to fish those of flags, and to other shells none.
fn closed_values(command: &Command) -> Vec<Values> {
    let mut all = Vec::new();
    let commands = std::iter::once(("", command)).chain(command.get_subcommands().map(|one| (one.get_name(), one)));
    for (name, command) in commands {
        for arg in command.get_arguments().filter(|arg| arg.get_action().takes_values()) {
            let values: Vec<String> = arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
            if !values.is_empty() {
                let place = arg.get_long().map_or_else(|| name.to_owned(), |flag| format!("{name} --{flag}"));
                all.push(Values { place, values });
            }
        }
    }
    all
}

/// Adds the values of arguments.
fn in_fish(script: &str, all: &[Values]) -> String {
    let arguments = all.iter().filter(|of| !of.place.contains(" --"));
    let lines = arguments.map(|Values { place, values }| {
        format!("complete -c weir -n \"__fish_weir_using_subcommand {place}\" -f -a \"{}\"\n", values.join(" "))
    });
    script.to_owned() + &lines.collect::<String>()
}

/// Looks the word before the cursor up before the script's own completions.
fn in_elvish(script: &str, all: &[Values]) -> String {
    let rows = all.iter().map(|Values { place, values }| format!("        &'{place}'= [{}]\n", values.join(" ")));
    let rows: String = rows.collect();
    let lookup = format!(
        "    var values = [\n{rows}    ]
    var subcommand = ''
    if (and (> (count $words) 2) (not (str:has-prefix $words[1] '-'))) {{ set subcommand = $words[1] }}
    var of-flag = $subcommand' '$words[-2]
    if (has-key $values $of-flag) {{
        all $values[$of-flag]
    }} else {{
        if (has-key $values $subcommand) {{ all $values[$subcommand] }}
        if (has-key $completions $command) {{ $completions[$command] }}
    }}
"
    );
    script.replacen("    $completions[$command]\n", &lookup, 1)
}

/// As in elvish; the values of an argument stand beside the script's own completions.
fn in_powershell(script: &str, all: &[Values]) -> String {
    let quoted = |values: &[String]| values.iter().map(|value| format!("'{value}'")).collect::<Vec<_>>().join(", ");
    let rows = all.iter().map(|Values { place, values }| format!("        '{place}' = @({})\n", quoted(values)));
    let rows: String = rows.collect();
    let lookup = format!(
        "    $values = @{{\n{rows}    }}
    $words = @($commandElements | Where-Object {{ $_.Extent.EndOffset -le $cursorPosition }} | ForEach-Object {{ $_.ToString() }})
    if ($wordToComplete -ne '') {{ $words = @($words | Select-Object -SkipLast 1) }}
    $subcommand = if ($words.Count -gt 1 -and -not $words[1].StartsWith('-')) {{ $words[1] }} else {{ '' }}
    $offered = $values[\"$subcommand $($words[-1])\"]
    $isOfFlag = $null -ne $offered
    if (-not $isOfFlag) {{ $offered = $values[$subcommand] }}
    $offered | Where-Object {{ $_ -like \"$wordToComplete*\" }} |
        ForEach-Object {{ [CompletionResult]::new($_, $_, [CompletionResultType]::ParameterValue, $_) }}
    if ($isOfFlag) {{ return }}
"
    );
    after(script, "    $commandElements = $commandAst.CommandElements\n", &lookup)
}

/// A script with more lines after one of its own.
fn after(script: &str, line: &str, more: &str) -> String {
    script.replacen(line, &format!("{line}{more}"), 1)
}

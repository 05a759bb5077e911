//! `weir completions`: scripts that their shells can read, and that complete what weir takes.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;

use tempfile::TempDir;

/// The script for a shell, in a file.
fn script(shell: &str) -> (TempDir, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_weir")).args(["completions", shell]).output().unwrap();
    assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("weir");
    fs::write(&file, output.stdout).unwrap();
    let path = file.to_str().unwrap().to_owned();
    (directory, path)
}

fn bash(arguments: &[&str]) -> String {
    let output = Command::new("bash").args(["--noprofile", "--norc"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What bash would offer after these words, the last of which is being typed.
fn offered(script: &str, words: &[&str]) -> Vec<String> {
    const COMPLETE: &str = r#"
        source "$1"
        shift
        COMP_WORDS=("$@")
        COMP_CWORD=$(($# - 1))
        _weir weir "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let arguments = [&["-c", COMPLETE, "complete", script], words].concat();
    bash(&arguments).lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_flags_and_values() {
    let (_directory, script) = script("bash");
    bash(&["-n", &script]);
    assert_eq!(offered(&script, &["weir", "comp"]), ["completions"]);
    let commands = offered(&script, &["weir", ""]);
    for command in ["serve", "check", "bench", "usage", "override", "completions"] {
        assert!(commands.iter().any(|offered| offered == command), "{command}: {commands:?}");
    }
    assert_eq!(offered(&script, &["weir", "serve", "--grpc"]), ["--grpc-listen"]);
    assert_eq!(offered(&script, &["weir", "override", "--mult"]), ["--multiplier"]);
    assert_eq!(offered(&script, &["weir", "reset", "api", "user_id=u1", "mon"]), ["monthly"]);
    assert!(offered(&script, &["weir", "serve", "--no-such"]).iter().all(String::is_empty));
}

/// Every flag and argument that takes one of a few values: how far it is typed, and what there is to choose from.
const CLOSED: [(&[&str], &[&str]); 9] = [
    (&["serve", "--log-level"], &["off", "error", "warn", "info", "debug", "trace"]),
    (&["serve", "--log-format"], &["text", "json"]),
    (&["serve", "--charge"], &["auto", "admitted", "always"]),
    (&["serve", "--shadow-mode"], &["true", "false"]),
    (&["serve", "--admin-local-changes"], &["true", "false"]),
    (&["bench", "--draw"], &["uniform", "zipf"]),
    (
        &["override", "api", "--algorithm"],
        &["fixed_window", "sliding_window_log", "sliding_window", "token_bucket", "leaky_bucket"],
    ),
    (&["override", "api", "--clear"], &["tier", "block", "allow", "multiplier", "limits"]),
    (&["--log-level"], &["off", "error", "warn", "info", "debug", "trace"]),
];

#[test]
fn bash_offers_the_values_of_closed_flags() {
    let (_directory, script) = script("bash");
    for (typed, values) in CLOSED {
        let words = [&["weir"], typed].concat();
        assert_eq!(offered(&script, &[&words[..], &[""]].concat()), values, "{typed:?}");
        // Bash takes the equals sign for a word.
        assert_eq!(offered(&script, &[&words[..], &["="]].concat()), values, "{typed:?}=");
        let (first, begun) = (values[0], &values[0][..2]);
        assert_eq!(offered(&script, &[&words[..], &["=", begun]].concat())[0], first, "{typed:?}={begun}");
    }
    for (typed, value) in
        [(&["weir", "completions", "z"][..], "zsh"), (&["weir", "reset", "api", "user_id", "=", "u1", "mon"], "monthly")]
    {
        assert_eq!(offered(&script, typed), [value], "{typed:?}");
    }
}

#[test]
fn other_shells_know_the_values_of_closed_flags() {
    let scripts = ["zsh", "fish", "elvish", "powershell"].map(|shell| (shell, script(shell)));
    for (shell, (_directory, path)) in &scripts {
        let text = fs::read_to_string(path).unwrap();
        for (typed, values) in CLOSED {
            let flag = typed.last().unwrap();
            let place = match typed {
                [_] => format!(" {flag}"),
                [command, ..] => format!("{command} {flag}"),
                [] => String::new(),
            };
            let expected = match *shell {
                "zsh" => format!(":({})", values.join(" ")),
                "fish" => format!(" -a \"{}\\t", values[0]),
                "elvish" => format!("&'{place}'= [{}]", values.join(" ")),
                _ => format!("'{place}' = @('{}')", values.join("', '")),
            };
            let named = match *shell {
                "zsh" => format!("{flag}="),
                "fish" => format!("-l {} ", flag.trim_start_matches("--")),
                _ => place,
            };
            let has_both = |line: &str| line.contains(&named) && (line.contains(&expected) || line.contains("(("));
            assert!(text.lines().any(has_both), "{shell}: {flag} has no {expected}");
        }
    }
}

#[test]
fn fish_knows_the_values_of_arguments() {
    let (_directory, path) = script("fish");
    let text = fs::read_to_string(path).unwrap();
    for (command, values) in [("completions", "bash elvish fish powershell zsh"), ("reset", "all daily monthly rate")] {
        let line = format!("complete -c weir -n \"__fish_weir_using_subcommand {command}\" -f -a \"{values}\"");
        assert!(text.lines().any(|one| one == line), "no line {line}");
    }
}

#[test]
fn help_has_help() {
    let weir = |arguments: &[&str], environment: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        let output = command.args(arguments).envs(environment.iter().copied()).output().unwrap();
        let text = String::from_utf8(if output.status.success() { output.stdout } else { output.stderr }).unwrap();
        (output.status.success(), text)
    };
    let help = weir(&["help", "help"], &[]);
    assert!(help.0 && help.1.contains("Usage: weir help [COMMAND]"), "{help:?}");
    for arguments in [&["help", "--help"][..], &["help", "-h"]] {
        assert_eq!(weir(arguments, &[]), help, "{arguments:?}");
    }
    let usage = weir(&["help", "usage"], &[]);
    assert!(usage.0 && usage.1.contains("Usage: weir usage [OPTIONS] <DOMAIN> <SUBJECT>"), "{usage:?}");
    assert_eq!(weir(&["help", "usage", "--help"], &[]), usage);
    let (succeeds, unknown) = weir(&["help", "nosuch"], &[]);
    assert!(!succeeds && unknown.contains("'nosuch'"), "{unknown}");
}

#[test]
fn what_comes_from_the_environment_is_not_shown_as_something_to_type() {
    for command in ["usage", "reset", "assign", "override", "explain", "import"] {
        for arguments in [&[command][..], &[command, "--help"]] {
            let mut weir = Command::new(env!("CARGO_BIN_EXE_weir"));
            weir.args(arguments).env("WEIR_ADMIN", "http://127.0.0.1:1").env("WEIR_ADMIN_TOKEN_FILE", "no/such/file");
            let output = weir.output().unwrap();
            let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            let usage = text.lines().find(|line| line.starts_with("Usage:")).unwrap();
            assert!(!usage.contains("--admin") && !usage.contains("--token-file"), "{arguments:?}: {usage}");
        }
    }
}

#[test]
fn other_shells_have_theirs() {
    for (shell, start) in
        [("zsh", "#compdef weir"), ("fish", "# Print"), ("powershell", "\nusing namespace"), ("elvish", "\nuse builtin;")]
    {
        let (_directory, path) = script(shell);
        let text = fs::read_to_string(path).unwrap();
        assert!(text.starts_with(start) && text.contains("grpc-listen"), "{shell}: {}", &text[..200]);
    }
    let unknown = Command::new(env!("CARGO_BIN_EXE_weir")).args(["completions", "tcsh"]).output().unwrap();
    assert!(!unknown.status.success() && String::from_utf8_lossy(&unknown.stderr).contains("zsh"));
}

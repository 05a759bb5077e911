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

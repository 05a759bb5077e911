//! What was given, where, and which of it counts.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, ArgMatches, Command};

use super::environment::is_of_a_service;
use super::file;
use super::names::{FILE, NAMES, Name};
use super::values::redacted;
use crate::config::keys::nearest;
use crate::regular_file;

/// Settings as they were written, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given(BTreeMap<&'static str, String>);

impl Given {
    /// As if these flags had been given, by their settings' keys.
    pub fn of(flags: impl IntoIterator<Item = (&'static str, String)>) -> Given {
        Given(flags.into_iter().collect())
    }
}

impl clap::Args for Given {
    fn augment_args(command: Command) -> Command {
        [&FILE].into_iter().chain(NAMES).fold(command, |command, name| {
            let arg = Arg::new(name.key).long(name.flag()).help(help(name));
            // The help lists the values in its words.
            let arg = arg.value_parser(FlagValue(name.values)).hide_possible_values(true);
            command.arg(match name.value {
                // A value that looks like a flag, such as -1ms, is told of as in a variable: what is allowed in its place.
                Some(value) => arg.value_name(value).allow_hyphen_values(true),
                None => arg.num_args(0..=1).default_missing_value("true").value_name("true|false"),
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Given::augment_args(command)
    }
}

/// Takes any text, for [`Layers`] to say what is allowed, and knows the words that a shell offers.
#[derive(Clone, Copy, Debug)]
struct FlagValue(&'static [&'static str]);

impl TypedValueParser for FlagValue {
    type Value = String;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<String, clap::Error> {
        StringValueParser::new().try_map(|text| value_of_flag(&text)).parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        (!self.0.is_empty()).then(|| Box::new(self.0.iter().map(PossibleValue::new)) as Box<_>)
    }
}

/// A flag that follows at once was not meant as the value.
fn value_of_flag(text: &str) -> Result<String, &'static str> {
    let flag = text.strip_prefix("--").and_then(|rest| rest.split('=').next());
    let is_flag = flag.is_some_and(|flag| [&FILE].into_iter().chain(NAMES).any(|name| name.flag() == flag));
    if is_flag { Err("that is a flag; a value is needed before it") } else { Ok(text.to_owned()) }
}

fn help(name: &Name) -> String {
    let default = if name.default.is_empty() { String::new() } else { format!(" [default: {}]", name.default) };
    let known = name.known_variable().map(|known| format!(" [env: {known}]")).unwrap_or_default();
    format!("{}{default}{known}", name.help)
}

impl clap::FromArgMatches for Given {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Given, clap::Error> {
        let given = |name: &Name| matches.get_one::<String>(name.key).map(|text| (name.key, text.clone()));
        Ok(Given([&FILE].into_iter().chain(NAMES).filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.extend(Given::from_arg_matches(matches)?.0);
        Ok(())
    }
}

/// A setting that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {reason}")]
pub struct SettingProblem {
    /// The flag, environment variable, or file and key.
    pub origin: String,
    pub reason: String,
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingProblems(pub Vec<SettingProblem>);

impl fmt::Display for SettingProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let problems: Vec<String> = self.0.iter().map(SettingProblem::to_string).collect();
        f.write_str(&problems.join("\n"))
    }
}

impl std::error::Error for SettingProblems {}

/// The value of an environment variable, where there is one.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The longest settings file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Flags over environment over file over defaults.
pub(super) struct Layers<'a> {
    flags: &'a Given,
    environment: Environment<'a>,
    /// What the settings file says, and where.
    file: BTreeMap<&'static str, (String, String)>,
    /// What was asked for and is not the default: where it was given, and its text.
    found: BTreeMap<&'static str, (String, String)>,
    problems: Vec<SettingProblem>,
}

/// Where each setting was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<&'static str, String>);

impl Origins {
    /// The flag, environment variable, or file and key; the flag, where it was not given.
    pub fn of(&self, key: &str) -> String {
        self.0.get(key).cloned().unwrap_or_else(|| named(key).origin())
    }
}

fn named(key: &str) -> &'static Name {
    NAMES.iter().find(|name| name.key == key).expect("the setting is in the table")
}

impl<'a> Layers<'a> {
    /// Reads the settings file, if one is named.
    pub(super) fn new(flags: &'a Given, environment: Environment<'a>) -> Layers<'a> {
        let (file, found, problems) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let mut layers = Layers { flags, environment, file, found, problems };
        if let Some((origin, path)) = layers.find(&FILE) {
            match regular_file::read_in_time(path.as_ref(), MAX_FILE).and_then(regular_file::text) {
                Ok(text) => layers.read(&path, &text),
                Err(error) => {
                    let flag = FILE.origin();
                    let reason = format!("{path}: {error}; name a settings file by {flag} or {}", FILE.variable());
                    layers.problems.push(SettingProblem { origin, reason });
                }
            }
        }
        layers
    }

    fn read(&mut self, path: &str, text: &str) {
        let (entries, mistakes) = file::read(text);
        for file::Mistake { line, key, reason } in mistakes {
            let origin = if line == 0 { path.to_owned() } else { format!("{path}:{line}") };
            let origin = key.map_or_else(|| origin.clone(), |key| format!("{origin}: {key}"));
            self.problems.push(SettingProblem { origin, reason });
        }
        for file::Entry { line, key, value } in entries {
            match NAMES.iter().find(|name| name.key == key) {
                Some(name) => {
                    let value = value.map(|value| (format!("{path}:{line}: {key}"), value));
                    self.file.extend(value.map(|value| (name.key, value)));
                }
                None => self.problems.push(SettingProblem { origin: format!("{path}:{line}"), reason: unknown(&key) }),
            }
        }
    }

    /// The value of a setting, and where it was given.
    fn find(&mut self, name: &Name) -> Option<(String, String)> {
        if let Some(text) = self.flags.0.get(name.key) {
            return Some((name.origin(), text.clone()));
        }
        for variable in [Some(name.variable()), name.known_variable()].into_iter().flatten() {
            // A variable that is set to nothing says nothing, as templates for containers leave them.
            let Some(text) = (self.environment)(&variable).filter(|text| !text.is_empty()) else { continue };
            match text.into_string() {
                // A Service of Kubernetes by an unlucky name.
                Ok(text) if is_of_a_service(&variable, &text) => {}
                Ok(text) => return Some((variable, text)),
                Err(text) => {
                    let reason = format!("`{}` is not allowed; use text in UTF-8", redacted(&text.to_string_lossy()));
                    self.problems.push(SettingProblem { origin: variable, reason });
                    return None;
                }
            }
        }
        self.file.get(name.key).cloned()
    }

    /// The value of a setting. One that is not allowed is noted, and the default stands in for it.
    pub(super) fn get<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let name = named(key);
        let default = || parse(name.default).expect("defaults are allowed");
        let Some((origin, text)) = self.find(name) else { return default() };
        let parsed = parse(&text);
        self.found.insert(name.key, (origin, text));
        parsed.unwrap_or_else(|allowed| {
            self.refuse(key, &allowed);
            default()
        })
    }

    /// Notes that a setting's value is not allowed.
    pub(super) fn refuse(&mut self, key: &str, allowed: &str) {
        let name = named(key);
        let (origin, text) = self.found.get(key).cloned().unwrap_or_else(|| (name.origin(), name.default.to_owned()));
        self.problems.push(SettingProblem { origin, reason: format!("`{}` is not allowed; {allowed}", redacted(&text)) });
    }

    pub(super) fn origins(&self) -> Origins {
        Origins(self.found.iter().map(|(key, (origin, _))| (*key, origin.clone())).collect())
    }

    /// The settings, unless there were problems.
    pub(super) fn finish<T>(self, settings: T) -> Result<T, SettingProblems> {
        if self.problems.is_empty() { Ok(settings) } else { Err(SettingProblems(self.problems)) }
    }
}

fn unknown(key: &str) -> String {
    let hint = nearest(key, NAMES.iter().map(|name| name.key)).map(|name| format!("; did you mean `{name}`?"));
    format!("there is no setting `{key}`{}", hint.unwrap_or_default())
}

//! Commands for operators: each asks the admin API of a running weir.

mod assign;
mod client;
mod explain;
mod export;
mod import;
mod overriding;
mod reset;
mod table;
mod tiers;
mod usage;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::Value;

use super::print;
use crate::config::problem::counted;
use crate::shown::escaped_lines;
use client::Client;

#[derive(Debug, Subcommand)]
pub(super) enum AdminCommand {
    /// Shows every limit and quota of a subject: used, remaining, when it resets; or its history by days.
    Usage(usage::UsageArgs),
    /// Forgets what a subject has used.
    Reset(reset::ResetArgs),
    /// Assigns a tier to a subject, or takes it away.
    Assign(assign::AssignArgs),
    /// Lists the tiers of a domain: those of the rules files, and those defined while weir runs.
    Tiers(tiers::TiersArgs),
    /// Changes the limits of one subject, blocks it, exempts it; shows and lists overrides.
    Override(Box<overriding::OverrideArgs>),
    /// Says what would be decided of a request, and why, without counting it.
    Explain(explain::ExplainArgs),
    /// Writes every override, tier and switch that operators set, as YAML.
    Export(export::ExportArgs),
    /// Reads what `weir export` wrote, YAML or JSON, in place of records of the same names.
    Import(import::ImportArgs),
}

/// Where the admin API is, and how its answers are shown.
#[derive(Clone, Debug, Args)]
struct Connection {
    // What comes from the environment is no argument: clap would show it as one that has to be typed.
    /// The admin API of any replica [env: WEIR_ADMIN] [default: http://127.0.0.1:6070]
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// A file with the bearer token: the token alone, or `name token` as the server has it [env: WEIR_ADMIN_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Prints the answer as JSON.
    #[arg(long)]
    json: bool,
}

/// Where the admin API is, unless a flag or a variable says otherwise.
const ADMIN: &str = "http://127.0.0.1:6070";

/// A variable that is set to nothing counts as not set.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Whom it is about.
#[derive(Clone, Debug, Args)]
struct Subject {
    /// The domain of the rules.
    domain: String,
    /// key=value, such as user_id=u1.
    subject: String,
}

impl Subject {
    /// Its path in the API.
    fn path(&self) -> String {
        format!("/v1/domains/{}/subjects/{}", client::escaped(&self.domain), client::escaped(&self.subject))
    }
}

pub(super) fn run(command: AdminCommand) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            AdminCommand::Explain(args) => return Ok(explain::run(args).await),
            AdminCommand::Usage(args) => usage::run(args).await,
            AdminCommand::Reset(args) => reset::run(args).await,
            AdminCommand::Assign(args) => assign::run(args).await,
            AdminCommand::Tiers(args) => tiers::run(args).await,
            AdminCommand::Override(args) => overriding::run(*args).await,
            AdminCommand::Export(args) => export::run(args).await,
            AdminCommand::Import(args) => import::run(args).await,
        }
        .map(|()| ExitCode::SUCCESS)
    })
}

impl Connection {
    /// The admin API's address: by the flag, else the environment, else the default.
    fn address(&self) -> anyhow::Result<String> {
        match (&self.admin, variable("WEIR_ADMIN")) {
            (Some(address), _) => Ok(address.clone()),
            (None, Some(address)) => address.into_string().map_err(|_| anyhow!("WEIR_ADMIN is not UTF-8")),
            (None, None) => Ok(ADMIN.to_owned()),
        }
    }

    fn client(&self) -> anyhow::Result<Client> {
        let token_file = self.token_file.clone().or_else(|| variable("WEIR_ADMIN_TOKEN_FILE").map(PathBuf::from));
        Client::new(&self.address()?, token_file.as_deref())
    }

    /// The answer as JSON, if that was asked for; else by `text`, and its warnings.
    fn show(&self, answer: &Value, text: impl FnOnce(&Value) -> String) -> anyhow::Result<()> {
        if self.json {
            return print(&(serde_json::to_string_pretty(answer)? + "\n"));
        }
        let warnings = items(answer, "warnings").iter().filter_map(Value::as_str);
        print(&escaped_lines(&warnings.fold(text(answer), |text, warning| format!("{text}warning: {warning}\n"))))
    }
}

/// A field's text; empty where there is none.
fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_default()
}

/// What holds for a subject as a whole: `tier pro`, `blocked until …`.
fn standing(subject: &Value) -> impl Iterator<Item = String> {
    let words = [("tier", "tier"), ("blocked_until", "blocked until"), ("allowed_until", "exempt until")];
    let said = words.into_iter().map(|(field, words)| (words, text(subject, field)));
    said.filter(|(_, value)| !value.is_empty()).map(|(words, value)| format!("{words} {}", to_millis(value)))
}

/// A moment as people read it: to the millisecond, never before it is. Other text stays as it is.
fn to_millis(text: &str) -> String {
    let moment = text.parse::<Timestamp>().ok();
    let rounded = moment.and_then(|moment| Timestamp::from_millisecond(ceil(moment.as_nanosecond(), 1_000_000)?).ok());
    rounded.map_or_else(|| text.to_owned(), |moment| moment.to_string())
}

fn ceil(number: i128, unit: i128) -> Option<i64> {
    let is_whole = number.rem_euclid(unit) == 0;
    i64::try_from(number.div_euclid(unit) + i128::from(!is_whole)).ok()
}

/// What a field counts, with its noun: `1 counter`, `2 counters`.
fn count(answer: &Value, field: &str, noun: &str) -> String {
    let number = answer[field].as_u64().and_then(|number| usize::try_from(number).ok());
    counted(number.unwrap_or(0), noun)
}

fn items<'v>(value: &'v Value, field: &str) -> &'v [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_shown_to_the_millisecond_and_never_too_early() {
        for (written, shown) in [
            ("2027-01-15T08:00:00.000001Z", "2027-01-15T08:00:00.001Z"),
            ("2027-01-15T08:00:00.123Z", "2027-01-15T08:00:00.123Z"),
            ("2027-01-15T07:59:59.999500Z", "2027-01-15T08:00:00Z"),
            ("2027-01-15T08:00:00Z", "2027-01-15T08:00:00Z"),
            ("1969-12-31T23:59:59.9999Z", "1970-01-01T00:00:00Z"),
            ("pro", "pro"),
        ] {
            assert_eq!(to_millis(written), shown);
        }
    }
}

//! Commands for operators: each asks the admin API of a running weir.

mod assign;
mod client;
mod explain;
mod export;
mod import;
mod overriding;
mod reset;
mod table;
mod usage;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Subcommand};
use serde_json::Value;

use super::print;
use client::Client;

#[derive(Debug, Subcommand)]
pub(super) enum AdminCommand {
    /// Shows every limit and quota of a subject: used, remaining, when it resets; or its history by days.
    Usage(usage::UsageArgs),
    /// Forgets what a subject has used.
    Reset(reset::ResetArgs),
    /// Assigns a tier to a subject, or takes it away.
    Assign(assign::AssignArgs),
    /// Changes the limits of one subject, blocks it, exempts it; shows and lists what was said.
    Override(Box<overriding::OverrideArgs>),
    /// Says what would be decided of a request, and why, without counting it.
    Explain(explain::ExplainArgs),
    /// Writes everything that was said while weir runs, as YAML: subjects, tiers, switches.
    Export(export::ExportArgs),
    /// Reads what `weir export` wrote, YAML or JSON, in place of what is there by the same names.
    Import(import::ImportArgs),
}

/// Where the admin API is, and how its answers are shown.
#[derive(Clone, Debug, Args)]
struct Connection {
    /// The admin API of any replica.
    #[arg(long, value_name = "URL", env = unless_empty("WEIR_ADMIN"), value_parser = url(), default_value = "http://127.0.0.1:6070")]
    admin: String,
    /// A file with the bearer token: the token alone, or `name token` as the server has it.
    #[arg(long, value_name = "FILE", env = unless_empty("WEIR_ADMIN_TOKEN_FILE"))]
    token_file: Option<PathBuf>,
    /// Prints the answer as JSON.
    #[arg(long)]
    json: bool,
}

/// A variable that is set to nothing counts as not set.
fn unless_empty(variable: &'static str) -> Option<&'static str> {
    Some(variable).filter(|variable| std::env::var_os(variable).is_none_or(|value| !value.is_empty()))
}

/// Text; what is none names the variable, where it may come from.
fn url() -> impl TypedValueParser<Value = String> {
    OsStringValueParser::new().try_map(|text| text.into_string().map_err(|_| "--admin or WEIR_ADMIN is not UTF-8"))
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
            AdminCommand::Override(args) => overriding::run(*args).await,
            AdminCommand::Export(args) => export::run(args).await,
            AdminCommand::Import(args) => import::run(args).await,
        }
        .map(|()| ExitCode::SUCCESS)
    })
}

impl Connection {
    fn client(&self) -> anyhow::Result<Client> {
        Client::new(&self.admin, self.token_file.as_deref())
    }

    /// The answer as JSON, if that was asked for; else by `text`.
    fn show(&self, answer: &Value, text: impl FnOnce(&Value) -> String) -> anyhow::Result<()> {
        let text = if self.json { serde_json::to_string_pretty(answer)? + "\n" } else { text(answer) };
        print(&text)
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
    said.filter(|(_, value)| !value.is_empty()).map(|(words, value)| format!("{words} {value}"))
}

fn items<'v>(value: &'v Value, field: &str) -> &'v [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

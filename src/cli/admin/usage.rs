//! `weir usage`.

use clap::Args;
use http::Method;
use serde_json::Value;

use super::client::escaped;
use super::table::table;
use super::{Connection, Subject, items, print, standing, text, to_millis};

#[derive(Debug, Args)]
pub(crate) struct UsageArgs {
    #[command(flatten)]
    of: Subject,
    /// The tier that its requests name, where the rules read it from an entry; else the one that was seen last.
    #[arg(long)]
    tier: Option<String>,
    /// Shows the history by days instead.
    #[arg(long)]
    history: bool,
    /// The first day of the history, such as 2026-11-21.
    #[arg(long, value_name = "DAY", requires = "history")]
    from: Option<String>,
    /// The last day of the history.
    #[arg(long, value_name = "DAY", requires = "history")]
    to: Option<String>,
    /// Prints the history as CSV.
    #[arg(long, requires = "history", conflicts_with = "json")]
    csv: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn run(args: UsageArgs) -> anyhow::Result<()> {
    let client = args.connection.client()?;
    if !args.history {
        let tier = args.tier.as_deref().map(|tier| format!("?tier={}", escaped(tier))).unwrap_or_default();
        let usage = client.call(Method::GET, &format!("{}/usage{tier}", args.of.path()), None).await?;
        return args.connection.show(&usage, usage_text);
    }
    let days = [("from", &args.from), ("to", &args.to)];
    let query: Vec<String> = days.iter().filter_map(|(name, day)| Some(format!("{name}={}", escaped(day.as_deref()?)))).collect();
    let path = format!("{}/history?{}", args.of.path(), query.join("&"));
    if args.csv {
        return print(&client.get_text(&path, "text/csv").await?);
    }
    let history = client.call(Method::GET, &path, None).await?;
    args.connection.show(&history, history_text)
}

fn usage_text(usage: &Value) -> String {
    let mut said = format!("{} {}", text(usage, "domain"), text(usage, "subject"));
    for saying in standing(usage) {
        said += &format!(", {saying}");
    }
    let rows: Vec<Vec<String>> = items(usage, "limits")
        .iter()
        .map(|limit| {
            let words = ["policy", "entries", "kind", "window"].map(|field| text(limit, field).to_owned());
            let numbers = ["requests", "used", "remaining"].map(|field| limit[field].to_string());
            let resets = match text(limit, "resets_at") {
                "" => "-".to_owned(),
                time => to_millis(time),
            };
            words.into_iter().chain(numbers).chain([resets]).collect()
        })
        .collect();
    let headings = ["limit", "entries", "kind", "window", "size", "used", "remaining", "resets at"];
    let limits = if rows.is_empty() { String::new() } else { table(&headings, &rows) };
    let unlimited: String = items(usage, "unlimited").iter().map(|rule| format!("  {}\n", unlimited_text(rule))).collect();
    format!("{said}\n{limits}{unlimited}")
}

/// `per-user (user_id): unlimited, by tier enterprise`.
fn unlimited_text(rule: &Value) -> String {
    let by = match (text(rule, "by"), text(rule, "tier")) {
        ("tier", "") => "no tier holds for it".to_owned(),
        ("tier", tier) => format!("by tier {tier}"),
        ("override", _) => "by its override".to_owned(),
        (_, _) => "by the rule".to_owned(),
    };
    let (name, path) = (text(rule, "rule"), text(rule, "path"));
    let path = if name == path { String::new() } else { format!(" ({path})") };
    format!("{name}{path}: unlimited, {by}")
}

fn history_text(history: &Value) -> String {
    let rows: Vec<Vec<String>> = items(history, "days")
        .iter()
        .map(|day| {
            let numbers = ["allowed", "refused", "cost"].map(|field| day[field].to_string());
            std::iter::once(text(day, "date").to_owned()).chain(numbers).collect()
        })
        .collect();
    table(&["day", "allowed", "refused", "cost"], &rows)
}

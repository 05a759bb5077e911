//! `weir override`.

use anyhow::{anyhow, ensure};
use clap::Args;
use clap::builder::PossibleValuesParser;
use http::Method;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::client::escaped;
use super::table::table;
use super::{Connection, items, standing, text};
use crate::config::parse_duration;
use crate::limit::Algorithm;
use crate::store::records;

/// Without any change, shows the override of the subject; without a subject, lists all overrides of the domain.
#[derive(Debug, Args)]
pub(crate) struct OverrideArgs {
    /// The domain of the rules.
    domain: String,
    /// key=value, such as user_id=u1.
    subject: Option<String>,
    /// A limit in place of those of the rules, such as 500/minute; may be given several times.
    #[arg(long, value_name = "LIMIT", requires = "subject", allow_hyphen_values = true)]
    limit: Vec<String>,
    /// Only for this rule, by its name; else for all rules that have limits.
    #[arg(long, value_name = "NAME")]
    rule: Option<String>,
    /// How the limits count; else as the rule does.
    #[arg(long, value_name = "NAME", requires = "limit", value_parser = algorithms())]
    algorithm: Option<String>,
    /// The capacity of the bucket.
    #[arg(long, value_name = "N", requires = "limit", allow_negative_numbers = true)]
    burst: Option<u64>,
    /// A daily quota in place of the rule's; -1: none.
    #[arg(long, value_name = "N", requires = "subject", allow_negative_numbers = true, value_parser = quota())]
    daily: Option<i64>,
    /// A monthly quota in place of the rule's; -1: none.
    #[arg(long, value_name = "N", requires = "subject", allow_negative_numbers = true, value_parser = quota())]
    monthly: Option<i64>,
    /// No rate limit at all; quotas stay.
    #[arg(long, requires = "subject", conflicts_with = "limit")]
    unlimited: bool,
    /// Refuses everything for so long, such as 15m or 36h, or until a time such as 2027-01-01T00:00:00Z.
    #[arg(long, value_name = "TIME", requires = "subject", conflicts_with = "allow", allow_hyphen_values = true)]
    block: Option<String>,
    /// Admits everything, uncounted, for so long or until a time.
    #[arg(long, value_name = "TIME", requires = "subject", allow_hyphen_values = true)]
    allow: Option<String>,
    /// Makes every limit so many times as large.
    #[arg(long, value_name = "FACTOR", requires = "subject", allow_negative_numbers = true)]
    multiplier: Option<f64>,
    /// Takes this back; may be given several times.
    #[arg(long, value_name = "WHAT", requires = "subject", value_parser = ["tier", "block", "allow", "multiplier", "limits"])]
    clear: Vec<String>,
    /// Takes back everything that is set for the subject.
    #[arg(long, requires = "subject")]
    remove: bool,
    #[command(flatten)]
    connection: Connection,
}

/// The algorithms that a limit may count by.
fn algorithms() -> PossibleValuesParser {
    Algorithm::OF_RATES.map(Algorithm::name).into()
}

pub(super) async fn run(args: OverrideArgs) -> anyhow::Result<()> {
    let client = args.connection.client()?;
    let of_domain = format!("/v1/domains/{}/subjects", escaped(&args.domain));
    let Some(subject) = &args.subject else {
        let pages = client.pages(&of_domain).await?;
        let subjects: Vec<&Value> = pages.iter().flat_map(|page| items(page, "subjects")).collect();
        return args.connection.show(&json!({"subjects": subjects}), |list| list_text(&args.domain, list));
    };
    let path = format!("{of_domain}/{}", escaped(subject));
    let change = change(&args)?;
    if args.remove {
        ensure!(change.is_empty(), "--remove takes back everything: leave the rest out");
        let answer = client.call(Method::DELETE, &path, None).await?;
        return args.connection.show(&answer, |answer| {
            if answer["removed"] == true { "removed\n" } else { "there was nothing to remove\n" }.to_owned()
        });
    }
    let said = if change.is_empty() {
        client.call(Method::GET, &path, None).await?
    } else {
        client.call(Method::PATCH, &path, Some(&Value::Object(change))).await?
    };
    args.connection.show(&said, subject_text)
}

/// A number of requests, or -1.
fn quota() -> clap::builder::RangedI64ValueParser<i64> {
    clap::value_parser!(i64).range(-1..)
}

/// What the request changes; empty for a look.
fn change(args: &OverrideArgs) -> anyhow::Result<Map<String, Value>> {
    let mut change = Map::new();
    for (field, time) in [("blocked_until", &args.block), ("allowed_until", &args.allow)] {
        if let Some(time) = time {
            change.insert(field.to_owned(), until(time)?.to_string().into());
        }
    }
    if let Some(multiplier) = args.multiplier {
        // Before it is JSON, which has no word for what is no finite number.
        records::multiplier(multiplier).map_err(|problem| anyhow!("--multiplier: {}", problem.0))?;
        change.insert("multiplier".to_owned(), multiplier.into());
    }
    let mut limits = Map::new();
    let rates = args.limit.iter().map(|limit| json!({"limit": limit, "algorithm": args.algorithm, "burst": args.burst}));
    let rates: Vec<Value> = rates.map(without_nulls).collect();
    if !rates.is_empty() {
        limits.insert("limits".to_owned(), rates.into());
    }
    for (field, quota) in [("daily", args.daily), ("monthly", args.monthly)] {
        limits.extend(quota.map(|quota| (field.to_owned(), quota.into())));
    }
    if args.unlimited {
        limits.insert("unlimited".to_owned(), true.into());
    }
    if let Some(rule) = &args.rule {
        ensure!(!limits.is_empty(), "--rule goes with --limit, --daily, --monthly or --unlimited");
        limits.insert("rule".to_owned(), rule.as_str().into());
    }
    if !limits.is_empty() {
        change.insert("limits".to_owned(), json!([limits]));
    }
    for (what, field) in
        [("block", "blocked_until"), ("allow", "allowed_until"), ("multiplier", "multiplier"), ("limits", "limits")]
    {
        let contradicts = change.contains_key(field) && args.clear.iter().any(|cleared| cleared == what);
        ensure!(!contradicts, "--clear {what} takes back what the same command sets: do one of the two");
    }
    if !args.clear.is_empty() {
        let fields = args.clear.iter().map(|what| match what.as_str() {
            "block" => "blocked_until",
            "allow" => "allowed_until",
            other => other,
        });
        change.insert("clear".to_owned(), fields.collect::<Vec<_>>().into());
    }
    Ok(change)
}

fn without_nulls(mut value: Value) -> Value {
    if let Value::Object(fields) = &mut value {
        fields.retain(|_, value| !value.is_null());
    }
    value
}

/// A time, or so long from now.
fn until(written: &str) -> anyhow::Result<Timestamp> {
    if let Ok(time) = written.parse() {
        return Ok(time);
    }
    let hint = || anyhow!("`{written}` is no time: write 15m, 36h, or 2027-01-01T00:00:00Z");
    let micros = parse_duration(written).map_err(|_| hint())?;
    let later = std::time::Duration::from_micros(micros);
    let end = Timestamp::now().checked_add(later).map_err(|_| hint())?;
    // Nobody needs the rest of the digits, in the audit log least of all.
    Timestamp::from_millisecond(end.as_millisecond()).map_err(|_| hint())
}

fn list_text(domain: &str, list: &Value) -> String {
    if items(list, "subjects").is_empty() {
        return format!("no subject of domain `{domain}` has an override\n");
    }
    let rows: Vec<Vec<String>> = items(list, "subjects")
        .iter()
        .map(|subject| vec![text(subject, "subject").to_owned(), sayings(subject).join("; ")])
        .collect();
    table(&["subject", "override"], &rows)
}

pub(super) fn subject_text(subject: &Value) -> String {
    let mut lines = vec![format!("{} {}", text(subject, "domain"), text(subject, "subject"))];
    lines.extend(sayings(subject).into_iter().map(|saying| format!("  {saying}")));
    if lines.len() == 1 {
        lines.push("  nothing is set".to_owned());
    }
    lines.join("\n") + "\n"
}

/// `tier pro`, `blocked until …`, `per-user: 500/minute`.
fn sayings(subject: &Value) -> Vec<String> {
    let mut sayings: Vec<String> = standing(subject).collect();
    if let Some(multiplier) = subject["multiplier"].as_f64() {
        sayings.push(format!("limits × {multiplier}"));
    }
    for limits in items(subject, "limits") {
        let rule = if text(limits, "rule").is_empty() { "all rules" } else { text(limits, "rule") };
        let rates = items(limits, "limits").iter().map(rate);
        let quotas = ["daily", "monthly"].into_iter().filter_map(|field| Some(format!("{field} {}", amount(&limits[field])?)));
        let unlimited = (limits["unlimited"] == true).then(|| "unlimited".to_owned());
        let all: Vec<String> = rates.chain(quotas).chain(unlimited).collect();
        sayings.push(format!("{rule}: {}", all.join(", ")));
    }
    sayings
}

/// `100/minute token_bucket burst 150`.
pub(super) fn rate(limit: &Value) -> String {
    let burst = limit["burst"].as_u64().map(|burst| format!(" burst {burst}")).unwrap_or_default();
    format!("{} {}{burst}", text(limit, "limit"), text(limit, "algorithm")).trim_end().to_owned()
}

/// A number of requests, where there is one.
pub(super) fn amount(number: &Value) -> Option<String> {
    match number.as_i64()? {
        -1 => Some("unlimited".to_owned()),
        number => Some(number.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_moments_or_durations() {
        assert_eq!(until("2027-01-01T00:00:00Z").unwrap().to_string(), "2027-01-01T00:00:00Z");
        let in_an_hour = until("1h").unwrap().as_second() - Timestamp::now().as_second();
        assert!((3_590..=3_610).contains(&in_an_hour), "{in_an_hour}");
        assert_eq!(until("1h").unwrap().subsec_nanosecond() % 1_000_000, 0, "to the millisecond");
        assert!(until("soon").unwrap_err().to_string().contains("15m"));
    }

    #[test]
    fn what_is_said_reads_as_a_line_each() {
        let subject = json!({
            "domain": "api", "subject": "user_id=u1", "tier": "pro", "multiplier": 1.5,
            "limits": [{"rule": "per-user", "limits": [{"limit": "9/hour", "algorithm": "token_bucket", "burst": 20}], "daily": 5}],
        });
        let expected = "api user_id=u1\n  tier pro\n  limits × 1.5\n  per-user: 9/hour token_bucket burst 20, daily 5\n";
        assert_eq!(subject_text(&subject), expected);
        assert_eq!(subject_text(&json!({"domain": "api", "subject": "a=b"})), "api a=b\n  nothing is set\n");
    }
}

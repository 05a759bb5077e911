//! `weir tiers`.

use clap::Args;
use http::Method;
use serde_json::Value;

use super::client::escaped;
use super::table::table;
use super::{Connection, items, overriding, text};

#[derive(Debug, Args)]
pub(crate) struct TiersArgs {
    /// The domain of the rules.
    domain: String,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn run(args: TiersArgs) -> anyhow::Result<()> {
    let path = format!("/v1/domains/{}/tiers", escaped(&args.domain));
    let tiers = args.connection.client()?.call(Method::GET, &path, None).await?;
    args.connection.show(&tiers, |tiers| tiers_text(&args.domain, tiers))
}

fn tiers_text(domain: &str, tiers: &Value) -> String {
    if items(tiers, "tiers").is_empty() {
        return format!("domain `{domain}` has no tiers\n");
    }
    let row = |tier: &Value| {
        let source = match tier["replaces_file"] == true {
            true => format!("{}, in place of the file's", text(tier, "source")),
            false => text(tier, "source").to_owned(),
        };
        let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        let quotas = ["daily", "monthly"].map(|field| or_none(overriding::amount(&tier[field]).unwrap_or_default()));
        let [name, priority] = ["name", "priority"].map(|field| or_none(text(tier, field).to_owned()));
        let [daily, monthly] = quotas;
        vec![name, or_none(limits(tier)), daily, monthly, priority, source]
    };
    let rows: Vec<Vec<String>> = items(tiers, "tiers").iter().map(row).collect();
    table(&["tier", "limits", "daily", "monthly", "priority", "from"], &rows)
}

/// `100/minute token_bucket burst 150; write: 10/minute`.
fn limits(tier: &Value) -> String {
    let rates = |set: &Value| items(set, "limits").iter().map(overriding::rate).collect::<Vec<_>>().join(", ");
    let default = Some(rates(tier)).filter(|limits| !limits.is_empty());
    let sets = items(tier, "sets").iter().map(|set| format!("{}: {}", text(set, "name"), rates(set)));
    default.into_iter().chain(sets).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_tier_is_a_line() {
        let tiers = json!({"tiers": [
            {"name": "free", "source": "api.yaml:3", "limits": [{"limit": "9/hour", "algorithm": "token_bucket", "burst": 20}], "daily": 5},
            {"name": "pro", "source": "run time", "replaces_file": true, "priority": "high", "limits": [{"limit": "unlimited"}],
             "sets": [{"name": "write", "limits": [{"limit": "1/second"}]}]},
        ]});
        let expected = "TIER  LIMITS                        DAILY  MONTHLY  PRIORITY  FROM\n\
                        free  9/hour token_bucket burst 20      5  -        -         api.yaml:3\n\
                        pro   unlimited; write: 1/second        -  -        high      run time, in place of the file's\n";
        assert_eq!(tiers_text("api", &tiers), expected);
        assert_eq!(tiers_text("api", &json!({"tiers": []})), "domain `api` has no tiers\n");
    }
}

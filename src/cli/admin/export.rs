//! `weir export`.

use clap::Args;
use http::Method;
use serde_json::{Map, Value};

use super::client::escaped;
use super::{Connection, items, text};

/// What an export is made of.
pub(super) const PARTS: [&str; 3] = ["subjects", "tiers", "switches"];

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn run(args: ExportArgs) -> anyhow::Result<()> {
    let client = args.connection.client()?;
    let mut all = Map::from_iter(PARTS.map(|part| (part.to_owned(), Value::Array(Vec::new()))));
    let mut token = String::new();
    loop {
        let page = client.call(Method::GET, &format!("/v1/records?page_token={}", escaped(&token)), None).await?;
        for part in PARTS {
            if let Some(Value::Array(known)) = all.get_mut(part) {
                known.extend(items(&page, part).iter().cloned());
            }
        }
        text(&page, "next_page_token").clone_into(&mut token);
        if token.is_empty() {
            break;
        }
    }
    let all = Value::Object(all);
    let yaml = serde_saphyr::to_string(&all)?;
    args.connection.show(&all, |_| yaml)
}

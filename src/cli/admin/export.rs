//! `weir export`.

use clap::Args;
use serde_json::{Map, Value};

use super::{Connection, items};

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
    for page in client.pages("/v1/records").await? {
        for part in PARTS {
            if let Some(Value::Array(known)) = all.get_mut(part) {
                known.extend(items(&page, part).iter().cloned());
            }
        }
    }
    let all = Value::Object(all);
    let yaml = serde_saphyr::to_string(&all)?;
    args.connection.show(&all, |_| yaml)
}

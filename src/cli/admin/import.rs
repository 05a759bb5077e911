//! `weir import`.

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::Args;
use http::Method;
use serde_json::{Map, Value, json};

use super::export::PARTS;
use super::{Connection, items};

/// Records that are sent at once.
const AT_ONCE: usize = 500;

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// A file; `-` is the standard input.
    file: PathBuf,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn run(args: ImportArgs) -> anyhow::Result<()> {
    let mut text = String::new();
    let name = args.file.display();
    if args.file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text)?;
    } else {
        text = std::fs::read_to_string(&args.file).with_context(|| name.to_string())?;
    }
    let records = parse(&text).with_context(|| name.to_string())?;
    let client = args.connection.client()?;
    let mut imported = 0;
    for part in PARTS {
        for records in items(&records, part).chunks(AT_ONCE) {
            let body = Value::Object(Map::from_iter([(part.to_owned(), records.into())]));
            let answer = client.call(Method::POST, "/v1/records", Some(&body)).await;
            let answer = answer.with_context(|| format!("{imported} records were imported before"))?;
            imported += answer["imported"].as_u64().unwrap_or(0);
        }
    }
    args.connection.show(&json!({"imported": imported}), |_| format!("{imported} records imported\n"))
}

/// JSON is read as such: it may be far longer than what is taken for YAML by hand.
fn parse(text: &str) -> anyhow::Result<Value> {
    let records: Value = match text.trim_start().starts_with('{') {
        true => serde_json::from_str(text)?,
        false => serde_saphyr::from_str(text)?,
    };
    let Value::Object(fields) = &records else { bail!("no export: subjects, tiers and switches are expected") };
    for (field, value) in fields {
        ensure!(PARTS.contains(&field.as_str()), "`{field}` is no part of an export: {}", PARTS.join(", "));
        ensure!(value.is_array(), "`{field}` is no list");
    }
    Ok(records)
}

//! `weir import`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use hyper::body::Bytes;
use serde_json::Value;

use super::export::PARTS;
use super::{Connection, count, items};
use crate::regular_file;

/// The longest import, in bytes: as the server has it.
const MAX_FILE: u64 = 1 << 30;
/// How much of an import is sent at once, in bytes.
const PIECE: usize = 64 << 10;
/// How long the server may take to check and write the records, from when it has all of them: longer than it lets itself.
const ANSWER_TIME: Duration = Duration::from_secs(40);
/// How much longer for each thousand records.
const BATCH_TIME: Duration = Duration::from_secs(6);

/// Checks every record first, and writes none where one is malformed or names a tier, rule or domain that does not exist.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// A file; `-` is the standard input.
    file: PathBuf,
    /// Writes also records that name tiers, rules or domains that do not exist, and lists these.
    #[arg(long)]
    force: bool,
    /// Checks the records and writes none.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn run(args: ImportArgs) -> anyhow::Result<()> {
    let name = args.file.display();
    let text = match args.file.as_os_str() == "-" {
        true => regular_file::read_stdin(MAX_FILE).and_then(regular_file::text),
        false => regular_file::read_typed_text(&args.file, MAX_FILE),
    };
    let text = text.with_context(|| name.to_string())?;
    let records = parse(&text).with_context(|| name.to_string())?;
    drop(text);
    let sent: usize = PARTS.iter().map(|part| items(&records, part).len()).sum();
    let time = ANSWER_TIME + BATCH_TIME * u32::try_from(sent / 1_000).unwrap_or(u32::MAX);
    let path = format!("/v1/records?force={}&dry_run={}", args.force, args.dry_run);
    let answer = args.connection.client()?.upload(&path, pieces(records), time).await?;
    let done = if args.dry_run { "can be imported" } else { "imported" };
    args.connection.show(&answer, |answer| format!("{} {done}\n", count(answer, "imported", "record")))
}

/// The records as a JSON text that is made while it is sent.
fn pieces(mut records: Value) -> impl Iterator<Item = Bytes> + Send + 'static {
    let lists = PARTS.map(|part| match records[part].take() {
        Value::Array(items) => (part, items),
        _ => (part, Vec::new()),
    });
    let texts = lists.into_iter().enumerate().flat_map(|(list, (part, items))| {
        let begin = if list == 0 { "{" } else { "," };
        let items = items.into_iter().enumerate().map(|(place, item)| format!("{}{item}", if place == 0 { "" } else { "," }));
        std::iter::once(format!("{begin}\"{part}\":[")).chain(items).chain(std::iter::once("]".to_owned()))
    });
    let mut texts = texts.chain(std::iter::once("}".to_owned()));
    std::iter::from_fn(move || {
        let mut piece = String::new();
        while piece.len() < PIECE {
            let Some(text) = texts.next() else { break };
            piece.push_str(&text);
        }
        Some(Bytes::from(piece)).filter(|piece| !piece.is_empty())
    })
}

/// JSON is read as such: it is read faster than YAML.
fn parse(text: &str) -> anyhow::Result<Value> {
    let records: Value = match text.trim_start().starts_with('{') {
        true => serde_json::from_str(text)?,
        // An operator's own file, however long it is.
        false => serde_saphyr::from_str_with_options(text, serde_saphyr::options! { budget: None })?,
    };
    let Value::Object(fields) = &records else { bail!("no export: subjects, tiers and switches are expected") };
    for (field, value) in fields {
        // A page of the API says besides where the next one begins.
        let is_token = field == "next_page_token";
        ensure!(is_token || PARTS.contains(&field.as_str()), "`{field}` is no part of an export: {}", PARTS.join(", "));
        ensure!(is_token || value.is_array(), "`{field}` is no list");
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_pieces_of_an_import_are_its_records() {
        let subjects: Vec<Value> =
            (0..5_000).map(|number| json!({"domain": "api", "subject": format!("user=u{number}")})).collect();
        for records in [json!({"subjects": subjects, "switches": [{"switch": "off"}]}), json!({"tiers": []}), json!({})] {
            let sent: Vec<Bytes> = pieces(records.clone()).collect();
            assert!(sent.iter().all(|piece| piece.len() < PIECE + 1_000), "{}", sent.len());
            let whole: Value = serde_json::from_slice(&sent.concat()).unwrap();
            for part in PARTS {
                assert_eq!(items(&whole, part), items(&records, part), "{part}");
            }
        }
    }

    #[test]
    fn a_long_export_in_yaml_is_read() {
        let line = "  - {domain: api, subject: user=u, tier: pro, multiplier: 2, limits: []}\n";
        let text = format!("subjects:\n{}", line.repeat(60_000));
        assert_eq!(items(&parse(&text).unwrap(), "subjects").len(), 60_000);
    }
}

//! `weir import`.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use http::Method;
use serde_json::{Map, Value, json};

use super::client::{Client, IMPORT_TIME};
use super::export::PARTS;
use super::{Connection, items, text};
use crate::regular_file;

/// The longest import, in bytes: some million records.
const MAX_FILE: u64 = 256 << 20;

/// Records that are sent at once.
const AT_ONCE: usize = 500;

/// The parts of an export in the order of their import: subjects name tiers.
const ORDER: [&str; 3] = ["tiers", "subjects", "switches"];

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
    let import = Import { client: args.connection.client()?, records, force: args.force };
    let checked = import.check().await?;
    if args.dry_run {
        return args.connection.show(&checked, |checked| format!("{} records can be imported\n", checked["imported"]));
    }
    let imported = import.write().await?;
    let answer = json!({"imported": imported, "warnings": checked["warnings"]});
    args.connection.show(&answer, |_| format!("{imported} records imported\n"))
}

struct Import {
    client: Client,
    records: Value,
    force: bool,
}

impl Import {
    /// Has the server look at all records, and write none.
    async fn check(&self) -> anyhow::Result<Value> {
        let (mut imported, mut warnings, mut mistakes) = (0, Vec::new(), repeated(&self.records));
        for (part, first, records) in self.chunks() {
            let mut body = Map::from_iter([(part.to_owned(), records.into()), ("dry_run".to_owned(), true.into())]);
            if part == "subjects" {
                body.insert("tiers".to_owned(), self.tiers_of(records).into());
            }
            match self.send(body).await {
                Ok(answer) => {
                    imported += records.len();
                    let lines = items(&answer, "warnings").iter().filter_map(Value::as_str);
                    warnings.extend(lines.map(|line| renumbered(line, part, first)));
                }
                Err(error) => mistakes.push(renumbered(&error.to_string(), part, first)),
            }
        }
        ensure!(mistakes.is_empty(), "{}", mistakes.join("\n"));
        Ok(json!({"imported": imported, "warnings": warnings}))
    }

    async fn write(&self) -> anyhow::Result<u64> {
        let mut imported = 0;
        for (part, first, records) in self.chunks() {
            let body = Map::from_iter([(part.to_owned(), records.into())]);
            let answer = self.send(body).await.map_err(|error| anyhow!(renumbered(&error.to_string(), part, first)));
            let answer = answer.with_context(|| format!("{imported} records were imported before"))?;
            imported += answer["imported"].as_u64().unwrap_or(0);
        }
        Ok(imported)
    }

    async fn send(&self, mut body: Map<String, Value>) -> anyhow::Result<Value> {
        if self.force {
            body.insert("force".to_owned(), true.into());
        }
        self.client.call_within(IMPORT_TIME, Method::POST, "/v1/records", Some(&Value::Object(body))).await
    }

    /// Records that are sent together: of which part, and which the first one is.
    fn chunks(&self) -> impl Iterator<Item = (&'static str, usize, &[Value])> {
        let of_part = |part: &'static str| {
            let chunks = items(&self.records, part).chunks(AT_ONCE).enumerate();
            chunks.map(move |(number, records)| (part, number * AT_ONCE, records))
        };
        ORDER.into_iter().flat_map(of_part)
    }

    /// The tiers of the import that these subjects have.
    fn tiers_of(&self, subjects: &[Value]) -> Vec<Value> {
        let names = |record: &Value, field| (text(record, "domain").to_owned(), text(record, field).to_owned());
        let named: HashSet<(String, String)> = subjects.iter().map(|subject| names(subject, "tier")).collect();
        items(&self.records, "tiers").iter().filter(|tier| named.contains(&names(tier, "name"))).cloned().collect()
    }
}

/// Records of one name that are sent apart; the server sees those that it gets together.
fn repeated(records: &Value) -> Vec<String> {
    let mut mistakes = Vec::new();
    for (part, field) in [("subjects", "subject"), ("tiers", "name"), ("switches", "domain")] {
        let mut first: HashMap<(&str, &str), usize> = HashMap::new();
        for (number, record) in items(records, part).iter().enumerate() {
            let (domain, name) = (text(record, "domain"), text(record, field));
            match first.insert((domain, name), number) {
                Some(other) if other / AT_ONCE != number / AT_ONCE => {
                    mistakes.push(format!("{part}[{number}]: `{name}` of domain `{domain}` is {part}[{other}], too: keep one"));
                }
                _ => {}
            }
        }
    }
    mistakes
}

/// Lines that begin with `subjects[3]`, numbered as in the whole import, of which this is the part from `first` on.
fn renumbered(lines: &str, part: &str, first: usize) -> String {
    let renumbered = lines.lines().map(|line| {
        let numbered = line.strip_prefix(part).and_then(|rest| rest.strip_prefix('[')).and_then(|rest| rest.split_once(']'));
        match numbered.and_then(|(number, rest)| Some((number.parse::<usize>().ok()?, rest))) {
            Some((number, rest)) => format!("{part}[{}]{rest}", first + number),
            None => line.to_owned(),
        }
    });
    renumbered.collect::<Vec<_>>().join("\n")
}

/// JSON is read as such: it may be far longer than what is taken for YAML by hand.
fn parse(text: &str) -> anyhow::Result<Value> {
    let records: Value = match text.trim_start().starts_with('{') {
        true => serde_json::from_str(text)?,
        false => serde_saphyr::from_str(text)?,
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

    #[test]
    fn records_of_one_name_are_found_however_far_apart() {
        let subject = |number: usize| json!({"domain": "api", "subject": format!("user_id=u{}", number % 600)});
        let records = json!({"subjects": (0..601).map(subject).collect::<Vec<_>>()});
        assert_eq!(repeated(&records), ["subjects[600]: `user_id=u0` of domain `api` is subjects[0], too: keep one"]);
    }

    #[test]
    fn a_line_names_the_record_of_the_whole_file() {
        let lines = "subjects[3].tier: no such tier\nsubjects[x]\ntiers[1]: other\nnothing was imported";
        let expected = "subjects[503].tier: no such tier\nsubjects[x]\ntiers[1]: other\nnothing was imported";
        assert_eq!(renumbered(lines, "subjects", 500), expected);
    }
}

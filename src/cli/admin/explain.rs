//! `weir explain`: by a running weir, or by rules at hand.

mod offline;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::Connection;
use super::client::escaped;
use crate::cli::bench::requests::Descriptor;

/// The exit codes beside 0, which says that the request would be admitted.
const REFUSED: u8 = 1;
const FAILED: u8 = 2;

#[derive(Debug, Args)]
#[command(after_help = "Exit code: 0 if the request would be admitted, 1 if it would be refused, 2 if that cannot be said.")]
pub(crate) struct ExplainArgs {
    /// The domain of the rules.
    #[arg(long, value_name = "NAME")]
    domain: String,
    /// A descriptor: entries joined by commas, as in `path=/a,user_id=u1`, and at the end its own hits_addend if it has one, as in
    /// `user_id=u1;hits=250`. May be repeated.
    #[arg(long = "descriptor", value_name = "KEY=VALUE,…[;hits=N]", required = true)]
    descriptors: Vec<Descriptor>,
    /// The request's hits_addend.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 1)]
    hits: u32,
    /// Goes by these rules, a file or a directory, instead of asking a running weir; every other setting is as in the environment.
    #[arg(long, value_name = "PATH")]
    rules: Option<PathBuf>,
    /// With --rules: looks at the counters and records in this Redis; else every counter is taken as unused.
    #[arg(long, value_name = "URL", requires = "rules")]
    store: Option<String>,
    #[command(flatten)]
    connection: Connection,
}

impl ExplainArgs {
    fn descriptors(&self) -> Value {
        let entry = |(key, value): &(String, String)| json!({"key": key, "value": value});
        let descriptor = |descriptor: &Descriptor| {
            let entries: Vec<Value> = descriptor.entries().iter().map(entry).collect();
            json!({"entries": entries, "hits": descriptor.hits()})
        };
        self.descriptors.iter().map(descriptor).collect()
    }
}

pub(super) async fn run(args: ExplainArgs) -> ExitCode {
    match explain(&args).await {
        Ok(decision) if decision == "ok" => ExitCode::SUCCESS,
        Ok(decision) if decision == "over_limit" => REFUSED.into(),
        Ok(_) => FAILED.into(),
        Err(error) => {
            eprintln!("weir: {error:#}");
            FAILED.into()
        }
    }
}

/// Shows the explanation; the decision.
async fn explain(args: &ExplainArgs) -> anyhow::Result<String> {
    let (said, by) = match &args.rules {
        Some(rules) => {
            let asked = json!({"domain": args.domain, "descriptors": args.descriptors(), "hits": args.hits});
            offline::explain(rules, args.store.as_deref(), &asked).await?
        }
        None => {
            let path = format!("/v1/domains/{}/explain", escaped(&args.domain));
            let asked = json!({"descriptors": args.descriptors(), "hits": args.hits});
            let said = args.connection.client()?.call(Method::POST, &path, Some(&asked)).await?;
            (said, format!("weir at {}", args.connection.address()?))
        }
    };
    args.connection.show(&said, |said| text::text(said, &by))?;
    Ok(super::text(&said, "decision").to_owned())
}

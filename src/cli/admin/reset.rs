//! `weir reset`.

use clap::{Args, ValueEnum};
use http::Method;
use serde_json::json;

use super::{Connection, Subject, count};

#[derive(Debug, Args)]
pub(crate) struct ResetArgs {
    #[command(flatten)]
    of: Subject,
    /// What is forgotten.
    kind: Kind,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// Everything.
    All,
    /// Daily quotas.
    Daily,
    /// Monthly quotas.
    Monthly,
    /// Rate limits, and the blocks after them.
    Rate,
}

pub(super) async fn run(args: ResetArgs) -> anyhow::Result<()> {
    let kind = args.kind.to_possible_value().expect("every kind can be typed").get_name().to_owned();
    let path = format!("{}/reset", args.of.path());
    let answer = args.connection.client()?.call(Method::POST, &path, Some(&json!({"kind": kind}))).await?;
    args.connection.show(&answer, |answer| format!("{} forgotten\n", count(answer, "reset", "counter")))
}

//! `weir assign`.

use clap::{ArgGroup, Args};
use http::Method;
use serde_json::json;

use super::{Connection, Subject, overriding};

#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("given").args(["tier", "none"]).required(true),
    override_usage = "weir assign [OPTIONS] <DOMAIN> <SUBJECT> <TIER|--none>"
)]
pub(crate) struct AssignArgs {
    #[command(flatten)]
    of: Subject,
    /// A tier of the domain.
    tier: Option<String>,
    /// Takes its tier away: the domain's default tier holds.
    #[arg(long)]
    none: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn run(args: AssignArgs) -> anyhow::Result<()> {
    let body = json!({"tier": args.tier.unwrap_or_default()});
    let said = args.connection.client()?.call(Method::PUT, &format!("{}/tier", args.of.path()), Some(&body)).await?;
    args.connection.show(&said, overriding::subject_text)
}

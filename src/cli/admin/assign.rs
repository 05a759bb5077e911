//! `weir assign`.

use clap::{ArgGroup, Args};
use http::Method;
use serde_json::json;

use super::{Connection, Subject, overriding};

#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("given").args(["tier", "remove"]).required(true),
    override_usage = "weir assign [OPTIONS] <DOMAIN> <SUBJECT> <TIER|--remove>"
)]
pub(crate) struct AssignArgs {
    #[command(flatten)]
    of: Subject,
    /// A tier of the domain.
    tier: Option<String>,
    /// Takes its tier away: the domain's default tier holds.
    #[arg(long, visible_alias = "none")]
    remove: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn run(args: AssignArgs) -> anyhow::Result<()> {
    let (client, path) = (args.connection.client()?, format!("{}/tier", args.of.path()));
    let assigned = match &args.tier {
        Some(tier) => client.call(Method::PUT, &path, Some(&json!({"tier": tier}))).await?,
        None => client.call(Method::DELETE, &path, None).await?,
    };
    args.connection.show(&assigned, overriding::subject_text)
}

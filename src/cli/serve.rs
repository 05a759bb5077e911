//! `weir serve`.

use tokio::signal::unix::{SignalKind, signal};

use crate::limit::{Algorithm, Limit, MINUTE};
use crate::rules::tree::{Matcher, Node};
use crate::rules::{Domain, OnStoreFailure, ResponseOptions, Rule, RuleId, RuleLimit, RuleSet, key};
use crate::server::Server;
use crate::settings::Settings;

/// Serves until it is told to stop.
pub(super) fn run() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let server = Server::start(Settings::default()).await?;
        server.shared.load(example()?);
        server.readiness.set_rules_loaded(true);
        println!("gRPC on {}", server.addresses.grpc);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        server.stop().await;
        Ok(())
    })
}

fn example() -> anyhow::Result<RuleSet> {
    let mut tree = Node::default();
    tree.child("remote_address", Matcher::Any).0.rule = Some(RuleId(0));
    tree.seal()?;
    let limit = Limit::new(Algorithm::FixedWindow, 10, MINUTE, None)?;
    let rule = Rule {
        name: Some("per-address".into()),
        path: "remote_address".into(),
        layer: "remote_address".into(),
        limits: vec![RuleLimit::new(limit, "per-address")],
        block: None,
        unlimited: false,
        allow: false,
        deny: false,
        shadow: false,
        quota: false,
        replaces: Vec::new(),
        on_store_failure: OnStoreFailure::Error,
        metadata: None,
        source: "example:1".into(),
    };
    let domain = Domain {
        name: "example".into(),
        file: "example".into(),
        key_prefix: key::domain_prefix("", b"example"),
        subject: Vec::new(),
        response: ResponseOptions::default(),
        tree,
        rules: vec![rule],
        on_store_failure: OnStoreFailure::Error,
    };
    let mut rules = RuleSet { revision: 1, ..RuleSet::default() };
    rules.domains.insert(b"example".as_slice().into(), std::sync::Arc::new(domain));
    Ok(rules)
}

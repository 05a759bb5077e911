//! The files of `config/examples` sell what they are meant to sell, number by number, and each tests itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use weir::config::{LoadOptions, load};
use weir::limit::{Algorithm, Period};
use weir::rules::key::duration;
use weir::rules::tier::Class;
use weir::rules::{Domain, Rule, RuleLimit, RuleSet};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/examples")
}

fn example(domain: &str) -> Arc<Domain> {
    let loaded = load(&directory(), &LoadOptions::default(), &RuleSet::default());
    assert!(loaded.problems.is_empty(), "{}", loaded.problems);
    loaded.rules.domains[domain.as_bytes()].clone()
}

/// `100/1h`, with `+10` for what a bucket holds beyond; `1000/day` and `1000/month` for quotas.
fn written(limit: &RuleLimit) -> String {
    let limit = &limit.limit;
    match limit.calendar() {
        Some(Period::Day) => format!("{}/day", limit.requests()),
        Some(Period::Month) => format!("{}/month", limit.requests()),
        None if limit.algorithm() == Algorithm::TokenBucket => {
            format!("{}/{}+{}", limit.requests(), duration(limit.window()), limit.capacity() - limit.requests())
        }
        None => format!("{}/{}", limit.requests(), duration(limit.window())),
    }
}

fn limits(limits: &[RuleLimit]) -> String {
    limits.iter().map(written).collect::<Vec<_>>().join(" ")
}

fn rule<'d>(domain: &'d Domain, label: &str) -> &'d Rule {
    domain.rules.iter().find(|rule| rule.label() == label).unwrap_or_else(|| panic!("no {label} in {}", domain.name))
}

/// What each tier has of a rule.
fn tiers(domain: &Domain, label: &str) -> BTreeMap<String, String> {
    let of_rule = &rule(domain, label).tiers.as_ref().expect("it goes by tiers").limits;
    let names = domain.plans.tiers.iter().map(|tier| tier.name.to_string());
    names.zip(of_rule.iter().map(|tier| limits(&tier.limits))).collect()
}

fn expected(tiers: &[(&str, &str)]) -> BTreeMap<String, String> {
    tiers.iter().map(|(name, limits)| ((*name).to_owned(), (*limits).to_owned())).collect()
}

#[test]
fn plans_by_the_minute_and_the_day() {
    let sold = [("free", "60/1m 1000/day"), ("starter", "300/1m 10000/day"), ("pro", "1000/1m 100000/day")];
    assert_eq!(tiers(&example("saas"), "plan"), expected(&sold));
}

#[test]
fn plans_with_bursts_quotas_weights_and_classes() {
    let plans = example("plans");
    let sold = [
        ("free", "100/1h+10 1000/day 10000/month"),
        ("basic", "1000/1h+50 10000/day 250000/month"),
        ("premium", "10000/1h+200 100000/day 3000000/month"),
        ("enterprise", ""),
    ];
    assert_eq!(tiers(&plans, "plan"), expected(&sold));
    let classes: Vec<Option<Class>> = plans.plans.tiers.iter().map(|tier| tier.priority).collect();
    assert_eq!(classes, Class::ALL.map(Some));
    let weights = &plans.plans.costs[0].weights;
    assert_eq!(["GET", "POST", "PUT", "DELETE"].map(|method| weights[method.as_bytes()]), [1, 2, 2, 3]);
    let free = plans.plans.default_tier.expect("there is one");
    assert_eq!(&*plans.plans.tier(free).name, "free");
}

#[test]
fn layers() {
    let layers = example("layers");
    let of = |label: &str| limits(&rule(&layers, label).limits);
    assert_eq!([of("per-address"), of("anonymous"), of("anonymous-device")], ["1000/1m", "20/1m", "20/1m"]);
    assert_eq!(tiers(&layers, "per-user"), expected(&[("free", "100/1m"), ("premium", "1000/1m"), ("enterprise", "10000/1m")]));
    assert_eq!(tiers(&layers, "reads"), expected(&[("free", "100/1m"), ("premium", "500/1m"), ("enterprise", "1000/1m")]));
    assert_eq!(tiers(&layers, "writes"), expected(&[("free", "20/1m"), ("premium", "50/1m"), ("enterprise", "100/1m")]));
    let endpoints = ["ai-generate", "video-render", "export-large", "sign-in", "other-paths"].map(of);
    assert_eq!(endpoints, ["10/1h", "5/1h", "20/1h", "10/1m", "1000/1m"]);
}

#[test]
fn sign_in_windows_and_webhooks() {
    let sign_in = example("sign-in");
    let attempts = rule(&sign_in, "attempts-per-account");
    assert_eq!((limits(&attempts.limits), attempts.limits[0].limit.algorithm()), ("10/1m".to_owned(), Algorithm::SlidingLog));
    assert_eq!(attempts.block.as_ref().map(|block| duration(block.limit.window())).as_deref(), Some("15m"));
    let windows = example("windows");
    assert_eq!(limits(&rule(&windows, "windows").limits), "10/1s 100/1m 1000/1h");
    let sold = [("free", "100/1h 1000/day"), ("pro", "1000/1h 10000/day"), ("enterprise", "10000/1h")];
    assert_eq!(tiers(&example("webhooks"), "per-customer"), expected(&sold));
}

#[test]
fn every_example_has_tests_that_hold() {
    for file in fs::read_dir(directory()).expect("the examples are there") {
        let path = file.expect("a file").path();
        let check = Command::new(env!("CARGO_BIN_EXE_weir")).arg("check").arg(&path).output().expect("weir runs");
        let said = String::from_utf8(check.stdout).expect("UTF-8");
        let (count, rest) = said.split(", ").nth(1).and_then(|rest| rest.split_once(' ')).unwrap_or_default();
        let is_well = ["test: all is well\n", "tests: all is well\n"].contains(&rest);
        assert!(is_well && count.parse::<u32>().is_ok_and(|tests| tests > 0), "{}: {said}", path.display());
    }
}

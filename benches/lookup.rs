//! What it costs to find a request's rule and plan its checks, with 1, 1,000 and 50,000 rules beside it: a thousand should
//! cost at most 1.2 times one. `cargo bench --bench lookup`.
//!
//! The same 64 requests are asked in turn, so that more rules do not mean more of them in the processor's caches.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use weir::config::{LoadOptions, load_texts};
use weir::rules::plan::{Moment, PlanSettings, plan};
use weir::rules::request::{Descriptor, Entry, Request};
use weir::rules::{Domain, RuleSet};

const SIZES: [usize; 3] = [1, 1_000, 50_000];
/// How many different requests are asked.
const REQUESTS: usize = 64;

/// The `value` of rule n, and a value that it matches.
struct Shape {
    name: &'static str,
    value: fn(usize) -> String,
    matched: fn(usize) -> String,
}

const SHAPES: [Shape; 5] = [
    Shape { name: "exact", value: |n| format!("/v1/items/{n}"), matched: |n| format!("/v1/items/{n}") },
    Shape { name: "one_of", value: |n| format!("{{one_of: [a-{n}, b-{n}]}}"), matched: |n| format!("b-{n}") },
    Shape {
        name: "cidr",
        value: |n| format!("{{cidr: 10.{}.{}.0/24}}", n / 256, n % 256),
        matched: |n| format!("10.{}.{}.7", n / 256, n % 256),
    },
    Shape { name: "prefix", value: |n| format!("\"/v1/items/{n}/*\""), matched: |n| format!("/v1/items/{n}/reviews") },
    Shape { name: "wildcard", value: |n| format!("\"/v1/*/items/{n}/*\""), matched: |n| format!("/v1/shop/items/{n}/reviews") },
];

fn domain(shape: &Shape, rules: usize) -> Arc<Domain> {
    let rule = |n| format!("  - {{key: path, value: {}, rate_limit: {{unit: minute, requests_per_unit: 10}}}}\n", (shape.value)(n));
    let text = format!("domain: bench\ndescriptors:\n{}", (0..rules).map(rule).collect::<String>());
    let loaded = load_texts(&[("bench.yaml", &text)], &LoadOptions::default(), &RuleSet::default());
    assert!(loaded.problems.is_empty(), "{}", loaded.problems);
    loaded.rules.domains.values().next().expect("one domain").clone()
}

fn lookup(criterion: &mut Criterion) {
    for shape in &SHAPES {
        let mut group = criterion.benchmark_group(format!("lookup/{}", shape.name));
        for rules in SIZES {
            let domain = domain(shape, rules);
            let values: Vec<String> = (0..REQUESTS).map(|n| (shape.matched)(n * rules / REQUESTS)).collect();
            let requests: Vec<Request<'_>> = values.iter().map(|value| request(value)).collect();
            let mut turn = 0;
            group.bench_function(BenchmarkId::from_parameter(rules), |bencher| {
                bencher.iter(|| {
                    turn = (turn + 1) % REQUESTS;
                    let plan = plan(&domain, black_box(&requests[turn]), PlanSettings::default(), Moment::default(), &());
                    assert_eq!(plan.as_ref().map_or(0, |plan| plan.group.checks.len()), 1, "a rule is found");
                    plan
                });
            });
        }
        group.finish();
    }
}

fn request(value: &str) -> Request<'_> {
    let entry = Entry { key: b"path", value: value.as_bytes() };
    let descriptor = Descriptor { entries: [entry].into_iter().collect(), ..Descriptor::default() };
    Request { domain: b"bench", descriptors: [descriptor].into_iter().collect(), hits_addend: 1 }
}

criterion_group!(benches, lookup);
criterion_main!(benches);

//! What is measured, and against which targets.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use weir::cli::bench::{Cpu, Report};

use super::servers::{self, BOTH_CORES, LOADER_CORE, Load, Process, SERVER_CORE};
use super::table::{self, Series, number, target};

const ONE: &[&str] = &["user_id=u{}"];
const TWO: &[&str] = &["user_id=u{}", "path=/api/orders"];
const BUCKET: &[&str] = &["bucket_id=b{}"];

const EMPTY: &str = "empty handler";
const MEMORY: &str = "memory";
const MEMORY_TWO: &str = "memory, two descriptors";
const REDIS: &str = "Redis, fixed window";
const REDIS_TWO: &str = "Redis, two descriptors";
const REDIS_BUCKET: &str = "Redis, token bucket";

/// How often, how long, and on how many counters.
pub(crate) struct Turns {
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    pub(crate) keys: u32,
    /// Of contenders' names.
    pub(crate) only: String,
}

impl Turns {
    fn load(&self) -> Load {
        Load { seconds: self.seconds, keys: self.keys, ..Load::default() }
    }

    fn wants(&self, name: &str) -> bool {
        name == EMPTY || name.contains(&self.only)
    }
}

/// The servers of one part, up for all its rounds; an idle one costs nothing.
struct Servers {
    empty: Process,
    memory: Process,
    redis: Process,
    weir_redis: Process,
}

impl Servers {
    fn start(cores: &str, threads: usize, redis_cores: &str) -> Result<Servers> {
        let redis = servers::redis(redis_cores)?;
        Ok(Servers {
            empty: servers::empty(cores, threads)?,
            memory: servers::weir(cores, threads, None)?,
            weir_redis: servers::weir(cores, threads, Some(&redis))?,
            redis,
        })
    }

    fn contenders(&self) -> [(&'static str, &Process, &'static [&'static str], Option<u32>); 6] {
        let redis = Some(self.redis.pid());
        [
            (EMPTY, &self.empty, ONE, None),
            (MEMORY, &self.memory, ONE, None),
            (MEMORY_TWO, &self.memory, TWO, None),
            (REDIS, &self.weir_redis, ONE, redis),
            (REDIS_TWO, &self.weir_redis, TWO, redis),
            (REDIS_BUCKET, &self.weir_redis, BUCKET, redis),
        ]
    }

    /// Everyone's numbers, round by round.
    fn measure(&self, turns: &Turns, load: &Load) -> Result<BTreeMap<&'static str, Numbers>> {
        let mut all: BTreeMap<&'static str, Numbers> = BTreeMap::new();
        for _ in 0..turns.rounds {
            for (name, server, descriptors, redis) in self.contenders() {
                if turns.wants(name) {
                    let report = servers::load(server, &Load { descriptors, redis, ..load.clone() })?;
                    ensure!(report.grpc_status.keys().eq(["OK"]), "{name}: {:?} {:?}", report.grpc_status, report.errors);
                    all.entry(name).or_default().push(&report);
                }
            }
        }
        Ok(all)
    }
}

/// What a contender showed.
#[derive(Default)]
struct Numbers {
    cpu: Series,
    redis: Series,
    rate: Series,
    p50: Series,
    p99: Series,
    /// Of the busiest two threads, the less busy one's share of their time.
    lesser_share: Series,
}

impl Numbers {
    fn push(&mut self, report: &Report) {
        let each = |cpu: &Option<Cpu>| cpu.as_ref().map_or(f64::NAN, |cpu| cpu.us_per_decision);
        self.cpu.push(each(&report.server));
        self.redis.push(each(&report.redis));
        self.rate.push(report.rate / 1e3);
        self.p50.push(p50(report));
        self.p99.push(report.latency_us.map_or(f64::NAN, |latency| latency.p99));
        let mut busy = report.server.iter().flat_map(|cpu| &cpu.threads).map(|thread| thread.busy);
        let (first, second) = (busy.next().unwrap_or(f64::NAN), busy.next().unwrap_or(0.0));
        self.lesser_share.push(100.0 * second / (first + second));
    }

    fn print(&self, name: &str) {
        number(&format!("{name}: server CPU per decision"), &self.cpu, "µs");
        if name.contains("Redis") {
            number(&format!("{name}: Redis CPU per decision"), &self.redis, "µs");
        }
        number(&format!("{name}: rate"), &self.rate, "k/s");
        number(&format!("{name}: p50"), &self.p50, "µs");
        number(&format!("{name}: p99"), &self.p99, "µs");
    }
}

/// Prints a comparison, if both sides were measured.
fn compare(all: &BTreeMap<&str, Numbers>, (one, other): (&str, &str), print: impl Fn(&str, &Series)) {
    if let (Some(first), Some(second)) = (all.get(one), all.get(other)) {
        print(&format!("{one}: times {other}"), &first.cpu.ratio(&second.cpu));
    }
}

pub(crate) fn one_core(turns: &Turns) -> Result<()> {
    table::title("One server thread on one core, 4 connections with 32 calls in flight on each");
    let all = Servers::start(SERVER_CORE, 1, LOADER_CORE)?.measure(turns, &turns.load())?;
    for (name, numbers) in &all {
        numbers.print(name);
    }
    table::title("Against the targets");
    for (pair, at_most) in [
        ((MEMORY, EMPTY), 1.25),
        ((MEMORY_TWO, MEMORY), 1.15),
        ((REDIS, EMPTY), 1.5),
        ((REDIS_BUCKET, EMPTY), 1.5),
        ((REDIS_TWO, REDIS), 1.15),
    ] {
        compare(&all, pair, |name, ratio| target(name, ratio, "", at_most));
    }
    for (name, at_most) in [(REDIS, 3.0), (REDIS_BUCKET, 4.5)] {
        if let Some(numbers) = all.get(name) {
            target(&format!("{name}: Redis CPU per decision"), &numbers.redis, "µs", at_most);
        }
    }
    Ok(())
}

/// Two server threads on both cores, under the same load as one thread on one core; and beside half of everything on a single core,
/// loader and Redis included, so that each core has the same to do.
pub(crate) fn two_cores(turns: &Turns) -> Result<()> {
    table::title("Two server threads on two cores, which the loader and Redis share with them");
    let one = (Servers::start(SERVER_CORE, 1, LOADER_CORE)?, turns.load());
    let half = (Servers::start(SERVER_CORE, 1, SERVER_CORE)?, Load { connections: 2, cores: SERVER_CORE, ..turns.load() });
    let two = (Servers::start(BOTH_CORES, 2, BOTH_CORES)?, Load { threads: 2, cores: BOTH_CORES, ..turns.load() });
    let mut all: [BTreeMap<&str, Numbers>; 3] = Default::default();
    for _ in 0..turns.rounds {
        for name in [EMPTY, MEMORY, REDIS].into_iter().filter(|name| turns.wants(name)) {
            for (numbers, (servers, load)) in all.iter_mut().zip([&one, &half, &two]) {
                let contender = servers.contenders().into_iter().find(|contender| contender.0 == name);
                let (_, server, descriptors, redis) = contender.expect("it is measured on one core, too");
                let report = servers::load(server, &Load { descriptors, redis, ..load.clone() })?;
                numbers.entry(name).or_default().push(&report);
            }
        }
    }
    let [one, half, two] = &all;
    for (name, numbers) in two {
        numbers.print(name);
        number(&format!("{name}: the less busy thread's share"), &numbers.lesser_share, "%");
        number(&format!("{name}: one thread on one core, server CPU per decision"), &one[name].cpu, "µs");
        number(&format!("{name}: half of everything on one core, server CPU per decision"), &half[name].cpu, "µs");
    }
    table::title("Against the targets");
    let dearer = |name: &str| two[name].cpu.ratio(&one[name].cpu);
    for (name, numbers) in two {
        number(&format!("{name}: two cores, times half of everything on one"), &numbers.cpu.ratio(&half[name].cpu), "");
        number(&format!("{name}: two cores, times one"), &dearer(name), "");
    }
    for name in two.keys().filter(|name| **name != EMPTY) {
        target(&format!("{name}: the same, times the empty handler's"), &dearer(name).ratio(&dearer(EMPTY)), "", 1.0);
    }
    Ok(())
}

/// In µs; none where no call got a decision.
fn p50(report: &Report) -> f64 {
    report.latency_us.map_or(f64::NAN, |latency| latency.p50)
}

pub(crate) fn one_call(turns: &Turns) -> Result<()> {
    table::title("One call at a time");
    let servers = Servers::start(SERVER_CORE, 1, LOADER_CORE)?;
    let load = Load { connections: 1, in_flight: 1, ..turns.load() };
    let mut script = Series::default();
    let (mut empty, mut memory, mut redis) = (Series::default(), Series::default(), Series::default());
    for _ in 0..turns.rounds {
        empty.push(p50(&servers::load(&servers.empty, &load)?));
        memory.push(p50(&servers::load(&servers.memory, &load)?));
        redis.push(p50(&servers::load(&servers.weir_redis, &load)?));
        script.push(servers::evalsha(&servers.redis, turns.seconds)?);
    }
    number("empty handler: p50", &empty, "µs");
    number("memory: p50", &memory, "µs");
    number("Redis: p50", &redis, "µs");
    number("the script alone (EVALSHA): p50", &script, "µs");
    let above = redis.with(&empty, |redis, empty| redis - empty);
    target("Redis: p50 above the empty handler's, times EVALSHA's", &above.ratio(&script), "", 2.2);
    Ok(())
}

/// What a plan costs: a tier's three limits beside one, and subjects of whom nothing is said where much is said of others.
pub(crate) fn plans(turns: &Turns) -> Result<()> {
    const ONE_LIMIT: &[&str] = &["account=a{},tier=one"];
    const THREE_LIMITS: &[&str] = &["account=a{},tier=three"];
    table::title("Plans: a tier of three limits beside a tier of one; 100,000 records of others beside none");
    let servers = Servers::start(SERVER_CORE, 1, LOADER_CORE)?;
    let with_records = servers::weir_with_records(SERVER_CORE)?;
    let redis = Some(servers.redis.pid());
    let contenders: [(&str, &Process, &'static [&'static str], Option<u32>); 6] = [
        ("memory, one limit", &servers.memory, ONE_LIMIT, None),
        ("memory, three limits", &servers.memory, THREE_LIMITS, None),
        ("Redis, one limit", &servers.weir_redis, ONE_LIMIT, redis),
        ("Redis, three limits", &servers.weir_redis, THREE_LIMITS, redis),
        ("memory, no records", &servers.memory, ONE, None),
        ("memory, records of others", &with_records, ONE, None),
    ];
    let mut all: BTreeMap<&str, Numbers> = BTreeMap::new();
    for _ in 0..turns.rounds {
        for (name, server, descriptors, redis) in contenders {
            let report = servers::load(server, &Load { descriptors, redis, ..turns.load() })?;
            ensure!(report.overall_code.keys().eq(["OK"]), "{name}: {:?} {:?}", report.overall_code, report.errors);
            all.entry(name).or_default().push(&report);
        }
    }
    for (name, numbers) in &all {
        numbers.print(name);
    }
    table::title("Against the targets");
    compare(&all, ("memory, three limits", "memory, one limit"), |name, ratio| target(name, ratio, "", 1.5));
    compare(&all, ("Redis, three limits", "Redis, one limit"), |name, ratio| target(name, ratio, "", 1.5));
    compare(&all, ("memory, records of others", "memory, no records"), |name, ratio| number(name, ratio, ""));
    Ok(())
}

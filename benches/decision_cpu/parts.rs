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

/// How often and how long.
pub(crate) struct Turns {
    rounds: usize,
    seconds: f64,
    only: String,
}

impl Turns {
    pub(crate) fn new(rounds: usize, seconds: f64, only: String) -> Turns {
        Turns { rounds, seconds, only }
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
    fn start(cores: &str, threads: usize) -> Result<Servers> {
        let redis = servers::redis(LOADER_CORE)?;
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
                if name == EMPTY || name.contains(&turns.only) {
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
        self.p50.push(report.latency_us.p50);
        self.p99.push(report.latency_us.p99);
        let mut busy = report.server.iter().flat_map(|cpu| &cpu.threads).map(|thread| thread.busy);
        let (first, second) = (busy.next().unwrap_or(f64::NAN), busy.next().unwrap_or(0.0));
        self.lesser_share.push(100.0 * second / (first + second));
    }

    fn print(&self, name: &str) {
        number(&format!("{name}: server CPU per decision"), &self.cpu, "µs");
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
    let all = Servers::start(SERVER_CORE, 1)?.measure(turns, &Load { seconds: turns.seconds, ..Load::default() })?;
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

pub(crate) fn two_cores(turns: &Turns) -> Result<()> {
    table::title("Two server threads on two cores (which the loader and Redis share), beside one thread on one");
    let load = Load { seconds: turns.seconds, cores: BOTH_CORES, ..Load::default() };
    let (one, two) = (Servers::start(SERVER_CORE, 1)?, Servers::start(BOTH_CORES, 2)?);
    let (mut of_one, mut of_two): (BTreeMap<&str, Numbers>, BTreeMap<&str, Numbers>) = Default::default();
    for _ in 0..turns.rounds {
        for (single, double) in one.contenders().into_iter().zip(two.contenders()) {
            let name = single.0;
            if ![EMPTY, MEMORY, REDIS].contains(&name) || name != EMPTY && !name.contains(&turns.only) {
                continue;
            }
            for (all, (_, server, descriptors, redis), cores) in
                [(&mut of_one, single, LOADER_CORE), (&mut of_two, double, BOTH_CORES)]
            {
                let report = servers::load(server, &Load { descriptors, redis, cores, ..load.clone() })?;
                all.entry(name).or_default().push(&report);
            }
        }
    }
    for (name, numbers) in &of_two {
        numbers.print(name);
        number(&format!("{name}: the less busy thread's share"), &numbers.lesser_share, "%");
        target(&format!("{name}: two cores, times one core"), &numbers.cpu.ratio(&of_one[name].cpu), "", 1.0);
    }
    Ok(())
}

pub(crate) fn one_call(turns: &Turns) -> Result<()> {
    table::title("One call at a time");
    let servers = Servers::start(SERVER_CORE, 1)?;
    let load = Load { connections: 1, in_flight: 1, seconds: turns.seconds, ..Load::default() };
    let mut script = Series::default();
    let (mut empty, mut memory, mut redis) = (Series::default(), Series::default(), Series::default());
    for _ in 0..turns.rounds {
        empty.push(servers::load(&servers.empty, &load)?.latency_us.p50);
        memory.push(servers::load(&servers.memory, &load)?.latency_us.p50);
        redis.push(servers::load(&servers.weir_redis, &load)?.latency_us.p50);
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

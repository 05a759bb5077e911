//! What a run showed, for people and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::load::{Load, Schedule};
use super::process::{self, CpuTime, Source};
use super::tally::Tally;

/// How long the target may take to accept the first connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Whose CPU time to read beside the loader's own.
#[derive(Debug)]
pub struct Sources {
    pub server: Option<Source>,
    pub redis: Option<Source>,
}

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub target: String,
    pub connections: usize,
    pub in_flight: usize,
    /// Asked for; absent in a closed loop.
    pub rate_asked: Option<f64>,
    pub seconds: f64,
    /// Calls answered in that time, whatever the answer.
    pub answers: u64,
    pub rate: f64,
    /// Absent when no call got a decision.
    pub latency_us: Option<Latency>,
    /// Decisions in which no rule had a part.
    pub met_no_rule: u64,
    pub grpc_status: BTreeMap<String, u64>,
    pub overall_code: BTreeMap<String, u64>,
    pub errors: BTreeMap<String, u64>,
    /// Calls that were due and never sent, because all connections were full.
    pub unsent: u64,
    pub unanswered: u64,
    /// Absent when the server's process is not known.
    pub server: Option<Cpu>,
    pub redis: Option<Cpu>,
    pub loader: Cpu,
}

/// Of calls due in the measured time, in µs.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Latency {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
}

/// What a process used.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cpu {
    pub pid: Option<u32>,
    pub us_per_decision: f64,
    /// The busiest first.
    pub threads: Vec<ThreadCpu>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ThreadCpu {
    pub name: String,
    pub us_per_decision: f64,
    /// Of one core.
    pub busy: f64,
}

/// Loads for warm-up and duration and reports on the latter.
pub fn measure(load: &Load, sources: &Sources, warmup: Duration, duration: Duration) -> Result<Report> {
    TcpStream::connect_timeout(&load.target, CONNECT_TIMEOUT).with_context(|| format!("connecting to {}", load.authority))?;
    let begin = Instant::now();
    let schedule = Schedule { begin, measured_from: begin + warmup, end: begin + warmup + duration };
    let running = load.start(schedule)?;
    let own = process::own();
    let (before, after) = tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
        tokio::time::sleep_until(schedule.measured_from.into()).await;
        let before = Reading::take(sources, &own)?;
        tokio::time::sleep_until(schedule.end.into()).await;
        anyhow::Ok((before, Reading::take(sources, &own)?))
    })?;
    let tally = running.finish()?;
    Ok(report(load, sources, duration, &tally, &before, &after))
}

/// CPU times at one moment.
struct Reading {
    at: Instant,
    server: Option<CpuTime>,
    redis: Option<CpuTime>,
    loader: CpuTime,
}

impl Reading {
    fn take(sources: &Sources, own: &Source) -> Result<Reading> {
        let read = |source: &Option<Source>| source.as_ref().map(Source::read).transpose();
        Ok(Reading { at: Instant::now(), server: read(&sources.server)?, redis: read(&sources.redis)?, loader: own.read()? })
    }
}

fn report(load: &Load, sources: &Sources, duration: Duration, tally: &Tally, before: &Reading, after: &Reading) -> Report {
    let elapsed = after.at - before.at;
    let cpu = |source: &Option<Source>, before: &Option<CpuTime>, after: &Option<CpuTime>| {
        let (source, before, after) = (source.as_ref()?, before.as_ref()?, after.as_ref()?);
        Some(cpu(source.pid(), before, after, elapsed, tally.answers))
    };
    let seconds = duration.as_secs_f64();
    Report {
        target: load.authority.clone(),
        connections: load.connections,
        in_flight: load.in_flight,
        rate_asked: load.rate,
        seconds,
        answers: tally.answers,
        rate: float(tally.answers) / seconds,
        latency_us: (tally.decisions() > 0).then(|| latency(tally)),
        met_no_rule: tally.met_no_rule,
        grpc_status: tally.statuses(),
        overall_code: tally.codes(),
        errors: tally.errors().clone(),
        unsent: tally.unsent,
        unanswered: tally.unanswered,
        server: cpu(&sources.server, &before.server, &after.server),
        redis: cpu(&sources.redis, &before.redis, &after.redis),
        loader: self::cpu(Some(std::process::id()), &before.loader, &after.loader, elapsed, tally.answers),
    }
}

fn cpu(pid: Option<u32>, before: &CpuTime, after: &CpuTime, elapsed: Duration, decisions: u64) -> Cpu {
    let each = |time: Duration| if decisions == 0 { 0.0 } else { time.as_secs_f64() * 1e6 / float(decisions) };
    let mut threads: Vec<ThreadCpu> = after
        .since(before)
        .into_iter()
        .map(|thread| ThreadCpu {
            us_per_decision: each(thread.time),
            busy: thread.time.as_secs_f64() / elapsed.as_secs_f64(),
            name: thread.name,
        })
        .collect();
    threads.sort_by(|a, b| b.busy.total_cmp(&a.busy));
    Cpu { pid, us_per_decision: threads.iter().map(|thread| thread.us_per_decision).sum(), threads }
}

fn latency(tally: &Tally) -> Latency {
    let micros = |nanos: u64| float(nanos) / 1e3;
    let at = |quantile| micros(tally.latency.value_at_quantile(quantile));
    Latency {
        mean: tally.latency.mean() / 1e3,
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p99_9: at(0.999),
        max: micros(tally.latency.max()),
    }
}

#[allow(clippy::cast_precision_loss)] // counts and times far below 2^53
fn float(number: u64) -> f64 {
    number as f64
}

impl Report {
    /// Calls that got a decision.
    pub fn decisions(&self) -> u64 {
        self.overall_code.values().sum()
    }

    /// Why no call got a decision; the most frequent reason first.
    pub fn why_no_decision(&self) -> String {
        let mut reasons: Vec<(&String, &u64)> = self.errors.iter().chain(self.unexplained()).collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let mut reasons: Vec<String> = reasons.into_iter().map(|(reason, &count)| format!("{reason} ({})", calls(count))).collect();
        if self.unanswered > 0 {
            reasons.push(format!("no answer ({})", calls(self.unanswered)));
        }
        if self.unsent > 0 {
            reasons.push(format!("never sent, for want of a connection ({})", calls(self.unsent)));
        }
        if reasons.is_empty() {
            reasons.push("none ended within the measured time".to_owned());
        }
        reasons.join("; ")
    }

    /// Statuses without a reason of their own among the errors.
    fn unexplained(&self) -> impl Iterator<Item = (&String, &u64)> {
        let is_explained =
            |name: &str| self.errors.keys().any(|error| error.strip_prefix(name).is_some_and(|rest| rest.starts_with(':')));
        self.grpc_status.iter().filter(move |(name, _)| !is_explained(name))
    }
}

/// In the unit that a person would say it in.
fn time(micros: f64) -> String {
    match micros {
        ..1_000.0 => format!("{micros:.0} µs"),
        ..10_000.0 => format!("{:.1} ms", micros / 1e3),
        _ => format!("{:.0} ms", micros / 1e3),
    }
}

fn calls(count: u64) -> String {
    format!("{count} call{}", if count == 1 { "" } else { "s" })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.rate_asked {
            Some(rate) => format!("open loop, {rate} calls a second"),
            None => "closed loop".to_owned(),
        };
        let connections = match self.connections {
            1 => "1 connection".to_owned(),
            many => format!("{many} connections"),
        };
        writeln!(f, "{}: {connections}, {} in flight on each, {how}", self.target, self.in_flight)?;
        let answers = match self.answers {
            1 => "1 answer".to_owned(),
            many => format!("{many} answers"),
        };
        writeln!(f, "rate       {:.0}/s ({answers} in {:.1} s)", self.rate, self.seconds)?;
        if let Some(latency) = &self.latency_us {
            let Latency { mean, p50, p90, p99, p99_9, max } = *latency;
            let [p50, p90, p99, p99_9, max, mean] = [p50, p90, p99, p99_9, max, mean].map(time);
            writeln!(f, "latency    p50 {p50}, p90 {p90}, p99 {p99}, p99.9 {p99_9}, max {max}, mean {mean}")?;
        }
        writeln!(f, "decisions  {}", counts(&self.overall_code))?;
        if self.met_no_rule > 0 {
            writeln!(f, "no rule    {} met no rule: nothing limits them", calls(self.met_no_rule))?;
        }
        writeln!(f, "status     {}", counts(&self.grpc_status))?;
        if !self.errors.is_empty() {
            writeln!(f, "errors     {}", counts(&self.errors))?;
        }
        if self.unsent + self.unanswered > 0 {
            writeln!(f, "left       {} due but never sent, {} sent but never answered", self.unsent, self.unanswered)?;
        }
        for (name, cpu) in [("server", self.server.as_ref()), ("redis", self.redis.as_ref()), ("loader", Some(&self.loader))] {
            if let (Some(cpu), true) = (cpu, self.answers > 0) {
                writeln!(f, "{name:<10} {cpu}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} µs of CPU per decision", self.us_per_decision)?;
        let threads: Vec<String> =
            self.threads.iter().map(|thread| format!("{} {:.0} %", thread.name, 100.0 * thread.busy)).collect();
        if let (Some(pid), false) = (self.pid, threads.is_empty()) {
            write!(f, " (process {pid}: {})", threads.join(", "))?;
        }
        Ok(())
    }
}

fn counts(counts: &BTreeMap<String, u64>) -> String {
    if counts.is_empty() {
        return "none".to_owned();
    }
    counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_the_unit_of_their_size() {
        assert_eq!([0.4, 85.25, 1_240.0, 12_345.6].map(time), ["0 µs", "85 µs", "1.2 ms", "12 ms"]);
    }
}

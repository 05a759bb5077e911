//! `weir bench`: asks any service that speaks Envoy's rate-limit protocol, as fast as it answers or at a given rate, and
//! says what it saw: rate, latencies, codes, and what a decision cost the server in CPU, if that is on this machine.

pub mod answer;
pub mod load;
pub mod process;
pub mod report;
pub mod requests;
pub mod tally;

use std::net::{SocketAddr, ToSocketAddrs};
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

pub use report::{Cpu, Latency, Report, ThreadCpu};
use requests::{Choice, Descriptor, Requests};

/// Measure a rate-limit service: rate, latency, codes, and its CPU per decision when it runs on this machine.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// The service's gRPC address.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8081")]
    pub target: String,
    /// HTTP/2 connections.
    #[arg(long, value_name = "N", default_value = "4", allow_negative_numbers = true)]
    pub connections: NonZeroUsize,
    /// Calls in flight on each connection; with --rate, at most.
    #[arg(long, value_name = "N", default_value = "32", allow_negative_numbers = true)]
    pub in_flight: NonZeroUsize,
    /// Threads to load from; connections are dealt out among them.
    #[arg(long, value_name = "N", default_value = "1", allow_negative_numbers = true)]
    pub threads: NonZeroUsize,
    /// How long to measure.
    #[arg(long, value_name = "DURATION", default_value = "10s", allow_hyphen_values = true, value_parser = duration)]
    pub duration: Duration,
    /// How long to load before measuring.
    #[arg(long, value_name = "DURATION", default_value = "2s", allow_hyphen_values = true, value_parser = duration)]
    pub warmup: Duration,
    /// Calls per second, sent whether or not earlier ones were answered (open loop), and timed from the moment they were
    /// due. Without it every answer makes room for the next call (closed loop).
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = rate)]
    pub rate: Option<f64>,
    /// The domain to ask about.
    #[arg(long, value_name = "NAME")]
    pub domain: String,
    /// A descriptor: entries joined by commas, as in `path=/a,user_id={}`, where `{}` becomes one of --keys, and at the end its own
    /// hits_addend if it has one, as in `user_id={};hits=250`. May be repeated.
    #[arg(long = "descriptor", value_name = "KEY=VALUE,…[;hits=N]", required = true)]
    pub descriptors: Vec<Descriptor>,
    /// How many different values `{}` takes.
    #[arg(long, value_name = "N", default_value = "1", allow_negative_numbers = true)]
    pub keys: NonZeroU32,
    /// How `{}` is drawn.
    #[arg(long, value_name = "HOW", default_value = "uniform")]
    pub draw: Draw,
    /// The request's hits_addend; absent if not given.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub hits: Option<u32>,
    /// The deadline that the service is told (grpc-timeout).
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = duration)]
    pub timeout: Option<Duration>,
    /// The server's process, if it is not the one that listens on the target's port.
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// A Redis whose CPU per decision to measure, by INFO.
    #[arg(long, value_name = "HOST:PORT")]
    pub redis: Option<String>,
    /// A Redis on this machine whose CPU per decision to measure, by its process.
    #[arg(long, value_name = "PID", conflicts_with = "redis")]
    pub redis_pid: Option<u32>,
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// How keys are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Draw {
    /// All alike.
    Uniform,
    /// The n-th key 1/n times as often as the first.
    Zipf,
}

/// Runs the command.
///
/// # Errors
/// When the target cannot be reached, a process or Redis that was asked for cannot be read, or no call gets a decision.
pub fn run(args: BenchArgs) -> Result<()> {
    if let Some(warning) = warning(&args, resolve(&args.target)?) {
        eprintln!("{warning}");
    }
    let report = measure(&args)?;
    let text = if args.json { serde_json::to_string_pretty(&report)? + "\n" } else { report.to_string() };
    super::print(&text)?;
    ensure!(report.decisions() > 0, "{} decided no call: {}", args.target, report.why_no_decision());
    Ok(())
}

/// What to know before calls go further than the loopback interface: they count there.
fn warning(args: &BenchArgs, target: SocketAddr) -> Option<String> {
    let address = target.ip().to_canonical();
    if address.is_loopback() || address.is_unspecified() {
        return None;
    }
    let written = if args.target == target.to_string() { String::new() } else { format!(" ({target})") };
    Some(format!(
        "weir bench: {}{written} is not a loopback address: every call spends real quota of the domain `{}` there",
        args.target, args.domain
    ))
}

/// Loads the target and measures.
///
/// # Errors
/// As [`run`].
pub fn measure(args: &BenchArgs) -> Result<Report> {
    let target = resolve(&args.target)?;
    let requests = Requests::new(&args.domain, &args.descriptors, args.hits, args.keys.get(), choice(args.draw))?;
    let sources = report::Sources {
        server: process::server(args.pid, target),
        redis: process::redis(args.redis.as_deref(), args.redis_pid)?,
    };
    let load = load::Load {
        target,
        authority: args.target.clone(),
        connections: args.connections.get(),
        in_flight: args.in_flight.get(),
        threads: args.threads.get().min(args.connections.get()),
        rate: args.rate,
        timeout: args.timeout,
        requests,
    };
    report::measure(&load, &sources, args.warmup, args.duration)
}

fn choice(draw: Draw) -> Choice {
    match draw {
        Draw::Uniform => Choice::Uniform,
        Draw::Zipf => Choice::Zipf,
    }
}

fn resolve(target: &str) -> Result<SocketAddr> {
    let is_address = target.rsplit_once(':').is_some_and(|(host, port)| !host.contains('/') && port.parse::<u16>().is_ok());
    ensure!(is_address, "--target {target}: expected host:port, such as 127.0.0.1:8081");
    let mut addresses = target.to_socket_addrs().with_context(|| format!("--target {target}"))?;
    addresses.next().with_context(|| format!("--target {target}: no address"))
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("expected calls per second, such as 5000".to_owned()),
    }
}

/// `10s`, `250ms`, `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let factor = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("expected a duration, such as 10s, 250ms or 2m".to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| format!("{number:?} is no number"))?;
    Duration::try_from_secs_f64(number * factor).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_to_another_machine_are_said_to_spend_quota() {
        #[derive(clap::Parser)]
        struct Bench {
            #[command(flatten)]
            args: BenchArgs,
        }
        let warning = |written: &str, target: &str| {
            let typed = ["bench", "--target", written, "--domain", "shop", "--descriptor", "a=b"];
            let args = <Bench as clap::Parser>::try_parse_from(typed).unwrap().args;
            warning(&args, target.parse().unwrap())
        };
        let named = warning("limits.example:8081", "203.0.113.9:8081").unwrap();
        assert_eq!(
            named,
            "weir bench: limits.example:8081 (203.0.113.9:8081) is not a loopback address: every call spends real quota of the domain \
             `shop` there"
        );
        assert!(warning("10.0.0.7:8081", "10.0.0.7:8081").unwrap().contains("10.0.0.7:8081 is not a loopback address"));
        assert!(warning("h:1", "[2001:db8::1]:1").is_some() && warning("h:1", "[::ffff:10.0.0.7]:1").is_some());
        for own in ["127.0.0.1:1", "127.3.2.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "0.0.0.0:1"] {
            assert_eq!(warning("localhost:1", own), None, "{own}");
        }
    }

    #[test]
    fn a_target_that_is_no_address_is_told_apart_from_a_name_that_is_unknown() {
        for target in ["nohost", "http://127.0.0.1:8081", "127.0.0.1:port", ":"] {
            assert!(resolve(target).unwrap_err().to_string().contains("expected host:port"), "{target}");
        }
        assert_eq!(resolve("[::1]:8081").unwrap(), "[::1]:8081".parse().unwrap());
        assert!(!format!("{:#}", resolve("no-such-host.invalid:8081").unwrap_err()).contains("expected host:port"));
    }

    #[test]
    fn durations_and_rates_have_units_and_bounds() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert!(duration("10").is_err() && duration("-1s").is_err() && duration("x").is_err());
        assert!(rate("0").is_err() && rate("inf").is_err() && rate("2e4") == Ok(20_000.0));
    }
}

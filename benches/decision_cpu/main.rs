//! What a decision costs the server in CPU, beside a gRPC handler that does nothing, and what it costs Redis.
//!
//! `cargo bench --bench decision_cpu` (Linux, two cores, redis-server and taskset). Servers run on the first core, the loader and
//! Redis on the second. Machines are noisy: what is compared runs in turns, round after round, ratios are taken within a
//! round, and medians are printed. Nothing is asserted; the targets stand beside the numbers.

mod empty;
mod evalsha;
mod parts;
mod servers;
mod table;

use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures what a decision costs.
#[derive(Parser)]
struct Options {
    /// What to measure; everything if not given.
    #[arg(long, value_enum)]
    part: Vec<Part>,
    /// Rounds, in which everything that is compared takes its turn.
    #[arg(long, default_value = "5")]
    rounds: usize,
    /// Seconds that one turn is measured for, after a fifth of it to warm up.
    #[arg(long, default_value = "2")]
    seconds: f64,
    /// Different counters that are asked for.
    #[arg(long, default_value = "1000")]
    keys: u32,
    /// Only servers whose name contains this, and the empty handler.
    #[arg(long, default_value = "")]
    only: String,
    /// Internal: be the empty handler, on so many threads.
    #[arg(long, hide = true)]
    empty_handler: Option<usize>,
    /// Internal: time the script alone at this Redis.
    #[arg(long, hide = true)]
    evalsha: Option<String>,
    /// What cargo says.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// One server thread on one core: CPU per decision.
    OneCore,
    /// Twice the threads, connections and cores: CPU per decision, and how evenly it is spread.
    TwoCores,
    /// One call at a time: latency.
    OneCall,
    /// A tier of three limits beside one of one, and what is said of others.
    Plans,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(threads) = options.empty_handler {
        return empty::serve(threads);
    }
    if let Some(address) = &options.evalsha {
        return evalsha::time(address, Duration::from_secs_f64(options.seconds));
    }
    let is_wanted = |part| options.part.is_empty() || options.part.contains(&part);
    let turns = parts::Turns { rounds: options.rounds, seconds: options.seconds, keys: options.keys, only: options.only.clone() };
    if is_wanted(Part::OneCore) {
        parts::one_core(&turns)?;
    }
    if is_wanted(Part::TwoCores) {
        parts::two_cores(&turns)?;
    }
    if is_wanted(Part::OneCall) {
        parts::one_call(&turns)?;
    }
    if is_wanted(Part::Plans) {
        parts::plans(&turns)?;
    }
    Ok(())
}

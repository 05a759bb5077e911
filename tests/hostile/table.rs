//! What an attack cost, as a line of the file that `ATTACKS_TABLE` names (`scripts/attacks` sets it). The suite asserts bounds that
//! do not depend on the machine's speed; times are for that table alone.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::weir::Weir;

/// How long the others waited for their answers, and how much memory weir took, from [`Measured::of`] to its end.
pub(crate) struct Measured {
    rest: u64,
    peak: u64,
    waits: Vec<Duration>,
    over: Option<Instant>,
    recovery: Duration,
}

impl Measured {
    /// Of a weir at rest.
    pub(crate) fn of(weir: &Weir) -> Measured {
        let rest = weir.resident();
        Measured { rest, peak: rest, waits: Vec::new(), over: None, recovery: Duration::ZERO }
    }

    /// Forgets what was before.
    pub(crate) fn is_at_rest(&mut self, weir: &Weir) {
        self.rest = weir.resident();
        self.peak = self.rest;
        self.waits.clear();
    }

    /// Resident memory at rest, in bytes.
    pub(crate) fn rest(&self) -> u64 {
        self.rest
    }

    /// One of the others was answered after this time.
    pub(crate) fn answered(&mut self, wait: Duration) {
        self.waits.push(wait);
    }

    /// Resident memory now, in bytes.
    pub(crate) fn memory(&mut self, resident: u64) {
        self.peak = self.peak.max(resident);
    }

    /// The attack has ended: what follows is recovery.
    pub(crate) fn attack_is_over(&mut self) {
        self.over = Some(Instant::now());
    }

    /// Everything is as before.
    pub(crate) fn has_recovered(&mut self) {
        self.recovery = self.recovery.max(self.over.map_or(Duration::ZERO, |over| over.elapsed()));
    }

    fn line(&mut self) -> String {
        self.waits.sort();
        let wait = |share: f64| {
            let last = self.waits.len().saturating_sub(1);
            let place = (last as f64 * share) as usize;
            self.waits.get(place).map_or(0.0, |wait| wait.as_secs_f64() * 1e3)
        };
        let name = thread::current().name().unwrap_or("?").replace("::", ": ").replace('_', " ");
        let memory = (self.peak - self.rest) >> 20;
        let recovery = self.recovery.as_secs_f64();
        let waits = format!("{:.1} | {:.1} | {:.0}", wait(0.5), wait(0.99), wait(1.0));
        format!("| {name} | {} | {waits} | {memory} | {recovery:.1} |\n", self.waits.len())
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        let Some(path) = std::env::var_os("ATTACKS_TABLE") else { return };
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let written = file.and_then(|mut file| file.write_all(self.line().as_bytes()));
        written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

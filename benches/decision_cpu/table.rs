//! Numbers of several rounds, and how they are printed.

/// One quantity, a number from each round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    pub(crate) fn push(&mut self, number: f64) {
        self.0.push(number);
    }

    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            count if count % 2 == 1 => sorted[count / 2],
            count => (sorted[count / 2 - 1] + sorted[count / 2]) / 2.0,
        }
    }

    /// Round by round.
    pub(crate) fn with(&self, other: &Series, combine: impl Fn(f64, f64) -> f64) -> Series {
        Series(self.0.iter().zip(&other.0).map(|(&one, &other)| combine(one, other)).collect())
    }

    pub(crate) fn ratio(&self, other: &Series) -> Series {
        self.with(other, |one, other| one / other)
    }

    fn spread(&self) -> (f64, f64) {
        self.0.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &number| (low.min(number), high.max(number)))
    }
}

pub(crate) fn title(text: &str) {
    println!("\n{text}");
}

/// A quantity on its own.
pub(crate) fn number(name: &str, series: &Series, unit: &str) {
    let (low, high) = series.spread();
    println!("  {name:<58} {:>8.2} {unit:<3} ({low:.2} to {high:.2})", series.median());
}

/// A quantity that is to stay at or below a target.
pub(crate) fn target(name: &str, series: &Series, unit: &str, at_most: f64) {
    let (low, high) = series.spread();
    let median = series.median();
    let verdict = if median <= at_most { "met" } else { "NOT MET" };
    println!("  {name:<58} {median:>8.2} {unit:<3} ({low:.2} to {high:.2})   at most {at_most}: {verdict}");
}

//! What tests need that drive the two stores through the same random requests.

#![allow(dead_code, unreachable_pub)] // Each test file uses a part of it.

use weir::limit::{Algorithm, Hit, State};

/// A stored value: little-endian doubles.
pub fn parse(value: &[u8], algorithm: Algorithm) -> State {
    assert!(value.len().is_multiple_of(8), "{algorithm:?} is kept in doubles: {value:?}");
    let doubles = value.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().expect("eight bytes")));
    let numbers: Vec<u64> = doubles
        .map(|double| {
            assert!(double >= 0.0 && double.fract() == 0.0 && double < 2f64.powi(53), "{double} is whole and exact");
            double as u64
        })
        .collect();
    match (algorithm, numbers.as_slice()) {
        (Algorithm::FixedWindow | Algorithm::Calendar, &[start, count]) => State::Window { start, count },
        (Algorithm::SlidingCounter, &[start, current, previous]) => State::Counter { start, current, previous },
        (Algorithm::TokenBucket | Algorithm::LeakyBucket, &[at, debt]) => State::Meter { at, debt },
        (Algorithm::Penalty, &[until]) => State::Blocked { until },
        (Algorithm::SlidingLog, [total, pairs @ ..]) => {
            let hits = pairs.chunks_exact(2).map(|pair| Hit { at: pair[0], count: pair[1] }).collect();
            State::Log { total: *total, hits }
        }
        (algorithm, numbers) => panic!("{numbers:?} is no state of {algorithm:?}"),
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014): small, and the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("an index is small")
    }

    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.index(choices.len())]
    }
}

//! The names of an import's records, as hashes of 16 bytes: a million take 22 MB however long they are.

use std::collections::HashSet;

use foldhash::fast::RandomState;
use ring::digest::{SHA256, digest};

use crate::store::records::RecordName;

/// So many sets, each of which grows by itself: one set of a million names would stop its thread for tens of
/// milliseconds when it grows. A million names fill each of these to seven eighths of 4,096.
const SETS: usize = 320;

/// A name's hash. Nobody can find two names that have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct NameHash(u128);

impl NameHash {
    pub(super) fn of(name: &RecordName) -> NameHash {
        let digest = digest(&SHA256, name.text().as_bytes());
        let beginning = digest.as_ref().first_chunk().expect("SHA-256 has 32 bytes");
        NameHash(u128::from_be_bytes(*beginning))
    }
}

/// A set of names.
pub(super) struct Seen {
    sets: Vec<HashSet<NameHash, RandomState>>,
}

impl Seen {
    pub(super) fn new() -> Seen {
        Seen { sets: vec![HashSet::default(); SETS] }
    }

    /// Says whether it was new.
    pub(super) fn insert(&mut self, name: NameHash) -> bool {
        self.sets[place(name)].insert(name)
    }

    pub(super) fn contains(&self, name: NameHash) -> bool {
        self.sets[place(name)].contains(&name)
    }
}

fn place(name: NameHash) -> usize {
    usize::try_from(name.0 % SETS as u128).expect("it is less than the number of sets")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_new_once() {
        let name = |tier: usize| RecordName::Tier { domain: "d".into(), tier: tier.to_string().into() };
        let mut seen = Seen::new();
        for number in 0..2_000 {
            assert!(seen.insert(NameHash::of(&name(number))), "{number}");
        }
        assert!((0..2_000).all(|number| seen.contains(NameHash::of(&name(number)))));
        assert!(!seen.insert(NameHash::of(&name(7))) && !seen.contains(NameHash::of(&name(2_000))));
        let domain = RecordName::Switch { domain: Some("d".into()) };
        assert_ne!(NameHash::of(&domain), NameHash::of(&RecordName::Switch { domain: None }));
    }
}

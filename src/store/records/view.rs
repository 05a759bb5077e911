//! All records, as every decision of this process goes by them: a look-up without a lock, and one load of a counter where there
//! are none. Changes replace one part of the table at a time.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::{Record, RecordName};
use crate::rules::subject::{self, Records, SubjectRecord, Switch};
use crate::rules::tier_definition::TierDefinition;

/// Parts of the table: a change copies one of them.
const PARTS: usize = 256;

/// What is known of all subjects, all tiers that were defined while weir runs, and the switches.
pub struct RecordView {
    parts: Box<[ArcSwap<Part>]>,
    hasher: RandomState,
    subjects: AtomicUsize,
    is_switched: AtomicBool,
    switches: ArcSwap<Switches>,
    tiers: ArcSwap<Tiers>,
    /// One change after the other.
    changing: Mutex<()>,
}

type Part = HashMap<Box<[u8]>, Arc<SubjectRecord>, RandomState>;
/// Domains, and what is defined in each; the order is that of the names.
pub type Tiers = Vec<(Box<str>, Vec<(Box<str>, TierDefinition)>)>;

#[derive(Clone, Default)]
struct Switches {
    all: Switch,
    domains: HashMap<Box<str>, Switch, RandomState>,
}

impl Default for RecordView {
    fn default() -> RecordView {
        RecordView {
            parts: (0..PARTS).map(|_| ArcSwap::default()).collect(),
            hasher: RandomState::default(),
            subjects: AtomicUsize::new(0),
            is_switched: AtomicBool::new(false),
            switches: ArcSwap::default(),
            tiers: ArcSwap::default(),
            changing: Mutex::default(),
        }
    }
}

impl Records for RecordView {
    fn is_empty(&self) -> bool {
        self.subjects.load(Ordering::Relaxed) == 0
    }

    fn find(&self, name: &[u8]) -> Option<Arc<SubjectRecord>> {
        self.parts[self.part_of(name)].load().get(name).cloned()
    }
}

impl RecordView {
    /// What holds for a domain whatever its rules say: the stronger of its own switch and that of all domains.
    pub fn switch(&self, domain: &[u8]) -> Switch {
        if !self.is_switched.load(Ordering::Relaxed) {
            return Switch::Off;
        }
        let switches = self.switches.load();
        let own = std::str::from_utf8(domain).ok().and_then(|domain| switches.domains.get(domain)).copied().unwrap_or_default();
        match (switches.all, own) {
            (Switch::AllowAll, _) | (_, Switch::AllowAll) => Switch::AllowAll,
            (Switch::ShadowAll, _) | (_, Switch::ShadowAll) => Switch::ShadowAll,
            _ => Switch::Off,
        }
    }

    /// Subjects that have a record.
    pub fn subjects(&self) -> usize {
        self.subjects.load(Ordering::Relaxed)
    }

    /// Switches that are not off: of domains, and the one of all.
    pub fn switches(&self) -> usize {
        let switches = self.switches.load();
        switches.domains.len() + usize::from(switches.all != Switch::Off)
    }

    /// The tiers that were defined while weir runs.
    pub fn tiers(&self) -> Arc<Tiers> {
        self.tiers.load_full()
    }

    /// These are so from now on, or gone. Says whether tiers are among them.
    pub fn apply(&self, changes: Vec<(RecordName, Option<Record>)>) -> bool {
        let _one_at_a_time = self.changing.lock();
        let mut parts: HashMap<usize, Part> = HashMap::new();
        let mut switches = Switches::clone(&self.switches.load());
        let mut tiers = Tiers::clone(&self.tiers.load());
        let mut has_tiers = false;
        for (name, record) in changes {
            match (name, record.filter(|record| !record.is_empty())) {
                (RecordName::Subject { domain, subject }, record) => {
                    let name = subject::joined(domain.as_bytes(), &subject);
                    let place = self.part_of(&name);
                    let part = parts.entry(place).or_insert_with(|| Part::clone(&self.parts[place].load()));
                    match record {
                        Some(Record::Subject(record)) => drop(part.insert(name.as_slice().into(), Arc::new(record))),
                        _ => drop(part.remove(name.as_slice())),
                    }
                }
                (RecordName::Switch { domain }, record) => {
                    let switch = if let Some(Record::Switch(switch)) = record { switch } else { Switch::Off };
                    switches.set(domain, switch);
                }
                (RecordName::Tier { domain, tier }, record) => {
                    has_tiers = true;
                    let definition = if let Some(Record::Tier(definition)) = record { Some(definition) } else { None };
                    define(&mut tiers, domain, tier, definition);
                }
            }
        }
        for (place, part) in parts {
            let before = self.parts[place].swap(Arc::new(part));
            let now = self.parts[place].load().len();
            self.subjects.fetch_add(now, Ordering::Relaxed);
            self.subjects.fetch_sub(before.len(), Ordering::Relaxed);
        }
        self.set_switches(switches);
        if has_tiers {
            self.tiers.store(Arc::new(tiers));
        }
        has_tiers
    }

    /// These are all that there are.
    pub fn replace(&self, records: Vec<(RecordName, Record)>) {
        let _one_at_a_time = self.changing.lock();
        let mut parts: Vec<Part> = (0..PARTS).map(|_| Part::default()).collect();
        let mut switches = Switches::default();
        let mut tiers = Tiers::default();
        for (name, record) in records {
            match (name, record) {
                (RecordName::Subject { domain, subject }, Record::Subject(record)) => {
                    let name = subject::joined(domain.as_bytes(), &subject);
                    parts[self.part_of(&name)].insert(name.as_slice().into(), Arc::new(record));
                }
                (RecordName::Switch { domain }, Record::Switch(switch)) => switches.set(domain, switch),
                (RecordName::Tier { domain, tier }, Record::Tier(definition)) => {
                    define(&mut tiers, domain, tier, Some(definition));
                }
                // A record is parsed by its name.
                _ => {}
            }
        }
        self.subjects.store(parts.iter().map(HashMap::len).sum(), Ordering::Relaxed);
        for (place, part) in self.parts.iter().zip(parts) {
            place.store(Arc::new(part));
        }
        self.set_switches(switches);
        self.tiers.store(Arc::new(tiers));
    }

    fn set_switches(&self, switches: Switches) {
        self.is_switched.store(switches.all != Switch::Off || !switches.domains.is_empty(), Ordering::Relaxed);
        self.switches.store(Arc::new(switches));
    }

    fn part_of(&self, name: &[u8]) -> usize {
        usize::try_from(self.hasher.hash_one(name) % PARTS as u64).expect("a part's place is small")
    }
}

impl Switches {
    fn set(&mut self, domain: Option<Box<str>>, switch: Switch) {
        match (domain, switch) {
            (None, switch) => self.all = switch,
            (Some(domain), Switch::Off) => drop(self.domains.remove(&domain)),
            (Some(domain), switch) => drop(self.domains.insert(domain, switch)),
        }
    }
}

/// Sets or removes one tier.
fn define(tiers: &mut Tiers, domain: Box<str>, tier: Box<str>, definition: Option<TierDefinition>) {
    let place = tiers.binary_search_by(|(name, _)| name.cmp(&domain)).unwrap_or_else(|place| {
        tiers.insert(place, (domain, Vec::new()));
        place
    });
    let defined = &mut tiers[place].1;
    match (defined.binary_search_by(|(name, _)| name.cmp(&tier)), definition) {
        (Ok(known), Some(definition)) => defined[known].1 = definition,
        (Ok(known), None) => drop(defined.remove(known)),
        (Err(place), Some(definition)) => defined.insert(place, (tier, definition)),
        (Err(_), None) => {}
    }
    if defined.is_empty() {
        tiers.remove(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(number: usize) -> RecordName {
        RecordName::Subject { domain: "api".into(), subject: format!("user=u{number}").into_bytes().into() }
    }

    fn tier(name: &str) -> Record {
        Record::Subject(SubjectRecord { tier: Some(name.into()), ..SubjectRecord::default() })
    }

    fn tier_of(view: &RecordView, number: usize) -> Option<Box<str>> {
        view.find(format!("api|user=u{number}").as_bytes())?.tier.clone()
    }

    #[test]
    fn changes_add_up_to_what_a_reload_finds() {
        let (changed, loaded) = (RecordView::default(), RecordView::default());
        for number in 0..1000 {
            changed.apply(vec![(subject(number), Some(tier("old")))]);
        }
        let changes = (0..1000).map(|number| (subject(number), (number % 3 > 0).then(|| tier("new"))));
        changed.apply(changes.clone().collect());
        loaded.apply(vec![(subject(5000), Some(tier("gone")))]);
        loaded.replace(changes.filter_map(|(name, record)| Some((name, record?))).collect());
        assert_eq!((changed.subjects(), loaded.subjects()), (666, 666));
        for number in [0, 1, 2, 3, 999, 5000] {
            assert_eq!(tier_of(&changed, number), tier_of(&loaded, number));
        }
        assert_eq!((tier_of(&changed, 0), tier_of(&changed, 1).as_deref()), (None, Some("new")));
    }

    #[test]
    fn what_says_nothing_is_not_kept() {
        let view = RecordView::default();
        view.apply(vec![(subject(1), Some(tier("pro")))]);
        view.apply(vec![(subject(1), Some(Record::Subject(SubjectRecord::default())))]);
        assert!(view.is_empty() && tier_of(&view, 1).is_none());
    }

    #[test]
    fn the_stronger_switch_holds() {
        let view = RecordView::default();
        let set = |domain: Option<&str>, switch| {
            view.apply(vec![(RecordName::Switch { domain: domain.map(Into::into) }, Some(Record::Switch(switch)))]);
        };
        assert_eq!(view.switch(b"api"), Switch::Off);
        set(Some("api"), Switch::ShadowAll);
        assert_eq!([view.switch(b"api"), view.switch(b"other")], [Switch::ShadowAll, Switch::Off]);
        set(None, Switch::AllowAll);
        assert_eq!([view.switch(b"api"), view.switch(b"other")], [Switch::AllowAll; 2]);
        assert_eq!(view.switches(), 2);
        set(None, Switch::Off);
        set(Some("api"), Switch::Off);
        assert_eq!((view.switch(b"api"), view.switches()), (Switch::Off, 0));
    }

    #[test]
    fn tiers_come_and_go() {
        let view = RecordView::default();
        let name = |tier: &str| RecordName::Tier { domain: "api".into(), tier: tier.into() };
        let definition = Record::Tier(TierDefinition::default());
        assert!(view.apply(vec![(name("b"), Some(definition.clone())), (name("a"), Some(definition))]));
        assert!(!view.apply(vec![(subject(1), None)]));
        let names =
            || view.tiers().iter().flat_map(|(_, tiers)| tiers.iter().map(|(name, _)| name.to_string())).collect::<Vec<_>>();
        assert_eq!(names(), ["a", "b"]);
        view.apply(vec![(name("a"), None), (name("b"), None)]);
        assert!(view.tiers().is_empty());
    }
}

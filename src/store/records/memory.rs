//! Records in this process's memory: gone when it ends, as its counters are.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Change, Expected, MAX_RECORDS, Page, RecordName, RecordStore, Subscriber, WriteError, readable};
use crate::store::StoreError;

pub struct MemoryRecords {
    texts: Mutex<BTreeMap<String, String>>,
    subscriber: Arc<dyn Subscriber>,
}

impl MemoryRecords {
    pub fn new(subscriber: Arc<dyn Subscriber>) -> MemoryRecords {
        MemoryRecords { texts: Mutex::default(), subscriber }
    }
}

impl RecordStore for MemoryRecords {
    fn are_known(&self) -> bool {
        true
    }

    async fn read(&self, name: &RecordName) -> Result<Option<String>, StoreError> {
        Ok(self.texts.lock().get(&name.text()).cloned())
    }

    async fn list(&self, prefix: &str, after: &str, count: usize) -> Result<Page, StoreError> {
        let texts = self.texts.lock();
        let from = if after < prefix { Bound::Included(prefix) } else { Bound::Excluded(after) };
        let named = texts.range::<str, _>((from, Bound::Unbounded)).take_while(|(name, _)| name.starts_with(prefix));
        Ok(Page::new(named.take(count).map(|(name, text)| (name.clone(), Some(text.clone()))).collect(), count))
    }

    async fn write(&self, changes: &[Change]) -> Result<(), WriteError> {
        // Held until the subscriber knows, so that changes reach it in their order.
        let mut texts = self.texts.lock();
        let expected = |change: &Change| match &change.expected {
            Expected::Anything => true,
            Expected::Exactly(text) => texts.get(&change.name.text()) == text.as_ref(),
        };
        if !changes.iter().all(expected) {
            return Err(WriteError::Conflict);
        }
        let is_new = |change: &&Change| change.next.is_some() && !texts.contains_key(&change.name.text());
        if texts.len() + changes.iter().filter(is_new).count() > MAX_RECORDS {
            return Err(WriteError::Full);
        }
        for change in changes {
            match &change.next {
                Some(text) => texts.insert(change.name.text(), text.clone()),
                None => texts.remove(&change.name.text()),
            };
        }
        self.subscriber.changed(changes.iter().map(|change| parsed(&change.name, change.next.as_deref())).collect());
        Ok(())
    }
}

/// A change as the subscriber takes it.
pub(in crate::store) fn parsed(name: &RecordName, text: Option<&str>) -> (RecordName, Option<super::Record>) {
    let text = text.map(|text| (Cow::Owned(name.text()), Cow::Borrowed(text)));
    (name.clone(), readable(text.into_iter()).pop().map(|(_, record)| record))
}

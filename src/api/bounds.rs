//! How much one message may hold. A reader counts descriptors and entries as they come and stops at the bound: two bytes
//! of a message can become a descriptor of two hundred.

use crate::limiter::MAX_DESCRIPTORS;

/// The bounds of one message, over gRPC and as JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageBounds {
    /// The longest message that is read, in bytes.
    pub bytes: usize,
    /// The most entries that all its descriptors have together.
    pub entries: usize,
}

impl Default for MessageBounds {
    /// Envoy's descriptors are a few hundred bytes.
    fn default() -> MessageBounds {
        MessageBounds { bytes: 1 << 20, entries: 4_096 }
    }
}

/// Why a message is not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TooMany {
    #[error("more than {MAX_DESCRIPTORS} descriptors in one request: send them in several requests")]
    Descriptors,
    #[error("more than {0} entries in one request: send them in several requests, or raise --max-message-entries")]
    Entries(usize),
}

/// Counts the descriptors and entries of one message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count {
    descriptors: usize,
    entries: usize,
    max_entries: usize,
}

impl Count {
    pub(super) fn new(max_entries: usize) -> Count {
        Count { descriptors: 0, entries: 0, max_entries }
    }

    /// # Errors
    /// When there are as many already as there may be.
    #[inline]
    pub(super) fn descriptor(&mut self) -> Result<(), TooMany> {
        self.descriptors += 1;
        if self.descriptors > MAX_DESCRIPTORS { Err(TooMany::Descriptors) } else { Ok(()) }
    }

    /// # Errors
    /// When there are as many already as there may be.
    #[inline]
    pub(super) fn entry(&mut self) -> Result<(), TooMany> {
        self.entries += 1;
        if self.entries > self.max_entries { Err(TooMany::Entries(self.max_entries)) } else { Ok(()) }
    }
}

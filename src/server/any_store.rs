//! The store that the settings ask for.

use std::sync::Arc;

use tokio::time::Instant;

use crate::store::memory::MemoryStore;
use crate::store::{Group, Outcomes, Store, StoreError};

/// One of the stores there are.
#[derive(Clone)]
pub enum AnyStore {
    Memory(Arc<MemoryStore>),
}

impl Store for AnyStore {
    async fn apply(&self, group: &Group, deadline: Instant) -> Result<Outcomes, StoreError> {
        match self {
            AnyStore::Memory(store) => store.apply(group, deadline).await,
        }
    }
}

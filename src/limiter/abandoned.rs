//! Calls whose caller goes away while the store is asked. The store may have counted such a call already, so the call is finished in a
//! task of its own: metrics and histories count it as the store did. A call that is dropped before the store is asked was counted
//! nowhere, and one that is dropped while its answer is held back was counted before.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::runtime::Handle;

/// How many abandoned calls a process finishes at once, each within the store timeout. A further one is dropped: what the store
/// counted for it is missing in metrics and histories.
pub const MAX_FINISHING: usize = 1_024;

static FINISHING: AtomicUsize = AtomicUsize::new(0);
static FINISHED: AtomicU64 = AtomicU64::new(0);
static DROPPED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Whether the poll under way ended in a wait for the store.
    static IS_ASKING: Cell<bool> = const { Cell::new(false) };
}

/// Abandoned calls of this process that were finished, and those that were dropped because too many were being finished.
pub fn counts() -> [u64; 2] {
    [&FINISHED, &DROPPED].map(|count| count.load(Ordering::Relaxed))
}

/// A call that is finished even if it is dropped while it waits for the store.
pub struct Call<T: 'static> {
    /// `None` once it has its answer.
    under_way: Option<UnderWay<T>>,
    is_asking: bool,
}

type UnderWay<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<T: 'static> Call<T> {
    pub fn new(call: impl Future<Output = T> + Send + 'static) -> Call<T> {
        Call { under_way: Some(Box::pin(call)), is_asking: false }
    }
}

impl<T: 'static> Future for Call<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let call = self.get_mut();
        let under_way = call.under_way.as_mut().expect("a call is not polled after its answer");
        IS_ASKING.set(false);
        let answer = under_way.as_mut().poll(context);
        call.is_asking = IS_ASKING.get();
        if answer.is_ready() {
            call.under_way = None;
        }
        answer
    }
}

impl<T: 'static> Drop for Call<T> {
    fn drop(&mut self) {
        if self.is_asking
            && let Some(call) = self.under_way.take()
        {
            finish(call);
        }
    }
}

/// Waits for the store, and lets the [`Call`] around it know.
pub(super) fn asking<F: Future>(mut store: Pin<&mut F>) -> impl Future<Output = F::Output> {
    poll_fn(move |context| {
        let answer = store.as_mut().poll(context);
        IS_ASKING.set(answer.is_pending());
        answer
    })
}

fn finish<T: 'static>(call: UnderWay<T>) {
    let place = Place::take();
    match (place, Handle::try_current()) {
        (Some(place), Ok(runtime)) => {
            runtime.spawn(async move {
                drop(call.await);
                FINISHED.fetch_add(1, Ordering::Relaxed);
                drop(place);
            });
        }
        _ => {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// One of the abandoned calls that are being finished.
struct Place;

impl Place {
    fn take() -> Option<Place> {
        let before = FINISHING.fetch_add(1, Ordering::Relaxed);
        // Dropped at once where there is no room.
        let place = Place;
        (before < MAX_FINISHING).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        FINISHING.fetch_sub(1, Ordering::Relaxed);
    }
}

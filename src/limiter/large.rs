//! Large requests are decided in parts, and others have their turn between two parts.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::yield_now;

use crate::rules::request::Request;

/// A request of more descriptors is large.
const LARGE: usize = 64;
/// Large requests that stand aside at once in this process: each holds about a MiB meanwhile. Further ones are decided in one go.
const MAX_ASIDE: usize = 8;

static ASIDE: AtomicUsize = AtomicUsize::new(0);

/// A large request that lets others go first.
struct Aside;

impl Aside {
    fn step() -> Option<Aside> {
        let before = ASIDE.fetch_add(1, Ordering::Relaxed);
        // Dropped at once where there are enough.
        let aside = Aside;
        (before < MAX_ASIDE).then_some(aside)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        ASIDE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Lets others have their turn between two parts of a large request.
pub(super) async fn give_way(request: &Request<'_>) {
    if request.descriptors.len() > LARGE
        && let Some(_aside) = Aside::step()
    {
        yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use smallvec::SmallVec;

    use super::*;
    use crate::rules::request::Descriptor;

    #[tokio::test]
    async fn few_large_requests_stand_aside_at_once() {
        let request = Request { descriptors: SmallVec::from_elem(Descriptor::default(), LARGE + 1), ..Request::default() };
        let mut waiting = Vec::new();
        for number in 0..MAX_ASIDE + 5 {
            let mut way = Box::pin(give_way(&request));
            let is_aside = poll_fn(|context| Poll::Ready(way.as_mut().poll(context).is_pending())).await;
            assert_eq!(is_aside, number < MAX_ASIDE, "{number}");
            waiting.extend(is_aside.then_some(way));
        }
        drop(waiting);
        assert_eq!(ASIDE.load(Ordering::Relaxed), 0);
    }
}

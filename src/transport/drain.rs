//! Telling every connection that the server goes, and knowing when the last one has gone.

use tokio::sync::{mpsc, watch};

/// The one who says it.
pub struct Drain {
    begun: watch::Sender<bool>,
    /// Closed when the last [`Draining`] is dropped.
    gone: mpsc::Receiver<()>,
    template: Draining,
}

/// Held by everything that must finish before the server may end.
#[derive(Clone)]
pub struct Draining {
    begun: watch::Receiver<bool>,
    _open: mpsc::Sender<()>,
}

impl Drain {
    pub fn new() -> Drain {
        let (begin, begun) = watch::channel(false);
        let (open, gone) = mpsc::channel(1);
        Drain { begun: begin, gone, template: Draining { begun, _open: open } }
    }

    pub fn draining(&self) -> Draining {
        self.template.clone()
    }

    /// Says it.
    pub fn begin(&self) {
        self.begun.send_replace(true);
    }

    /// Waits until everyone has finished.
    pub async fn finished(self) {
        let Drain { begun: _begun, mut gone, template } = self;
        drop(template);
        while gone.recv().await.is_some() {}
    }
}

impl Default for Drain {
    fn default() -> Drain {
        Drain::new()
    }
}

impl Draining {
    /// Returns when the server has begun to drain, or has vanished.
    pub async fn begun(&mut self) {
        let _ = self.begun.wait_for(|begun| *begun).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn draining_ends_when_the_last_has_finished() {
        let drain = Drain::new();
        let mut draining = drain.draining();
        let (finish, finished) = tokio::sync::oneshot::channel::<()>();
        let connection = tokio::spawn(async move {
            draining.begun().await;
            finished.await.unwrap();
        });
        drain.begin();
        let server = tokio::spawn(drain.finished());
        assert!(!server.is_finished());
        finish.send(()).unwrap();
        connection.await.unwrap();
        server.await.unwrap();
    }
}

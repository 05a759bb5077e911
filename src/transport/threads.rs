//! The threads that serve gRPC: one runtime of one thread per core. A runtime of several threads answers each call alone
//! where this one writes the answers of many calls at once. A connection stays on the thread it was handed to.

use std::convert::Infallible;
use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::service::Service;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::body::Body;

use super::calls::Counted;
use super::connection::{Terms, Versions, serve_connection};
use super::drain::Draining;
use super::room::Slot;

/// Connections on their way to a thread; more than the system's own backlog hands out at once.
const HANDED_OVER: usize = 4_096;

/// Serving threads, which connections are dealt out to in turn.
pub struct Threads {
    channels: Vec<mpsc::Sender<Handed>>,
    threads: Vec<JoinHandle<()>>,
    next: usize,
}

struct Handed {
    stream: std::net::TcpStream,
    slot: Slot,
}

/// What a thread needs to serve a connection.
#[derive(Clone)]
pub struct Serving<F> {
    /// Makes the service, on the thread that is to run it.
    pub service: F,
    pub max_age: Duration,
    pub draining: Draining,
}

impl Threads {
    /// # Errors
    /// When the system gives no thread or no runtime.
    pub fn start<F, S>(count: usize, serving: Serving<F>) -> io::Result<Threads>
    where
        F: Fn() -> S + Clone + Send + 'static,
        S: Service<http::Request<Counted>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send + 'static,
    {
        let mut threads = Threads { channels: Vec::new(), threads: Vec::new(), next: 0 };
        for number in 0..count {
            let (channel, handed) = mpsc::channel(HANDED_OVER);
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let serving = serving.clone();
            let thread = std::thread::Builder::new().name(format!("weir-{number}"));
            threads.threads.push(thread.spawn(move || run(&runtime, handed, serving))?);
            threads.channels.push(channel);
        }
        Ok(threads)
    }

    /// Hands a connection to the next thread. It is dropped, and so closed, when too many are on their way to that one.
    pub fn serve(&mut self, stream: TcpStream, slot: Slot) {
        self.next = (self.next + 1) % self.channels.len();
        let handed = stream.into_std().map(|stream| self.channels[self.next].try_send(Handed { stream, slot }).is_ok());
        if !matches!(handed, Ok(true)) {
            tracing::debug!(thread = self.next, "a connection could not be handed over");
        }
    }

    /// Closes the channels, and waits until every connection has ended.
    pub fn join(self) {
        drop(self.channels);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a serving thread had panicked");
            }
        }
    }
}

fn run<F, S>(runtime: &Runtime, mut handed: mpsc::Receiver<Handed>, serving: Serving<F>)
where
    F: Fn() -> S,
    S: Service<http::Request<Counted>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    runtime.block_on(async move {
        let service = (serving.service)();
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                next = handed.recv() => match next {
                    Some(Handed { stream, slot }) => {
                        let (service, draining) = (service.clone(), serving.draining.clone());
                        let terms = Terms { versions: Versions::Two, max_age: serving.max_age, draining };
                        connections.spawn(async move {
                            if let Ok(stream) = TcpStream::from_std(stream) {
                                serve_connection(stream, slot, service, terms).await;
                            }
                        });
                    }
                    None => break,
                },
                Some(_) = connections.join_next() => {}
            }
        }
        drop(serving.draining);
        while connections.join_next().await.is_some() {}
    });
}

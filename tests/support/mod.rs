//! What the tests that run real processes share: weir itself, Envoy in front of it, Redis behind it, and ways to wait for
//! what one of them will come to. Every process listens on ports of its own and is gone with its value.

#![allow(dead_code, unreachable_pub)] // Each test file uses a part of it.

pub mod envoy;
pub mod http;
pub mod liar;
pub mod redis;
pub mod weir;

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Longer than anything that is waited for takes on a busy machine; reaching it fails the test.
const PATIENCE: Duration = Duration::from_secs(40);
/// Between two looks at a condition.
const INTERVAL: Duration = Duration::from_millis(5);

/// Looks again and again until the condition holds.
///
/// # Panics
/// When it never does, naming `what`.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < PATIENCE, "never came: {what}");
        tokio::time::sleep(INTERVAL).await;
    }
}

/// A port that nobody listens on now. Below the ports that the kernel gives to outgoing connections, which the other
/// tests make by the thousand.
pub fn free_port() -> u16 {
    const FIRST: u32 = 15_000;
    const COUNT: u32 = 17_000;
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(7919);
    loop {
        let offset = start.wrapping_add(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + offset).expect("a port is below 65536");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// What a process says, collected as it says it, so that it never waits for a reader.
pub struct Output {
    text: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Output {
    /// Reads both streams of a process to their ends.
    pub fn of(process: &mut Child) -> Output {
        let text = Arc::default();
        let output = read(process.stdout.take().expect("its output is a pipe"), Arc::clone(&text));
        let messages = read(process.stderr.take().expect("its messages are a pipe"), Arc::clone(&text));
        Output { text, readers: vec![output, messages] }
    }

    /// What it has said so far.
    pub fn text(&self) -> String {
        self.text.lock().expect("no reader panics").clone()
    }

    /// Waits for the last word of a process that has ended.
    pub fn finish(&mut self) {
        for reader in self.readers.drain(..) {
            reader.join().expect("no reader panics");
        }
    }
}

fn read(stream: impl Read + Send + 'static, text: Arc<Mutex<String>>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            text.lock().expect("no reader panics").push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    })
}

/// Sends a signal, such as `TERM`.
pub fn signal(process: &Child, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &process.id().to_string()]).status();
    assert!(sent.expect("kill runs").success(), "no process {} to send {name} to", process.id());
}

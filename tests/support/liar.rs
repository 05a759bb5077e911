//! A Redis that lies: it stands in front of a real one, passes everything on while it is honest, and else takes connections
//! itself and answers as an attack says.

#![allow(dead_code, unreachable_pub)] // Each test file uses a part of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Bytes that one connection is sent at most: an end to what has none.
const MOST: usize = 256 << 20;

/// What it answers instead of the truth.
#[derive(Clone, Default)]
pub struct Attack {
    /// Before a connection is made, and not only to what is asked over it.
    pub at_once: bool,
    pub begins: Vec<u8>,
    /// What follows without end, if anything.
    pub goes_on: Vec<u8>,
    /// It closes the connection afterwards.
    pub closes: bool,
}

/// It lies until it is told to be honest.
pub struct Liar {
    address: SocketAddr,
    attack: watch::Sender<Option<Attack>>,
    lies: Arc<AtomicUsize>,
}

impl Liar {
    /// An honest one, in the current runtime, until it ends.
    pub async fn before(server: SocketAddr) -> Liar {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("the loopback interface has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (attack, seen) = watch::channel(None);
        let lies = Arc::<AtomicUsize>::default();
        let count = lies.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connection(client, server, seen.clone(), count.clone()));
            }
        });
        Liar { address, attack, lies }
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// From now on. Every connection ends.
    pub fn set(&self, attack: Option<Attack>) {
        self.lies.store(0, Ordering::Relaxed);
        self.attack.send_replace(attack);
    }

    /// How often it has lied since it was told how.
    pub fn lies(&self) -> usize {
        self.lies.load(Ordering::Relaxed)
    }
}

async fn connection(
    mut client: TcpStream,
    server: SocketAddr,
    mut attack: watch::Receiver<Option<Attack>>,
    lies: Arc<AtomicUsize>,
) {
    let now = attack.borrow_and_update().clone();
    let serve = async {
        match now {
            None => {
                if let Ok(mut server) = TcpStream::connect(server).await {
                    drop(copy_bidirectional(&mut client, &mut server).await);
                }
            }
            Some(attack) => {
                let (reader, mut writer) = client.into_split();
                drop(lie(BufReader::new(reader), &mut writer, &attack, &lies).await);
            }
        }
    };
    tokio::select! { () = serve => {}, _ = attack.changed() => {} }
}

async fn lie(
    mut reader: BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
    attack: &Attack,
    lies: &AtomicUsize,
) -> std::io::Result<()> {
    loop {
        let name = command(&mut reader).await?;
        let setup: Option<&[u8]> = match &*name {
            "HELLO" => Some(b"%2\r\n+server\r\n+redis\r\n+proto\r\n:3\r\n"),
            "CLIENT" | "AUTH" | "SELECT" => Some(b"+OK\r\n"),
            "SCRIPT" => Some(b"$3\r\nabc\r\n"),
            "INFO" => Some(b"$0\r\n\r\n"),
            _ => None,
        };
        if let Some(reply) = setup.filter(|_| !attack.at_once) {
            writer.write_all(reply).await?;
            continue;
        }
        lies.fetch_add(1, Ordering::Relaxed);
        writer.write_all(&attack.begins).await?;
        let mut sent = 0;
        let piece = attack.goes_on.repeat((64 << 10) / attack.goes_on.len().max(1));
        while !piece.is_empty() && sent < MOST {
            writer.write_all(&piece).await?;
            sent += piece.len();
        }
        if attack.closes {
            return Ok(());
        }
    }
}

/// The name of the next command; the rest of it is read and left.
async fn command(reader: &mut BufReader<OwnedReadHalf>) -> std::io::Result<String> {
    let count = length(reader).await?;
    let mut name = String::new();
    for place in 0..count {
        let mut word = vec![0; length(reader).await? + 2];
        reader.read_exact(&mut word).await?;
        if place == 0 {
            name = String::from_utf8_lossy(&word[..word.len() - 2]).to_uppercase();
        }
    }
    Ok(name)
}

async fn length(reader: &mut BufReader<OwnedReadHalf>) -> std::io::Result<usize> {
    let mut line = String::new();
    if reader.read_line(&mut line).await? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    line.trim()[1..].parse().map_err(|_| std::io::ErrorKind::InvalidData.into())
}

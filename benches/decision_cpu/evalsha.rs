//! What one EVALSHA takes from the server's core, with nothing around it: a blocking socket, one call after the other.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Counts a window up, as a fixed window does.
const SCRIPT: &str = "local count = redis.call('INCRBY', KEYS[1], ARGV[1]) \
    if count == tonumber(ARGV[1]) then redis.call('PEXPIRE', KEYS[1], 60000) end return count";

/// Prints the median, in µs.
pub(crate) fn time(address: &str, duration: Duration) -> Result<()> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut connection = Connection { reader: BufReader::new(stream.try_clone()?), writer: stream };
    let sha = connection.ask(&["SCRIPT", "LOAD", SCRIPT])?;
    let mut micros = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < duration {
        let asked = Instant::now();
        connection.ask(&["EVALSHA", &sha, "1", "{bare}", "1"])?;
        micros.push(asked.elapsed().as_secs_f64() * 1e6);
    }
    micros.sort_by(f64::total_cmp);
    println!("{}", micros[micros.len() / 2]);
    Ok(())
}

struct Connection {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Connection {
    /// One command, and its reply as text.
    fn ask(&mut self, command: &[&str]) -> Result<String> {
        let mut text = format!("*{}\r\n", command.len());
        for part in command {
            text.push_str(&format!("${}\r\n{part}\r\n", part.len()));
        }
        self.writer.write_all(text.as_bytes())?;
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let (kind, rest) = line.trim_end().split_at_checked(1).context("Redis closed the connection")?;
        match kind {
            "$" => {
                let mut bulk = vec![0; rest.parse::<usize>()? + 2];
                self.reader.read_exact(&mut bulk)?;
                bulk.truncate(bulk.len() - 2);
                Ok(String::from_utf8(bulk)?)
            }
            "-" => bail!("Redis: {rest}"),
            _ => Ok(rest.to_owned()),
        }
    }
}

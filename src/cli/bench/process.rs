//! CPU time of processes on this machine, read from /proc, and of a Redis anywhere, asked by INFO.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// How long a Redis may take to answer INFO.
const REDIS_TIMEOUT: Duration = Duration::from_secs(5);
/// Clock ticks of `/proc/<pid>/stat` in a second: Linux shows 100 to user space on every architecture in use.
const TICKS_PER_SECOND: u64 = 100;
/// `LISTEN` in /proc/net/tcp.
const LISTENING: &str = "0A";

/// Something whose CPU time can be read.
#[derive(Clone, Debug)]
pub enum Source {
    Process(u32),
    Redis(String),
}

/// CPU time so far, by thread where threads are known.
#[derive(Clone, Debug, Default)]
pub struct CpuTime {
    /// By thread id: name and time.
    threads: BTreeMap<u32, (String, Duration)>,
}

/// What a thread used between two readings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadTime {
    pub name: String,
    pub time: Duration,
}

impl CpuTime {
    /// Each thread's time since an earlier reading; threads that used none are left out.
    pub fn since(&self, earlier: &CpuTime) -> Vec<ThreadTime> {
        let used = self.threads.iter().map(|(id, (name, time))| {
            let before = earlier.threads.get(id).map_or(Duration::ZERO, |(_, time)| *time);
            ThreadTime { name: name.clone(), time: time.saturating_sub(before) }
        });
        used.filter(|thread| !thread.time.is_zero()).collect()
    }
}

impl Source {
    pub fn read(&self) -> Result<CpuTime> {
        match self {
            Source::Process(pid) => process_time(*pid).with_context(|| format!("reading the CPU time of process {pid}")),
            Source::Redis(address) => redis_time(address).with_context(|| format!("asking Redis at {address} for INFO cpu")),
        }
    }

    pub fn pid(&self) -> Option<u32> {
        match self {
            Source::Process(pid) => Some(*pid),
            Source::Redis(_) => None,
        }
    }
}

/// The server's process: the one named, else the one that listens on the target's port here.
pub fn server(pid: Option<u32>, target: SocketAddr) -> Option<Source> {
    let pid = pid.or_else(|| if target.ip().is_loopback() { listening_on(target.port()) } else { None });
    pid.map(Source::Process)
}

pub fn redis(address: Option<&str>, pid: Option<u32>) -> Result<Option<Source>> {
    let source = match (pid, address) {
        (Some(pid), _) => Source::Process(pid),
        (None, Some(address)) => Source::Redis(address.to_owned()),
        (None, None) => return Ok(None),
    };
    source.read()?;
    Ok(Some(source))
}

/// This process.
pub fn own() -> Source {
    Source::Process(std::process::id())
}

/// The process that listens on a TCP port of this machine, as far as this user may see it.
fn listening_on(port: u16) -> Option<u32> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let inodes: HashSet<&str> = tables.iter().flat_map(|table| table.lines()).filter_map(|line| listener(line, port)).collect();
    let sockets: HashSet<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    if sockets.is_empty() {
        return None;
    }
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|link| sockets.contains(&*link.to_string_lossy()))
    })
}

/// The inode of a line of /proc/net/tcp, if it is a listener on the port.
fn listener(line: &str, port: u16) -> Option<&str> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, local, _, state, _, _, _, _, _, inode, ..] = fields[..] else { return None };
    let (_, local_port) = local.rsplit_once(':')?;
    (state == LISTENING && u16::from_str_radix(local_port, 16) == Ok(port)).then_some(inode)
}

fn process_time(pid: u32) -> Result<CpuTime> {
    let mut threads = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let path = entry.path();
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A thread may end between the listing and the reading.
        let Ok(stat) = fs::read_to_string(path.join("stat")) else { continue };
        let schedstat = fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        let time = run_time(&schedstat).or_else(|| stat_time(&stat)).context("an unknown format of /proc")?;
        threads.insert(id, (name.trim_end().to_owned(), time));
    }
    Ok(CpuTime { threads })
}

/// Time on a CPU in ns, user and system; not every kernel counts it.
fn run_time(schedstat: &str) -> Option<Duration> {
    let nanos: u64 = schedstat.split_ascii_whitespace().next()?.parse().ok()?;
    (nanos > 0).then(|| Duration::from_nanos(nanos))
}

/// User and system time in ticks: fields 14 and 15, counted behind the name, which may hold anything.
fn stat_time(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_ascii_whitespace().skip(11).map(str::parse::<u64>);
    let (user, system) = (times.next()?.ok()?, times.next()?.ok()?);
    Some(Duration::from_millis((user + system) * 1000 / TICKS_PER_SECOND))
}

fn redis_time(address: &str) -> Result<CpuTime> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(REDIS_TIMEOUT))?;
    stream.write_all(b"INFO cpu\r\nQUIT\r\n")?;
    let (mut time, mut known) = (Duration::ZERO, 0);
    for line in BufReader::new(stream).lines() {
        let line = line?;
        if let Some(error) = line.strip_prefix('-') {
            bail!("{error}");
        }
        if let Some(("used_cpu_user" | "used_cpu_sys", seconds)) = line.split_once(':') {
            time += Duration::try_from_secs_f64(seconds.trim().parse()?)?;
            known += 1;
        }
    }
    if known != 2 {
        bail!("no used_cpu_user and used_cpu_sys in its answer");
    }
    Ok(CpuTime { threads: BTreeMap::from([(0, ("redis".to_owned(), time))]) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn finds_who_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        assert_eq!(listening_on(port), Some(std::process::id()));
        drop(listener);
        assert_eq!(listening_on(port), None);
    }

    #[test]
    fn time_grows_with_work_and_names_the_thread() {
        let before = own().read().expect("a reading");
        let worker = std::thread::Builder::new().name("worker".into()).spawn(|| {
            let begun = own().read().expect("a reading");
            let mut sum = 0_u64;
            loop {
                sum = std::hint::black_box(sum.wrapping_mul(31) + 1);
                if sum.is_multiple_of(64) {
                    let used = own().read().expect("a reading").since(&begun);
                    if used.iter().any(|thread| thread.name == "worker" && thread.time > Duration::from_millis(20)) {
                        return own().read().expect("a reading");
                    }
                }
            }
        });
        let after = worker.expect("a thread").join().expect("it ends");
        assert!(after.since(&before).iter().any(|thread| thread.name == "worker"));
        assert!(before.since(&before).is_empty());
    }

    #[test]
    fn names_with_spaces_and_parentheses_do_not_shift_the_fields() {
        let stat = "14 (a) b (c)) R 1 2 3 4 5 6 7 8 9 10 150 25 0 0 20 0 1 0 9 9";
        assert_eq!(stat_time(stat), Some(Duration::from_millis(1750)));
        assert_eq!(run_time("889300509 988694 24\n"), Some(Duration::from_nanos(889_300_509)));
        assert_eq!(run_time("0 0 0\n"), None);
    }

    #[test]
    fn only_listeners_count() {
        let line =
            |state: &str| format!("0: 0100007F:1F91 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 4711 1");
        assert_eq!(listener(&line("0A"), 8081), Some("4711"));
        assert_eq!(listener(&line("01"), 8081), None);
        assert_eq!(listener(&line("0A"), 8080), None);
    }
}

//! The processes that are measured: started on given cores and free ports, ended with the value that stands for them.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use weir::cli::bench::Report;

pub(crate) const SERVER_CORE: &str = "0";
pub(crate) const LOADER_CORE: &str = "1";
pub(crate) const BOTH_CORES: &str = "0,1";

/// How long a process may take to answer for the first time.
const START: Duration = Duration::from_secs(10);
const WEIR: &str = env!("CARGO_BIN_EXE_weir");

const RULES: &str = "\
domain: bench
descriptors:
  - key: user_id
    name: per-user
    rate_limit: {unit: minute, requests_per_unit: 1000000}
  - key: path
    value: /api/orders
    name: orders
    rate_limit: {unit: minute, requests_per_unit: 4000000000}
  - key: bucket_id
    name: bucket
    rate_limit: {unit: minute, requests_per_unit: 1000000, algorithm: token_bucket}
  - key: account
    name: plan
    rate_limit: {tier: {entry: tier}}
tiers:
  one: {limits: [1000000/minute]}
  three: {limits: [1000000/minute, 10000000/hour, 100000000/day]}
default_tier: one
";
/// Subjects that something is said of, none of whom asks.
const RECORDS: usize = 100_000;

/// Ends with this value.
pub(crate) struct Process {
    child: Child,
    pub(crate) address: String,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn await_connection(mut self, name: &str) -> Result<Process> {
        let begun = Instant::now();
        while TcpStream::connect(&self.address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{name} ended: {status}");
            }
            ensure!(begun.elapsed() < START, "{name} does not listen on {}", self.address);
            std::thread::yield_now();
        }
        Ok(self)
    }
}

/// A command on given cores; `taskset` becomes the command, so that its process id is the command's.
fn on_cores(cores: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", cores]).arg(program).stdin(Stdio::null());
    command
}

fn this_program() -> Result<std::path::PathBuf> {
    Ok(std::env::current_exe()?)
}

fn free_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

pub(crate) fn empty(cores: &str, threads: usize) -> Result<Process> {
    let mut command = on_cores(cores, &this_program()?);
    command.args(["--empty-handler", &threads.to_string()]).stdout(Stdio::piped());
    let mut child = command.spawn().context("starting taskset")?;
    let output = child.stdout.take().context("its output is piped")?;
    let mut address = String::new();
    BufReader::new(output).read_line(&mut address)?;
    Ok(Process { child, address: address.trim().to_owned() })
}

pub(crate) fn redis(cores: &str) -> Result<Process> {
    let address = free_address()?;
    let (_, port) = address.rsplit_once(':').context("an address has a port")?;
    let mut command = on_cores(cores, Path::new("redis-server"));
    command.args(["--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]).stdout(Stdio::null());
    Process { child: command.spawn().context("starting redis-server")?, address }.await_connection("redis-server")
}

/// weir, ready to decide; in memory unless it is given a Redis.
pub(crate) fn weir(cores: &str, threads: usize, redis: Option<&Process>) -> Result<Process> {
    serve(cores, threads, redis, &[("WEIR_ADMIN_LISTEN", "127.0.0.1:0")])
}

fn serve(cores: &str, threads: usize, redis: Option<&Process>, settings: &[(&str, &str)]) -> Result<Process> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("decision_cpu");
    std::fs::create_dir_all(&directory)?;
    std::fs::write(directory.join("rules.yaml"), RULES)?;
    let store = redis.map_or("memory".to_owned(), |redis| format!("redis://{}", redis.address));
    let address = free_address()?;
    let mut command = on_cores(cores, Path::new(WEIR));
    command.arg("serve").arg("--rules").arg(directory).args(["--store", &store, "--grpc-listen", &address]);
    command.args(["--http-listen", "127.0.0.1:0", "--threads", &threads.to_string()]);
    // Under load in a full queue, a decision may take longer than it should in production.
    command.args(["--store-timeout", "1s", "--log-level", "error"]).stdout(Stdio::null());
    command.envs(settings.iter().copied());
    let process = Process { child: command.spawn()?, address }.await_connection("weir")?;
    let begun = Instant::now();
    loop {
        let report = load(&process, &Load { seconds: 0.02, ..Load::default() })?;
        if report.overall_code.contains_key("OK") && report.errors.is_empty() {
            return Ok(process);
        }
        ensure!(begun.elapsed() < START, "weir does not decide: {:?}", report.errors);
    }
}

/// weir in memory, where something is said of many others than those who ask.
pub(crate) fn weir_with_records(cores: &str) -> Result<Process> {
    let admin = free_address()?;
    let process = serve(cores, 1, None, &[("WEIR_ADMIN_LISTEN", &admin), ("WEIR_ADMIN_LOCAL_CHANGES", "true")])?;
    let subjects: Vec<_> = (0..RECORDS)
        .map(|number| serde_json::json!({"domain": "bench", "subject": format!("user_id=other{number}"), "multiplier": 2.0}))
        .collect();
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("records.json");
    std::fs::write(&file, serde_json::json!({"subjects": subjects}).to_string())?;
    let mut import = on_cores(cores, Path::new(WEIR));
    import.arg("import").arg(&file).args(["--admin", &format!("http://{admin}")]).stdout(Stdio::null());
    ensure!(import.status()?.success(), "the records cannot be imported");
    Ok(process)
}

/// What to load a server with.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) descriptors: &'static [&'static str],
    /// Different values of `{}` in descriptors.
    pub(crate) keys: u32,
    pub(crate) connections: usize,
    pub(crate) in_flight: usize,
    pub(crate) threads: usize,
    pub(crate) seconds: f64,
    pub(crate) redis: Option<u32>,
    pub(crate) cores: &'static str,
}

impl Default for Load {
    fn default() -> Load {
        Load {
            descriptors: &["user_id=u{}"],
            keys: 1,
            connections: 4,
            in_flight: 32,
            threads: 1,
            seconds: 1.0,
            redis: None,
            cores: LOADER_CORE,
        }
    }
}

/// Runs `weir bench`.
pub(crate) fn load(server: &Process, load: &Load) -> Result<Report> {
    let mut command = on_cores(load.cores, Path::new(WEIR));
    command.args(["bench", "--json", "--domain", "bench", "--target", &server.address]);
    command.args(["--keys", &load.keys.to_string(), "--threads", &load.threads.to_string()]);
    command.args(["--pid", &server.pid().to_string()]);
    for descriptor in load.descriptors {
        command.args(["--descriptor", descriptor]);
    }
    command.args(["--connections", &load.connections.to_string(), "--in-flight", &load.in_flight.to_string()]);
    command.args(["--duration", &format!("{:.3}s", load.seconds), "--warmup", &format!("{:.3}s", load.seconds / 5.0)]);
    if let Some(pid) = load.redis {
        command.args(["--redis-pid", &pid.to_string()]);
    }
    let output = command.stderr(Stdio::inherit()).output().context("starting taskset")?;
    ensure!(output.status.success(), "the loader failed: {}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The median round trip of the script alone, in µs: asked from the server's core.
pub(crate) fn evalsha(redis: &Process, seconds: f64) -> Result<f64> {
    let mut command = on_cores(SERVER_CORE, &this_program()?);
    command.args(["--evalsha", &redis.address, "--seconds", &seconds.to_string()]);
    let output = command.stderr(Stdio::inherit()).output().context("starting taskset")?;
    ensure!(output.status.success(), "timing the script failed: {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

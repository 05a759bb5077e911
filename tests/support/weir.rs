//! The real binary, serving rules that a test gives it. It has answered its own health check when [`Settings::start`]
//! returns, and is gone with the value.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use tempfile::TempDir;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use weir::api::proto::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use weir::api::proto::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use weir::api::proto::envoy::service::ratelimit::v3::rate_limit_service_client::RateLimitServiceClient;
use weir::api::proto::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};

use super::{Output, eventually, free_port, http, signal};

/// The service that health is asked of.
pub const SERVICE: &str = "envoy.service.ratelimit.v3.RateLimitService";
/// Starts given to another process between finding free ports and listening on them.
const PORT_ATTEMPTS: usize = 10;

/// A running weir.
pub struct Weir {
    process: Child,
    output: Output,
    rules: TempDir,
    pub grpc: u16,
    pub http: u16,
    pub admin: u16,
}

/// How to start it.
pub struct Settings {
    rules: Vec<(String, String)>,
    links: Vec<(String, PathBuf)>,
    flags: Vec<String>,
    environment: Vec<(String, String)>,
    open_files: Option<u32>,
}

impl Settings {
    /// Serves these rules, in one file, from memory.
    pub fn with_rules(rules: &str) -> Settings {
        Settings::without_rules().file("rules.yaml", rules)
    }

    /// Serves an empty directory.
    pub fn without_rules() -> Settings {
        Settings { rules: Vec::new(), links: Vec::new(), flags: Vec::new(), environment: Vec::new(), open_files: None }
    }

    /// One more file in the rules directory.
    pub fn file(mut self, name: &str, text: &str) -> Settings {
        self.rules.push((name.to_owned(), text.to_owned()));
        self
    }

    /// A symbolic link in the rules directory.
    pub fn link(mut self, name: &str, target: impl Into<PathBuf>) -> Settings {
        self.links.push((name.to_owned(), target.into()));
        self
    }

    /// A flag of `weir serve` with its value.
    pub fn flag(mut self, name: &str, value: &str) -> Settings {
        self.flags.extend([name.to_owned(), value.to_owned()]);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Settings {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs it with room for so many open files, and no way to have more.
    pub fn open_files(mut self, most: u32) -> Settings {
        self.open_files = Some(most);
        self
    }

    /// Counts in this Redis, with time enough for a busy machine.
    pub fn redis(self, url: &str) -> Settings {
        self.flag("--store", url).flag("--store-timeout", "20s")
    }

    /// Starts it and waits until it serves.
    pub async fn start(self) -> Weir {
        let mut weir = self.launch().await;
        eventually("a weir that serves", async || {
            weir.assert_running();
            weir.is_healthy().await
        })
        .await;
        weir
    }

    /// Starts it on these ports (gRPC, HTTP, admin), where it cannot run, and waits for its end; what it said.
    pub async fn fail(self, ports: [u16; 3]) -> String {
        let mut weir = self.spawn(self.rules_directory(), ports);
        let mut ended = None;
        eventually("the end of a weir that cannot run", async || {
            ended = weir.ended();
            ended.is_some()
        })
        .await;
        assert!(ended.is_some_and(|status| !status.success()), "{}", weir.log());
        weir.log()
    }

    /// Starts it and waits until it listens, be it ready or not.
    pub async fn launch(self) -> Weir {
        let mut process = self.spawn(self.rules_directory(), [free_port(), free_port(), free_port()]);
        for _ in 0..PORT_ATTEMPTS {
            let mut gone = None;
            eventually("a weir that listens", async || {
                gone = process.ended();
                gone.is_some() || http::get(process.http, "/healthcheck").await.is_some()
            })
            .await;
            match gone {
                None => return process,
                Some(_) if process.log().contains("in use") => {
                    process = self.spawn(self.rules_directory(), [free_port(), free_port(), free_port()]);
                }
                Some(status) => panic!("weir does not start ({status}): {}", process.log()),
            }
        }
        panic!("no ports to start weir on: {}", process.log());
    }

    fn rules_directory(&self) -> TempDir {
        let directory = tempfile::Builder::new().prefix("rules").tempdir().expect("a temporary directory can be made");
        for (name, text) in &self.rules {
            fs::write(directory.path().join(name), text).expect("the directory is writable");
        }
        for (name, target) in &self.links {
            std::os::unix::fs::symlink(target, directory.path().join(name)).expect("the directory is writable");
        }
        directory
    }

    fn spawn(&self, rules: TempDir, [grpc, http, admin]: [u16; 3]) -> Weir {
        let mut command = match self.open_files {
            None => Command::new(binary()),
            Some(most) => {
                let mut command = Command::new("sh");
                let limited = format!("ulimit -n {most} && exec \"$0\" \"$@\"");
                command.args(["-c", &limited, &binary()]);
                command
            }
        };
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.arg("serve").arg("--rules").arg(rules.path());
        for (flag, port) in [("--grpc-listen", grpc), ("--http-listen", http), ("--admin-listen", admin)] {
            command.arg(flag).arg(format!("127.0.0.1:{port}"));
        }
        command.args(&self.flags).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("weir runs");
        let output = Output::of(&mut process);
        Weir { process, output, rules, grpc, http, admin }
    }
}

impl Weir {
    /// A client on a connection of its own.
    pub async fn client(&self) -> RateLimitServiceClient<Channel> {
        RateLimitServiceClient::new(self.channel().await).max_decoding_message_size(usize::MAX)
    }

    pub async fn channel(&self) -> Channel {
        let address = format!("http://127.0.0.1:{}", self.grpc);
        let endpoint = Channel::from_shared(address).expect("the address is well-formed");
        endpoint.connect().await.unwrap_or_else(|error| panic!("no connection: {error}; {}", self.log()))
    }

    /// Whether `GET /healthcheck` is 200.
    pub async fn is_healthy(&self) -> bool {
        http::get(self.http, "/healthcheck").await.is_some_and(|answer| answer.status == 200)
    }

    /// What gRPC's health service says about the rate-limit service; `None` when it says nothing.
    pub async fn health(&self) -> Option<tonic_health::pb::health_check_response::ServingStatus> {
        let endpoint = Channel::from_shared(format!("http://127.0.0.1:{}", self.grpc)).expect("the address is well-formed");
        let mut client = HealthClient::new(endpoint.connect().await.ok()?);
        let request = HealthCheckRequest { service: SERVICE.to_owned() };
        Some(client.check(request).await.ok()?.into_inner().status())
    }

    /// Where its rules are.
    pub fn rules(&self) -> &Path {
        self.rules.path()
    }

    /// The file that [`Settings::with_rules`] wrote.
    pub fn rules_file(&self) -> PathBuf {
        self.rules.path().join("rules.yaml")
    }

    /// Everything it has said so far.
    pub fn log(&self) -> String {
        self.output.text()
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        signal(&self.process, name);
    }

    /// Kills it; its ports are free afterwards.
    pub fn kill(&mut self) {
        self.process.kill().expect("an own process can be killed");
        self.process.wait().expect("a process that was started can be waited for");
    }

    /// How it ended, with all that it said in the log; `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.process.try_wait().expect("a child can be asked")?;
        self.output.finish();
        Some(status)
    }

    fn assert_running(&mut self) {
        if let Some(status) = self.ended() {
            panic!("weir ended ({status}): {}", self.log());
        }
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Memory that it occupies now, in bytes.
    pub fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most memory that it has occupied at any time, in bytes.
    pub fn peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux says it");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB") * 1024
    }
}

impl Drop for Weir {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.kill();
        }
    }
}

/// The weir that was built with the tests, or another one: `scripts/attacks` measures a release build.
fn binary() -> String {
    std::env::var("WEIR_TEST_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_weir").to_owned())
}

/// A descriptor of these entries.
pub fn descriptor(entries: &[(&str, &str)]) -> RateLimitDescriptor {
    let entry = |&(key, value): &(&str, &str)| Entry { key: key.into(), value: value.into() };
    RateLimitDescriptor { entries: entries.iter().map(entry).collect(), ..RateLimitDescriptor::default() }
}

/// A request of these descriptors.
pub fn request(domain: &str, descriptors: &[&[(&str, &str)]]) -> RateLimitRequest {
    let descriptors = descriptors.iter().map(|entries| descriptor(entries)).collect();
    RateLimitRequest { domain: domain.into(), descriptors, hits_addend: 0 }
}

/// Asks once.
///
/// # Panics
/// When there is no answer.
pub async fn ask(client: &mut RateLimitServiceClient<Channel>, request: RateLimitRequest) -> RateLimitResponse {
    client.should_rate_limit(request).await.expect("an answer").into_inner()
}

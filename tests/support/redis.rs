//! A real redis-server for one test: on a free port of the loopback interface or a unix socket, with or without TLS, in a
//! directory of its own, gone with the value. Ready means that it accepts connections. It keeps nothing over a restart.
//!
//! Use it by `mod support { pub mod redis; }` at the top of a test file.

#![allow(dead_code, unreachable_pub)] // Each test file uses a part of it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{AsyncConnectionConfig, Client, FromRedisValue, TlsCertificates, Value, cmd};
use tempfile::TempDir;
use weir::store::Clock;
use weir::store::redis::{Connector, RedisSettings, RedisStore};

/// Starts given to another process between finding a free port and listening on it.
const PORT_ATTEMPTS: usize = 20;

/// A running redis-server.
pub struct RedisServer {
    process: Option<Child>,
    directory: TempDir,
    listen: Listen,
    config: Vec<String>,
}

/// Where a server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listen {
    Tcp(u16),
    Tls(u16),
    Socket,
}

impl RedisServer {
    /// On a free port.
    pub fn start() -> RedisServer {
        RedisServer::start_with(&[])
    }

    /// On a free port, with more settings, such as `&["--maxmemory", "2mb"]`.
    pub fn start_with(config: &[&str]) -> RedisServer {
        RedisServer::on(Listen::Tcp, config)
    }

    /// On a free port that speaks only TLS, by a certificate of a private authority ([`RedisServer::ca_file`]).
    pub fn start_tls(config: &[&str]) -> RedisServer {
        RedisServer::on(Listen::Tls, config)
    }

    /// On a unix socket alone.
    pub fn start_on_socket(config: &[&str]) -> RedisServer {
        RedisServer::on(|_| Listen::Socket, config)
    }

    fn on(listen: impl Fn(u16) -> Listen, config: &[&str]) -> RedisServer {
        let directory = tempfile::Builder::new().prefix("redis").tempdir().expect("a temporary directory can be made");
        write_certificates(&directory);
        let config = config.iter().map(|&text| text.to_owned()).collect();
        let mut server = RedisServer { process: None, directory, listen: listen(free_port()), config };
        for _ in 0..PORT_ATTEMPTS {
            if server.launch() {
                return server;
            }
            server.listen = listen(free_port());
        }
        panic!("redis-server does not start; is it installed, and are its settings right? {:?}", server.config);
    }

    /// Starts the process and reads what it says until it is ready; false when it gave up.
    fn launch(&mut self) -> bool {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no", "--loglevel", "notice"]);
        command.arg("--dir").arg(self.directory.path());
        match self.listen {
            Listen::Tcp(port) => command.args(["--port", &port.to_string()]),
            Listen::Tls(port) => command.args(["--port", "0", "--tls-port", &port.to_string(), "--tls-auth-clients", "no"]),
            Listen::Socket => command.args(["--port", "0"]).arg("--unixsocket").arg(self.path("redis.sock")),
        };
        if matches!(self.listen, Listen::Tls(_)) {
            for (setting, file) in [("cert", "server.pem"), ("key", "server.key"), ("ca-cert", "ca.pem")] {
                command.arg(format!("--tls-{setting}-file")).arg(self.path(file));
            }
        }
        let mut process =
            command.args(&self.config).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("redis-server runs");
        let mut output = BufReader::new(process.stdout.take().expect("its output is a pipe"));
        let mut line = String::new();
        while output.read_line(&mut line).is_ok_and(|length| length > 0) {
            if line.contains("eady to accept connections") {
                // It must never wait for someone to read what it says.
                thread::spawn(move || output.read_to_end(&mut Vec::new()));
                self.process = Some(process);
                return true;
            }
            line.clear();
        }
        process.wait().expect("a process that was started can be waited for");
        false
    }

    /// What `--store` takes. For TLS, the certificate is for `localhost`.
    pub fn url(&self) -> String {
        match self.listen {
            Listen::Tcp(port) => format!("redis://127.0.0.1:{port}"),
            Listen::Tls(port) => format!("rediss://localhost:{port}"),
            Listen::Socket => format!("redis+unix://{}", self.path("redis.sock").display()),
        }
    }

    /// The authority that a TLS server's certificate is signed by, in PEM.
    pub fn ca_file(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// What a store of this server is made with: all the patience that a busy machine needs.
    pub fn settings(&self) -> RedisSettings {
        RedisSettings {
            url: self.url(),
            ca_file: matches!(self.listen, Listen::Tls(_)).then(|| self.ca_file()),
            key_prefix: String::new(),
            connect_timeout: Duration::from_secs(30),
            store_timeout: Duration::from_secs(30),
        }
    }

    /// A connected store.
    pub async fn store(&self, clock: Clock) -> RedisStore {
        let store = RedisStore::new(&Connector::new(self.settings()).expect("the settings are good"), clock);
        store.ready().await;
        store
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The process id, for reading what the server itself uses.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the server runs").id()
    }

    /// Stops answering (SIGSTOP) without closing anything; returns once it is stopped.
    pub fn pause(&self) {
        self.signal("STOP");
        while !self.is_stopped() {
            thread::yield_now();
        }
    }

    /// Goes on after [`RedisServer::pause`].
    pub fn resume(&self) {
        self.signal("CONT");
        while self.is_stopped() {
            thread::yield_now();
        }
    }

    /// Kills the process (SIGKILL); its port is free afterwards. Nothing happens when it is dead already.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("an own process can be killed");
            process.wait().expect("a process that was started can be waited for");
        }
    }

    /// Starts it again where it was, empty. Kills it first if it runs.
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.launch(), "redis-server does not start again at {}", self.url());
    }

    /// Starts it again where it was, empty, with other settings.
    pub fn restart_with(&mut self, config: &[&str]) {
        self.config = config.iter().map(|&text| text.to_owned()).collect();
        self.restart();
    }

    fn signal(&self, name: &str) {
        let killed = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(killed.expect("kill runs").success());
    }

    fn is_stopped(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("the server's process exists");
        // `pid (name) state …`
        status.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    }

    /// A connection of one's own, to look and to meddle.
    pub async fn connection(&self) -> MultiplexedConnection {
        let client = match self.listen {
            Listen::Tls(_) => {
                let root_cert = Some(fs::read(self.ca_file()).expect("the authority was written"));
                Client::build_with_tls(self.url(), TlsCertificates { client_tls: None, root_cert })
            }
            _ => Client::open(self.url()),
        };
        client
            .expect("the address is well-formed")
            .get_multiplexed_async_connection_with_config(&AsyncConnectionConfig::new().set_response_timeout(None))
            .await
            .expect("the server accepts connections")
    }

    /// Runs one command over a new connection, such as `server.command::<String>(&["GET", "key"])`.
    ///
    /// Errors of Redis panic.
    pub async fn command<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = cmd(words[0]);
        command.arg(&words[1..]);
        let answer: Value =
            command.query_async(&mut self.connection().await).await.unwrap_or_else(|error| panic!("{words:?}: {error}"));
        T::from_redis_value(answer).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that nobody listens on now.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback interface has a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// A private authority, and a certificate of it for `localhost` and 127.0.0.1.
fn write_certificates(directory: &TempDir) {
    let write = |name: &str, text: String| fs::write(directory.path().join(name), text).expect("the directory is writable");
    let ca_key = rcgen::KeyPair::generate().expect("a key can be made");
    let mut ca = rcgen::CertificateParams::new(Vec::new()).expect("no names are good names");
    ca.distinguished_name.push(rcgen::DnType::CommonName, "A private authority");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    write("ca.pem", ca.self_signed(&ca_key).expect("an authority signs itself").pem());
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().expect("a key can be made");
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let server = rcgen::CertificateParams::new(names).expect("the names are well-formed");
    write("server.pem", server.signed_by(&key, &issuer).expect("the authority signs").pem());
    write("server.key", key.serialize_pem());
}

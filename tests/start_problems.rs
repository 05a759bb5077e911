//! Settings that keep a server from starting, as the real binary is given them and tells of them.

#![allow(clippy::unwrap_used)]

mod support;

use std::ffi::OsStr;
use std::io;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command, Stdio};

use support::eventually;

/// Killed, should it start after all.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a server complains of that cannot start with these flags and variables.
async fn complaint(flags: &[&str], variables: &[(&str, &[u8])]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.arg("serve").args(flags).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.args(["--http-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--rules=no/such/rules"]);
    command.envs(variables.iter().map(|(name, value)| (name, OsStr::from_bytes(value))));
    let mut started = Started(command.spawn().unwrap());
    eventually("the end", async || started.0.try_wait().unwrap().is_some()).await;
    assert!(!started.0.wait().unwrap().success());
    io::read_to_string(started.0.stderr.take().unwrap()).unwrap()
}

#[tokio::test]
async fn an_address_that_is_taken_is_named_by_where_it_was_given() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = complaint(&[], &[("WEIR_GRPC_LISTEN", address.as_bytes())]).await;
    assert_eq!(said, format!("weir: WEIR_GRPC_LISTEN {address}: Address already in use (os error 98)\n"));
}

#[tokio::test]
async fn every_mistake_is_told_of_at_once() {
    let variables: [(&str, &[u8]); 2] = [("WEIR_STORE", b"redis://\xff"), ("WEIR_REPLICAS", b"-1")];
    let said = complaint(&["--drain-delay", "-1s", "--admin-read-token-file", "no/such/file"], &variables).await;
    let named: Vec<&str> = said.trim_start_matches("weir: ").lines().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(named, ["WEIR_STORE", "WEIR_REPLICAS", "--admin-read-token-file", "--drain-delay"], "{said}");
}

/// A collector of logs reads every line as JSON.
#[tokio::test]
async fn where_logs_are_json_so_is_why_a_server_cannot_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (flags, expected) in [
        (&["--log-format=json", "--log-level=off", "--grpc-listen", &address][..], "Address already in use"),
        (&["--log-format", "json", "--drain-delay=soon"], "--drain-delay: `soon` is not allowed"),
    ] {
        let said = complaint(flags, &[]).await;
        let line: serde_json::Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
        assert!(line["message"].as_str().is_some_and(|message| message.contains(expected)), "{said}");
        assert_eq!((&line["level"], said.lines().count()), (&"ERROR".into(), 1), "{said}");
    }
    let said = complaint(&["--log-format", "jsn"], &[("WEIR_LOG_FORMAT", b"json")]).await;
    assert!(said.starts_with("weir: --log-format: `jsn` is not allowed"), "{said}");
}

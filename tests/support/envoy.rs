//! A real Envoy with the rate-limit filter, in front of a small upstream of its own. Its ports are its own choice; it is
//! ready when [`Envoy::start`] returns and gone with the value.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::{self, Answer};
use super::{Output, eventually};

/// Fills the address that requests are made for.
pub const DOMAIN: &str = "envoy";

/// A running Envoy.
pub struct Envoy {
    process: Child,
    output: Output,
    port: u16,
    admin: u16,
    _directory: TempDir,
}

/// What its configuration says about rate limiting.
pub struct Front {
    rls_port: u16,
    filter: Value,
    route: Value,
}

impl Front {
    /// Asks the rate-limit service at this port, as `filter` (merged into the filter's settings) and `route` (merged into the
    /// one route's) say.
    pub fn asking(rls_port: u16) -> Front {
        Front { rls_port, filter: json!({}), route: json!({}) }
    }

    /// Settings of `envoy.filters.http.ratelimit`.
    pub fn filter(mut self, settings: Value) -> Front {
        merge(&mut self.filter, settings);
        self
    }

    /// Actions that make descriptors, as `rate_limits` of the route.
    pub fn rate_limits(mut self, actions: Value) -> Front {
        merge(&mut self.route, json!({"route": {"rate_limits": actions}}));
        self
    }

    /// Actions as `rate_limits` of the route's `typed_per_filter_config`, where hits can be set.
    pub fn rate_limits_with_hits(mut self, actions: Value) -> Front {
        let per_route = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute",
            "rate_limits": actions,
        });
        merge(&mut self.route, json!({"typed_per_filter_config": {"envoy.filters.http.ratelimit": per_route}}));
        self
    }

    /// A header on every response, with Envoy's substitutions.
    pub fn response_header(mut self, name: &str, value: &str) -> Front {
        let header = json!({"header": {"key": name, "value": value}});
        merge(&mut self.route, json!({"response_headers_to_add": [header]}));
        self
    }

    pub async fn start(self) -> Envoy {
        Envoy::start(&self).await
    }

    fn config(&self, directory: &Path) -> Value {
        let socket = json!({"pipe": {"path": directory.join("upstream.sock")}});
        let mut route = json!({"match": {"prefix": "/"}, "route": {"cluster": "upstream"}});
        merge(&mut route, self.route.clone());
        let mut filter = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit",
            "domain": DOMAIN,
            "timeout": "10s",
            "rate_limit_service": {
                "transport_api_version": "V3",
                "grpc_service": {"envoy_grpc": {"cluster_name": "weir"}},
            },
        });
        merge(&mut filter, self.filter.clone());
        // The upstream says as many tokens as the request's header names.
        let upstream = json!({
            "match": {"prefix": "/"},
            "direct_response": {"status": 200, "body": {"inline_string": "upstream"}},
            "response_headers_to_add": [{"header": {"key": "x-tokens", "value": "%REQ(x-use-tokens)%"}}],
        });
        let rls = json!({"socket_address": {"address": "127.0.0.1", "port_value": self.rls_port}});
        json!({
            "admin": {"address": any_port()},
            "static_resources": {
                "listeners": [
                    listener("front", any_port(), route, Some(filter)),
                    listener("upstream", socket.clone(), upstream, None),
                ],
                "clusters": [cluster("weir", rls, true), cluster("upstream", socket, false)],
            },
        })
    }
}

impl Envoy {
    async fn start(front: &Front) -> Envoy {
        let directory = tempfile::Builder::new().prefix("envoy").tempdir().expect("a temporary directory can be made");
        let config = front.config(directory.path()).to_string();
        Envoy::of_config(directory, "envoy.json", &config).await
    }

    /// By a configuration file of YAML, whose listener is `front`. It gets the admin port that it does not have.
    pub async fn of_yaml(text: &str) -> Envoy {
        let directory = tempfile::Builder::new().prefix("envoy").tempdir().expect("a temporary directory can be made");
        let config = format!("admin: {{address: {}}}\n{text}", any_port());
        Envoy::of_config(directory, "envoy.yaml", &config).await
    }

    async fn of_config(directory: TempDir, name: &str, text: &str) -> Envoy {
        let admin_file = directory.path().join("admin");
        let config = directory.path().join(name);
        fs::write(&config, text).expect("the directory is writable");
        let mut process = Command::new(binary())
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warn"])
            .arg("--config-path")
            .arg(&config)
            .arg("--admin-address-path")
            .arg(&admin_file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("Envoy runs");
        let output = Output::of(&mut process);
        let mut envoy = Envoy { process, output, port: 0, admin: 0, _directory: directory };
        eventually("an Envoy that is ready", async || envoy.find_ports(&admin_file).await).await;
        envoy
    }

    /// Learns where it listens; false while it is not ready.
    async fn find_ports(&mut self, admin_file: &Path) -> bool {
        if self.process.try_wait().expect("a child can be asked").is_some() {
            self.output.finish();
            panic!("Envoy does not start: {}", self.output.text());
        }
        let Ok(address) = fs::read_to_string(admin_file) else { return false };
        let Some(admin) = port_of(&address) else { return false };
        if http::get(admin, "/ready").await.is_none_or(|answer| answer.status != 200) {
            return false;
        }
        let listeners = http::get(admin, "/listeners").await.unwrap_or_default().body;
        let front = listeners.lines().find_map(|line| line.strip_prefix("front::"));
        self.admin = admin;
        self.port = front.and_then(port_of).expect("the listener has a port");
        true
    }

    /// `GET /` with these headers.
    pub async fn get(&self, headers: &[(&str, &[u8])]) -> Answer {
        http::send(self.port, "GET", "/", headers, b"").await.unwrap_or_else(|| panic!("no answer: {}", self.output.text()))
    }

    /// A counter or gauge by its whole name.
    pub async fn stat(&self, name: &str) -> u64 {
        let stats = http::get(self.admin, "/stats").await.unwrap_or_default().body;
        let value = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.parse().ok());
        value.unwrap_or(0)
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        self.process.kill().expect("an own process can be killed");
        self.process.wait().expect("a process that was started can be waited for");
    }
}

/// Where the Envoy for the tests is; fetched if it is missing.
fn binary() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/envoy");
    let found = Command::new(&script).output().expect("scripts/envoy runs");
    assert!(found.status.success(), "scripts/envoy: {}", String::from_utf8_lossy(&found.stderr));
    PathBuf::from(String::from_utf8(found.stdout).expect("a path in UTF-8").trim())
}

fn any_port() -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": 0}})
}

fn port_of(address: &str) -> Option<u16> {
    address.trim().rsplit_once(':')?.1.parse().ok()
}

fn listener(name: &str, address: Value, route: Value, rate_limit: Option<Value>) -> Value {
    let mut filters = Vec::new();
    if let Some(rate_limit) = rate_limit {
        filters.push(json!({"name": "envoy.filters.http.ratelimit", "typed_config": rate_limit}));
    }
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    filters.push(json!({"name": "envoy.filters.http.router", "typed_config": {"@type": router}}));
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "http_filters": filters,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    });
    let chain = json!({"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]});
    json!({"name": name, "address": address, "filter_chains": [chain]})
}

fn cluster(name: &str, address: Value, http2: bool) -> Value {
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    });
    if http2 {
        let options = json!({
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        });
        cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options});
    }
    cluster
}

/// Lays `over` on `under`: objects are merged, lists joined, everything else replaced.
fn merge(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (name, value) in over {
                merge(under.entry(name).or_insert(Value::Null), value);
            }
        }
        (Value::Array(under), Value::Array(over)) => under.extend(over),
        (under, over) => *under = over,
    }
}

//! How many files the process may have open, connections among them, and what that leaves for each port.

use super::room::Size;

/// Files that are no connections of callers: rules, the store, logs, listeners, and what the runtimes need.
const RESERVED: u64 = 256;
/// Connections on each port that probes have to themselves.
const PROBES: usize = 64;

/// The room of each port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub grpc: Size,
    pub http: Size,
    pub admin: Size,
}

/// What the ports have when the system allows it: Envoy opens a connection for each of its workers; over HTTP come people,
/// probes, and callers without gRPC; operators are few.
const WANTED: Sizes = Sizes {
    grpc: Size { connections: 10_000, probes: PROBES },
    http: Size { connections: 1_000, probes: PROBES },
    admin: Size { connections: 64, probes: PROBES },
};

impl Sizes {
    fn total(self) -> u64 {
        let sizes = [self.grpc, self.http, self.admin];
        sizes.iter().map(|size| (size.connections + size.probes) as u64).sum()
    }

    /// What so many open files allow.
    fn within(files: u64) -> Sizes {
        let free = files.saturating_sub(RESERVED.min(files / 4));
        if free >= WANTED.total() {
            return WANTED;
        }
        let share = |part: u64, most: Size| {
            let places = usize::try_from(free / part).unwrap_or(usize::MAX);
            let probes = (places / 4).clamp(1, most.probes);
            Size { connections: places.saturating_sub(probes).clamp(1, most.connections), probes }
        };
        let (http, admin) = (share(4, WANTED.http), share(8, WANTED.admin));
        let others = (http.connections + http.probes + admin.connections + admin.probes) as u64;
        let grpc = usize::try_from(free.saturating_sub(others)).unwrap_or(usize::MAX);
        let probes = (grpc / 4).clamp(1, PROBES);
        let connections = grpc.saturating_sub(probes).clamp(1, WANTED.grpc.connections);
        Sizes { grpc: Size { connections, probes }, http, admin }
    }
}

/// Raises the process's soft limit of open files to the hard one, and says what it leaves for each port. A limit that leaves less
/// than the ports should have is a warning.
pub fn sizes() -> Sizes {
    // Where there is no such limit, or it cannot be known, accepting fails when there are too many, and idle ones are closed.
    let limit = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(u64::MAX);
    let sizes = Sizes::within(limit);
    if sizes != WANTED {
        let needed = WANTED.total() + RESERVED;
        tracing::warn!(
            limit,
            needed,
            grpc_connections = sizes.grpc.connections,
            http_connections = sizes.http.connections,
            "the limit of open files is low, so fewer connections are served; raise it: `ulimit -n {needed}`, \
             `LimitNOFILE={needed}` for systemd"
        );
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_into_the_limit_and_every_port_has_some() {
        for files in [0, 10, 20, 64, 256, 1_024, 4_096, 11_511, 11_512, u64::MAX] {
            let sizes = Sizes::within(files);
            assert!(files < 20 || sizes.total() < files, "{files}: {sizes:?}");
            for size in [sizes.grpc, sizes.http, sizes.admin] {
                assert!(size.connections > 0 && size.probes > 0, "{files}: {sizes:?}");
            }
        }
        assert_eq!(Sizes::within(u64::MAX), WANTED);
        let low = Sizes::within(1_024);
        assert!(low.grpc.connections > 300 && low.http.connections > 100 && low.admin.connections > 30, "{low:?}");
    }
}

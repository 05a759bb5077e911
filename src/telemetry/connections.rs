//! What the bounds on connections and open calls did.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use super::metrics::counters;

/// Connections that weir closed and calls that it refused, each by the bound that made it.
#[derive(Debug, Default)]
pub struct Connections {
    /// No handshake, or no first request, in time.
    pub handshake: Counter,
    /// Idle longest when another connection needed the room.
    pub idle: Counter,
    /// The peer did not read what was written to it.
    pub write: Counter,
    /// The peer's flow-control window did not take an answer.
    pub unread: Counter,
    /// Frames without calls.
    pub control_frames: Counter,
    /// Held the most calls that waited for their peer, when no more calls could be open.
    pub open_calls: Counter,
    /// Not let in: every connection of the port was busy.
    pub no_room: Counter,
    /// Calls refused because too many were open.
    pub refused_open: Counter,
    /// Streams of health and reflection refused because too many were open.
    pub refused_streams: Counter,
    /// Calls refused because their connection had a place for probes only.
    pub refused_reserve: Counter,
}

impl Connections {
    pub(super) fn new(registry: &mut Registry) -> Connections {
        let help = "Connections that weir closed, by the bound that was reached";
        let reasons = ["handshake", "idle", "write", "unread", "control_frames", "open_calls", "no_room"];
        let [handshake, idle, write, unread, control_frames, open_calls, no_room] =
            counters(registry, "connections_closed", help, "reason", reasons);
        let help = "Calls that were refused before they were looked at, by the bound that was reached";
        let reasons = ["open_calls", "open_streams", "probes_only"];
        let [refused_open, refused_streams, refused_reserve] = counters(registry, "calls_refused", help, "reason", reasons);
        Connections {
            handshake,
            idle,
            write,
            unread,
            control_frames,
            open_calls,
            no_room,
            refused_open,
            refused_streams,
            refused_reserve,
        }
    }
}

//! The heads of HTTP/2 frames as they come in, nine bytes each: enough to see what a peer has weir do without calling it. Each
//! frame that belongs to no call spends a budget, which calls and time fill again.

use std::time::Instant;

use super::account::Account;

/// Frames that a connection may send without a call.
const MAX_FRAMES: i64 = 2_000;
/// What one call allows more. Clients send a few frames with each: DATA, WINDOW_UPDATE, PING, RST_STREAM.
const PER_CALL: i64 = 16;
/// Bytes written that allow one more: who takes an answer says that there is room for more, for its stream and for the connection.
const PER_BYTES: u64 = 2 << 10;
/// What a second allows more.
const PER_SECOND: f64 = 100.0;
/// Bytes of a frame that cost as much as another frame.
const FRAME_BYTES: u32 = 256;
/// Header blocks in longer frames take long to read: Envoy's are shorter, from the second one of a connection on. A peer may refer to one
/// header hundreds of times in such a frame.
const LONG_HEADERS: u32 = 256;
/// A frame of less data costs its handling. A line of a file that is sent line by line is longer.
const DATA_BYTES: u32 = 32;

const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// Follows the frames of one connection, from behind the preface on.
#[derive(Debug)]
pub(super) struct Frames {
    /// The head of the next frame, as far as it has come.
    head: [u8; HEAD],
    head_length: usize,
    /// What is left of the frame that comes in.
    rest: usize,
    /// Fields of that frame that matter.
    fields: Option<Fields>,
    /// The stream that a peer opened last.
    last_stream: u32,
    /// A long header block began in what came last.
    has_long_headers: bool,
    left: i64,
    calls: u32,
    /// Bytes written that have been counted.
    written: u64,
    filled: Instant,
}

/// Fields of equal length.
#[derive(Debug)]
struct Fields {
    kind: u8,
    field: [u8; 6],
    length: usize,
    have: usize,
}

impl Frames {
    pub(super) fn new() -> Frames {
        Frames {
            head: [0; HEAD],
            head_length: 0,
            rest: 0,
            fields: None,
            last_stream: 0,
            has_long_headers: false,
            left: MAX_FRAMES,
            calls: 0,
            written: 0,
            filled: Instant::now(),
        }
    }

    /// The stream that the peer opened last.
    pub(super) fn last_stream(&self) -> u32 {
        self.last_stream
    }

    /// Whether a long header block began in what came last.
    pub(super) fn has_long_headers(&self) -> bool {
        self.has_long_headers
    }

    /// Looks at what has come. Whether the peer may go on.
    pub(super) fn see(&mut self, data: &[u8], account: &Account) -> bool {
        self.has_long_headers &= data.is_empty();
        let cost = self.walk(data, account);
        let calls = account.calls();
        let refill = i64::from(calls.wrapping_sub(self.calls)) * PER_CALL;
        self.calls = calls;
        self.left = (self.left + refill).min(MAX_FRAMES) - cost;
        self.left >= 0 || self.fill(account.written())
    }

    #[cold]
    fn fill(&mut self, written: u64) -> bool {
        let now = Instant::now();
        let by_time = now.duration_since(self.filled).as_secs_f64() * PER_SECOND;
        let by_bytes = (written - self.written) / PER_BYTES;
        self.filled = now;
        self.written += by_bytes * PER_BYTES;
        self.left = (self.left + by_time as i64 + i64::try_from(by_bytes).unwrap_or(i64::MAX)).min(MAX_FRAMES);
        self.left >= 0
    }

    /// What it costs.
    fn walk(&mut self, mut data: &[u8], account: &Account) -> i64 {
        let mut cost = 0;
        loop {
            if self.rest > 0 {
                let (payload, after) = data.split_at(self.rest.min(data.len()));
                if let Some(fields) = &mut self.fields {
                    fields.read(payload, account);
                }
                self.rest -= payload.len();
                data = after;
            }
            if data.is_empty() {
                return cost;
            }
            let needed = HEAD - self.head_length;
            let (piece, after) = data.split_at(needed.min(data.len()));
            self.head[self.head_length..][..piece.len()].copy_from_slice(piece);
            self.head_length += piece.len();
            data = after;
            if self.head_length == HEAD {
                cost += self.begin();
            }
        }
    }

    /// Begins a frame whose head has come. What it costs.
    fn begin(&mut self) -> i64 {
        self.head_length = 0;
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = self.head;
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        let stream = u32::from_be_bytes([s0, s1, s2, s3]) & (u32::MAX >> 1);
        self.rest = length as usize;
        self.has_long_headers |= length > LONG_HEADERS && matches!(kind, HEADERS | CONTINUATION);
        self.fields = match kind {
            SETTINGS if flags & ACK == 0 => Some(Fields::of(kind, 6)),
            WINDOW_UPDATE if stream == 0 => Some(Fields::of(kind, 4)),
            _ => None,
        };
        match kind {
            // What a peer may send of these, flow control bounds; small ones still cost their handling.
            DATA => i64::from(length < DATA_BYTES),
            // A new call, which its own bounds count.
            HEADERS if stream > self.last_stream => {
                self.last_stream = stream;
                0
            }
            _ => 1 + i64::from(length / FRAME_BYTES),
        }
    }
}

impl Fields {
    fn of(kind: u8, length: usize) -> Fields {
        Fields { kind, field: [0; 6], length, have: 0 }
    }

    fn read(&mut self, payload: &[u8], account: &Account) {
        for &byte in payload {
            self.field[self.have] = byte;
            self.have += 1;
            if self.have < self.length {
                continue;
            }
            self.have = 0;
            match (self.kind, self.field) {
                (SETTINGS, [i0, i1, v0, v1, v2, v3]) if u16::from_be_bytes([i0, i1]) == INITIAL_WINDOW_SIZE => {
                    account.set_window(u32::from_be_bytes([v0, v1, v2, v3]));
                }
                (WINDOW_UPDATE, [v0, v1, v2, v3, ..]) => {
                    account.add_credit(i64::from(u32::from_be_bytes([v0, v1, v2, v3]) & (u32::MAX >> 1)));
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::account::Call;
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    fn ping() -> Vec<u8> {
        frame(6, 0, 0, &[0; 8])
    }

    #[test]
    fn long_header_blocks_are_seen_until_others_come() {
        let account = Account::new(false);
        let mut frames = Frames::new();
        let mut has_long = |data: &[u8]| {
            frames.see(data, &account);
            frames.has_long_headers()
        };
        assert!(!has_long(&frame(HEADERS, 4, 1, &[0x82; 256])));
        for long in [frame(HEADERS, 4, 3, &[0x82; 257]), frame(CONTINUATION, 4, 3, &[0x82; 300])] {
            assert!(has_long(&long) && has_long(&[]), "nothing more has come");
            assert!(!has_long(&ping()));
        }
    }

    #[test]
    fn frames_without_calls_spend_the_budget_however_they_are_cut() {
        let kinds = [
            ("PING", ping()),
            ("SETTINGS", frame(SETTINGS, 0, 0, &[])),
            ("PRIORITY", frame(2, 0, 1, &[0; 5])),
            ("RST_STREAM", frame(3, 0, 1, &[0; 4])),
            ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
            ("CONTINUATION", frame(9, 0, 1, &[])),
            ("DATA", frame(DATA, 0, 1, b"x")),
            ("unknown", frame(77, 0, 0, &[])),
        ];
        for (name, one) in kinds {
            for cut in [1, 2, 7, 9, 1_000] {
                let account = Account::new(false);
                let mut frames = Frames::new();
                let stream = one.repeat(10);
                let mut rounds = 0;
                while stream.chunks(cut).all(|piece| frames.see(piece, &account)) {
                    rounds += 1;
                    assert!(rounds <= 10_000, "{name} in pieces of {cut} is free");
                }
                assert!(rounds >= MAX_FRAMES / 10, "{name} in pieces of {cut}: {rounds} rounds");
            }
        }
    }

    #[test]
    fn calls_pay_for_the_frames_beside_them() {
        let account = Arc::new(Account::new(false));
        let mut frames = Frames::new();
        let beside = [frame(HEADERS, 4, 1, &[0; 30]), frame(DATA, 1, 1, &[0; 50]), ping(), frame(3, 0, 1, &[0; 4])];
        let update = frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 50]);
        let read = [beside.concat(), update.repeat(8)].concat();
        for number in 0..100_000 {
            assert!(frames.see(&read, &account), "after {number} calls");
            drop(Call::begin(&account, None).unwrap());
        }
    }

    #[test]
    fn a_long_answer_pays_for_the_windows_that_it_needs() {
        let account = Account::new(false);
        let mut frames = Frames::new();
        let both = [frame(WINDOW_UPDATE, 0, 0, &[0, 0, 16, 0]), frame(WINDOW_UPDATE, 0, 1, &[0, 0, 16, 0])].concat();
        for number in 0..100_000 {
            account.wrote(4 << 10);
            assert!(frames.see(&both, &account), "after {number} pieces of an answer");
        }
    }

    #[test]
    fn the_windows_of_a_peer_are_known() {
        let account = Account::new(false);
        let mut frames = Frames::new();
        assert!(!account.is_narrow(65_535) && account.is_narrow(65_536));
        let settings = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100, 0, 4, 0, 0, 0, 10]);
        assert!(settings.chunks(4).all(|piece| frames.see(piece, &account)));
        assert!(!account.is_narrow(10) && account.is_narrow(11));
        let settings = frame(SETTINGS, 0, 0, &[0, 4, 0, 2, 0, 0]);
        let updates = [frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]), frame(WINDOW_UPDATE, 0, 1, &[0, 0, 1, 0])].concat();
        assert!(frames.see(&settings, &account) && frames.see(&updates, &account));
        assert!(!account.is_narrow(65_536) && account.is_narrow(65_537));
    }

    #[test]
    fn frames_of_data_that_hold_something_are_free_and_others_cost_by_length() {
        let account = Account::new(false);
        let mut frames = Frames::new();
        assert_eq!(frames.walk(&frame(DATA, 0, 1, &[0; 16_000]), &account), 0);
        assert_eq!(frames.walk(&frame(DATA, 0, 1, &[0; 32]), &account), 0);
        assert_eq!(frames.walk(&frame(DATA, 0, 1, &[0; 31]), &account), 1);
        assert_eq!(frames.walk(&frame(77, 0, 1, &[0; 16_000]), &account), 63);
        assert_eq!(frames.walk(&frame(HEADERS, 0, 7, &[0; 10]), &account), 0);
        assert_eq!(frames.walk(&frame(HEADERS, 0, 7, &[0; 10]), &account), 1);
        assert_eq!(frames.last_stream(), 7);
    }
}

//! What came of the calls.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use http::{HeaderMap, StatusCode};
use tonic::Status;

use super::answer::Decision;

/// The longest latency told apart from longer ones, in ns.
const LONGEST: u64 = 600_000_000_000;
/// Latencies are kept to this many digits.
const DIGITS: u8 = 3;
/// Different texts of errors that are counted apart; more are summed under [`OTHER`].
const MAX_TEXTS: usize = 16;
const OTHER: &str = "other errors";

/// The codes of gRPC, by number, and what is none.
const STATUS_NAMES: [&str; 18] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
    "none (no grpc-status)",
];
const NO_STATUS: usize = STATUS_NAMES.len() - 1;
/// The codes of a decision, by number.
const CODE_NAMES: [&str; 3] = ["UNKNOWN", "OK", "OVER_LIMIT"];

/// One call's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    status: usize,
    /// Why, when the status is not OK.
    reason: Option<String>,
    /// All at 0 while none was seen.
    pub decision: Decision,
}

impl Answer {
    /// An error may come in the headers, with nothing after them.
    pub fn of_headers(http: StatusCode, headers: &HeaderMap) -> Answer {
        let mut answer = Answer { status: NO_STATUS, reason: None, decision: Decision::default() };
        answer.read_status(headers);
        if answer.status == NO_STATUS && http != StatusCode::OK {
            answer.reason = Some(format!("HTTP status {http}"));
        }
        answer
    }

    /// Takes `grpc-status` over, if it is there.
    pub fn read_status(&mut self, headers: &HeaderMap) {
        let Some(status) = headers.get("grpc-status") else { return };
        let number = status.to_str().ok().and_then(|text| text.parse().ok());
        self.status = number.filter(|&number: &usize| number < NO_STATUS).unwrap_or(NO_STATUS);
        if self.status != 0 {
            self.reason = Status::from_header_map(headers).map(|status| status.message().to_owned());
        }
    }
}

/// Counts of answers and errors, and how long they took.
#[derive(Debug)]
pub struct Tally {
    pub latency: Histogram<u64>,
    /// Answers of whatever status.
    pub answers: u64,
    pub unsent: u64,
    pub unanswered: u64,
    /// Decisions in which no rule had a part.
    pub met_no_rule: u64,
    statuses: [u64; STATUS_NAMES.len()],
    codes: [u64; CODE_NAMES.len()],
    errors: BTreeMap<String, u64>,
}

impl Default for Tally {
    fn default() -> Tally {
        let latency = Histogram::new_with_bounds(1, LONGEST, DIGITS).expect("the bounds are in order and the digits at most 5");
        Tally {
            latency,
            answers: 0,
            unsent: 0,
            unanswered: 0,
            met_no_rule: 0,
            statuses: [0; STATUS_NAMES.len()],
            codes: [0; CODE_NAMES.len()],
            errors: BTreeMap::new(),
        }
    }
}

impl Tally {
    pub fn record(&mut self, latency: Duration) {
        self.latency.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(LONGEST));
    }

    pub fn answer(&mut self, answer: Answer) {
        self.answers += 1;
        self.statuses[answer.status] += 1;
        if answer.status == 0 {
            let code = usize::try_from(answer.decision.overall_code).unwrap_or(0);
            self.codes[if code < CODE_NAMES.len() { code } else { 0 }] += 1;
            self.met_no_rule += u64::from(answer.decision.met_no_rule);
        }
        if let Some(reason) = answer.reason.filter(|reason| !reason.is_empty()) {
            self.error(format!("{}: {reason}", STATUS_NAMES[answer.status]));
        }
    }

    pub fn error(&mut self, text: String) {
        self.add_error(text, 1);
    }

    fn add_error(&mut self, text: String, count: u64) {
        let is_kept = self.errors.len() < MAX_TEXTS || self.errors.contains_key(&text);
        *self.errors.entry(if is_kept { text } else { OTHER.to_owned() }).or_default() += count;
    }

    pub fn add(&mut self, other: &Tally) {
        self.latency.add(&other.latency).expect("all histograms have the same bounds");
        self.answers += other.answers;
        self.unsent += other.unsent;
        self.unanswered += other.unanswered;
        self.met_no_rule += other.met_no_rule;
        self.statuses.iter_mut().zip(other.statuses).for_each(|(sum, count)| *sum += count);
        self.codes.iter_mut().zip(other.codes).for_each(|(sum, count)| *sum += count);
        other.errors.iter().for_each(|(text, count)| self.add_error(text.clone(), *count));
    }

    /// Answers by gRPC status; only what occurred.
    pub fn statuses(&self) -> BTreeMap<String, u64> {
        occurred(&STATUS_NAMES, &self.statuses)
    }

    /// Answers of status OK: what was measured.
    pub fn decisions(&self) -> u64 {
        self.statuses[0]
    }

    /// Answers of status OK by what was decided.
    pub fn codes(&self) -> BTreeMap<String, u64> {
        occurred(&CODE_NAMES, &self.codes)
    }

    /// Errors, and the reasons of answers that were not OK.
    pub fn errors(&self) -> &BTreeMap<String, u64> {
        &self.errors
    }
}

fn occurred(names: &[&str], counts: &[u64]) -> BTreeMap<String, u64> {
    names.iter().zip(counts).filter(|(_, count)| **count > 0).map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: &'static str, overall_code: i32) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-status", http::HeaderValue::from_static(status));
        headers.insert("grpc-message", http::HeaderValue::from_static("why"));
        let decision = Decision { overall_code, met_no_rule: overall_code == 1 };
        Answer { decision, ..Answer::of_headers(StatusCode::OK, &headers) }
    }

    #[test]
    fn answers_are_counted_by_status_and_code() {
        let mut tally = Tally::default();
        for (status, code) in [("0", 1), ("0", 2), ("0", 2), ("0", 7), ("14", 0), ("99", 0)] {
            tally.answer(answer(status, code));
        }
        let mut sum = Tally::default();
        sum.add(&tally);
        sum.add(&tally);
        let count = |map: &BTreeMap<String, u64>, name: &str| map.get(name).copied();
        assert_eq!((sum.answers, sum.decisions(), sum.met_no_rule), (12, 8, 2));
        assert_eq!([count(&sum.statuses(), "OK"), count(&sum.statuses(), "UNAVAILABLE")], [Some(8), Some(2)]);
        assert_eq!(count(&sum.statuses(), STATUS_NAMES[NO_STATUS]), Some(2));
        assert_eq!(["OK", "OVER_LIMIT", "UNKNOWN"].map(|name| count(&sum.codes(), name)), [Some(2), Some(4), Some(2)]);
        assert_eq!(count(sum.errors(), "UNAVAILABLE: why"), Some(2));
    }

    #[test]
    fn an_http_error_is_no_status() {
        let answer = Answer::of_headers(StatusCode::NOT_FOUND, &HeaderMap::new());
        assert_eq!((answer.status, answer.reason.as_deref()), (NO_STATUS, Some("HTTP status 404 Not Found")));
    }

    #[test]
    fn texts_of_errors_are_bounded() {
        let mut tally = Tally::default();
        (0..100).for_each(|number| tally.error(format!("error {number}")));
        assert_eq!(tally.errors().len(), MAX_TEXTS + 1);
        assert_eq!(tally.errors().values().sum::<u64>(), 100);
    }
}

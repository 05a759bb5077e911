//! Why a call was not done.

use std::fmt;

use crate::store::StoreError;
use crate::store::records::WriteError;

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("{0}")]
    Invalid(String),
    /// What the request names is not in the rules.
    #[error("{0}")]
    Unknown(String),
    #[error("others change the same record at the same time; try again")]
    Conflict,
    #[error("{0}")]
    Full(String),
    /// The store does not answer; nothing was changed.
    #[error("{0}")]
    Unavailable(String),
    /// The store stopped answering during a change: a part of it, or all, may have been made.
    #[error("{0}")]
    Uncertain(String),
}

/// What follows the reason of a [`Problem::Uncertain`].
const UNCERTAIN: &str = "the change may have been made: look before you repeat it";

impl Problem {
    /// A change of which it is not known whether it was made.
    pub(super) fn uncertain(error: &StoreError) -> Problem {
        Problem::Uncertain(format!("{}; {UNCERTAIN}", unanswered(error)))
    }

    /// A call that took longer than a call may.
    pub(super) fn out_of_time(seconds: u64, is_change: bool) -> Problem {
        let reason = format!("the store (Redis) does not answer: the call was given up after {seconds} s");
        if is_change { Problem::Uncertain(format!("{reason}; {UNCERTAIN}")) } else { Problem::Unavailable(reason) }
    }

    /// Says of a change that it was not made.
    pub(super) fn unchanged(self) -> Problem {
        match self {
            Problem::Unavailable(reason) => Problem::Unavailable(format!("{reason}; nothing was changed")),
            problem => problem,
        }
    }

    /// The same, as the problem of the last step of a change whose earlier steps are done.
    pub(super) fn after(self, done: &str) -> Problem {
        match self {
            Problem::Unavailable(reason) | Problem::Uncertain(reason) => Problem::Uncertain(format!("{done}, but then {reason}")),
            problem => problem,
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        Problem::Unavailable(unanswered(&error))
    }
}

/// Only Redis can leave an operator's call without an answer.
pub(super) fn unanswered(error: &StoreError) -> String {
    match error {
        StoreError::Timeout => "the store (Redis) does not answer".to_owned(),
        // The client's name for the kind of an error says nothing to a person.
        StoreError::Unavailable(reason) => format!("the store (Redis) is unavailable: {}", reason.trim_end_matches(" - Io")),
        error => error.to_string(),
    }
}

impl From<WriteError> for Problem {
    fn from(error: WriteError) -> Problem {
        match error {
            WriteError::Conflict => Problem::Conflict,
            WriteError::Full => Problem::Full(error.to_string()),
            WriteError::Store(error) => error.into(),
            WriteError::Uncertain(error) => Problem::uncertain(&error),
        }
    }
}

/// What is wrong with one field of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    /// `limits[0].rule`; empty: the request as a whole.
    path: String,
    reason: String,
    /// It names something that the rules do not have.
    pub(super) is_unknown: bool,
}

impl Mistake {
    pub(super) fn invalid(reason: impl fmt::Display) -> Mistake {
        Mistake { path: String::new(), reason: reason.to_string(), is_unknown: false }
    }

    pub(super) fn unknown(reason: String) -> Mistake {
        Mistake { path: String::new(), reason, is_unknown: true }
    }

    /// The mistake of a message, as one of the message that has it in this field.
    pub(super) fn below(self, field: impl fmt::Display) -> Mistake {
        let path = if self.path.is_empty() { field.to_string() } else { format!("{field}.{}", self.path) };
        Mistake { path, ..self }
    }

    /// Says besides whom it is about.
    pub(super) fn of(self, about: &str) -> Mistake {
        Mistake { reason: format!("{about}: {}", self.reason), ..self }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.path {
            "" => formatter.write_str(&self.reason),
            path => write!(formatter, "{path}: {}", self.reason),
        }
    }
}

impl From<Mistake> for Problem {
    fn from(mistake: Mistake) -> Problem {
        if mistake.is_unknown { Problem::Unknown(mistake.to_string()) } else { Problem::Invalid(mistake.to_string()) }
    }
}

//! What a handler says that did not handle a message, where it can say more than an error.

use std::fmt;

/// A handler did not handle a message, and goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Declined {
    /// It may handle the same message later.
    Retry,
    /// It never handles the same message, for a reason of its own.
    Reject(Option<String>),
}

impl fmt::Display for Declined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Retry => f.write_str("retry: the handler may take it later"),
            Self::Reject(None) => f.write_str("rejected"),
            Self::Reject(Some(reason)) => write!(f, "rejected: {reason}"),
        }
    }
}

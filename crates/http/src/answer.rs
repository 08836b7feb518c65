//! Answers that the host gives in place of a guest, and the body that all answers have.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};

use crate::bounded::nothing;

/// The body of an answer.
pub type HttpBody = UnsyncBoxBody<Bytes, BodyBroken>;

/// The body of an answer ends before its end. Who serves it must break off the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BodyBroken {
    /// The guest crashed, or gave up.
    #[error("the guest ended before the body did")]
    Guest,
    /// It has more bytes than it may.
    #[error("the body is larger than `response_body` permits")]
    TooLarge,
    /// The client takes none of it.
    #[error("the client has taken nothing of the body for longer than `write_idle` permits")]
    NotTaken,
}

/// Identifies one crash in an answer, in the log and in events: 16 digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReportId(u64);

impl ReportId {
    pub(crate) fn new() -> Self {
        Self(fastrand::u64(..))
    }
}

impl fmt::Display for ReportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Why the host answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The request is not one that is served, by its form.
    Malformed,
    NoRoute,
    Method,
    TooLarge,
    UriTooLong,
    HeadersTooLarge,
    TooSlow,
    /// There is no room; come back after this time.
    NoRoom(Duration),
    Deadline,
    Failed(Option<ReportId>),
    /// The actor's handler refused the message.
    Unprocessable,
    /// An answer that breaks off would look complete.
    Version,
}

impl Refused {
    /// All statuses that there are.
    pub(crate) const STATUSES: [StatusCode; 12] = [
        StatusCode::BAD_REQUEST,
        StatusCode::NOT_FOUND,
        StatusCode::METHOD_NOT_ALLOWED,
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::PAYLOAD_TOO_LARGE,
        StatusCode::URI_TOO_LONG,
        StatusCode::UNPROCESSABLE_ENTITY,
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        StatusCode::INTERNAL_SERVER_ERROR,
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::GATEWAY_TIMEOUT,
        StatusCode::HTTP_VERSION_NOT_SUPPORTED,
    ];

    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::NoRoom(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Deadline => StatusCode::GATEWAY_TIMEOUT,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unprocessable => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        }
    }

    /// Whether what is left of the request may not be what it seems.
    fn ends_connection(self) -> bool {
        matches!(self, Self::Malformed | Self::TooLarge | Self::UriTooLong | Self::HeadersTooLarge | Self::TooSlow)
    }

    pub(crate) fn answer(self) -> Response<HttpBody> {
        let body = match self {
            Self::Failed(Some(id)) => text(format!("the component failed; report {id}\n")),
            _ => nothing(),
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        if let Self::NoRoom(wait) = self {
            // Rounded up, and not longer than anybody would wait.
            let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).clamp(1, 3_600);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Self::Method = self {
            headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        if let Self::Failed(Some(_)) = self {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        if self.ends_connection() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

pub(crate) fn text(text: String) -> HttpBody {
    whole(Bytes::from(text))
}

pub(crate) fn whole(bytes: Bytes) -> HttpBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

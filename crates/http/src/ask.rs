//! Actors that are asked by HTTP, without a component in front.

use std::{sync::Arc, time::Duration};

use airssys_wasm_actor::{
    ActorRef, AskError,
    registry::{MessageEnvelope, Refusal},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Response, header};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::{
    sync::{Semaphore, broadcast},
    time::Instant,
};

use crate::{
    answer::{HttpBody, Refused, ReportId, whole},
    bounded::{Bounded, Bounds, Fault, Side},
    events::{Events, HttpEvent},
    host::trace_of,
    limits::RouteLimits,
    request::Checked,
};

/// An actor as a target of routes: the body of a `POST` is a message, and what its handler returns is the body of the
/// answer. It is in the trace of the request's `traceparent`.
///
/// | what comes of it | status |
/// |---|---|
/// | an answer | 200 |
/// | no answer of the handler | 204 |
/// | another method | 405 |
/// | an error of the handler, or a message that it rejects | 422 |
/// | a message larger than the actor's `message_size`, or than the route's `request_body`, as soon as that is known | 413 |
/// | no room in the mailbox, the actor has stopped or does not start, or its handler may take the message later | 503 |
/// | no answer in time | 504 |
/// | a body that is too slow | 408 |
/// | a crash, or a failure of the host | 500, with the id of a report that is in the log |
///
/// It is counted as a component is, under the actor's name: make one for each route, not for each request.
#[derive(Debug, Clone)]
pub struct AskActor(pub(crate) Arc<Ask>);

#[derive(Debug)]
pub(crate) struct Ask {
    actor: ActorRef,
    deadline: Duration,
    limits: RouteLimits,
    permits: Arc<Semaphore>,
    events: Events,
}

impl AskActor {
    /// This actor, which has so long to answer, with the body and the time in the mailbox.
    pub fn new(actor: ActorRef, deadline: Duration, limits: RouteLimits) -> Self {
        let permits = Arc::new(Semaphore::new((limits.concurrency as usize).min(Semaphore::MAX_PERMITS)));
        let events = Events::new(actor.id().as_str().into());
        Self(Arc::new(Ask { actor, deadline, limits, permits, events }))
    }

    /// Crashes over its requests from now on, with the ids that clients are told. A receiver that is more than 256 behind loses
    /// the oldest. The system tells of them too.
    pub fn events(&self) -> broadcast::Receiver<HttpEvent> {
        self.0.events.receiver()
    }
}

/// All of a body, joined as it comes: each frame that is kept has a cost beside its bytes, and may have but one.
async fn joined<B: Body<Data = Bytes> + Unpin>(mut body: B) -> Result<Bytes, B::Error> {
    let mut joined = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame?.data_ref() {
            joined.extend_from_slice(data);
        }
    }
    Ok(joined.freeze())
}

impl Ask {
    pub(crate) async fn serve(self: Arc<Self>, request: Checked) -> Response<HttpBody> {
        self.events.requests.increment(1);
        self.answer(request).await.unwrap_or_else(|refused| self.events.refuse(refused))
    }

    async fn answer(&self, request: Checked) -> Result<Response<HttpBody>, Refused> {
        if request.parts.method != Method::POST {
            return Err(Refused::Method);
        }
        // What the actor would not take is not collected.
        let most = self.limits.request_body.as_u64().min(self.actor.message_size());
        if request.length.is_some_and(|length| length > most) {
            return Err(Refused::TooLarge);
        }
        let began = Instant::now();
        let _permit = self.permits.try_acquire().map_err(|_| Refused::NoRoom(Duration::from_secs(1)))?;
        let trace = trace_of(&request.parts.headers);
        let message = if request.body.is_end_stream() { Bytes::new() } else { self.collect(request, most).await? };
        let left = self.deadline.saturating_sub(began.elapsed());
        let message = MessageEnvelope::new(message).with_trace(trace);
        match self.actor.try_ask_within(left, message).await {
            Ok(answer) => {
                let mut response = Response::new(whole(answer));
                let kind = HeaderValue::from_static("application/octet-stream");
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                Ok(response)
            }
            Err(AskError::NoReply) => {
                let mut response = Response::new(crate::bounded::nothing());
                *response.status_mut() = http::StatusCode::NO_CONTENT;
                Ok(response)
            }
            Err(error) => Err(self.refused(&error)),
        }
    }

    async fn collect(&self, request: Checked, bytes: u64) -> Result<Bytes, Refused> {
        let bounds = Bounds { bytes, ..self.limits.request_bounds(self.deadline) };
        let body = Bounded::new(request.body, bounds, Side::Request);
        let watch = body.watch();
        joined(body).await.map_err(|_| match watch.fault() {
            Some(Fault::TooLarge) => Refused::TooLarge,
            Some(Fault::TooSlow) => Refused::TooSlow,
            _ => Refused::Malformed,
        })
    }

    fn refused(&self, error: &AskError) -> Refused {
        match error {
            AskError::NotSent(undelivered) if matches!(undelivered.reason, Refusal::TooLarge { .. }) => {
                Refused::TooLarge
            }
            AskError::NotSent(_) | AskError::Stopped | AskError::NotActivated(_) | AskError::Retry => {
                Refused::NoRoom(Duration::from_secs(1))
            }
            AskError::Deadline => Refused::Deadline,
            AskError::Failed { .. } | AskError::Rejected { .. } => Refused::Unprocessable,
            AskError::Crashed(report) => {
                let id = ReportId::new();
                self.events.crashed(id, report.crash.clone());
                Refused::Failed(Some(id))
            }
            error => {
                let id = ReportId::new();
                self.events.unanswered(id, format_args!("an ask by HTTP failed: {error}"));
                Refused::Failed(Some(id))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    #[tokio::test]
    async fn the_frames_of_a_message_are_not_kept() {
        struct One {
            _alive: Arc<()>,
        }
        impl AsRef<[u8]> for One {
            fn as_ref(&self) -> &[u8] {
                b"x"
            }
        }
        let alive = Arc::new(());
        let (mut left, mut most, counted) = (100_000, 0, Arc::clone(&alive));
        let frames = futures_util::stream::poll_fn(|_| {
            most = most.max(Arc::strong_count(&alive) - 2);
            let frame = Bytes::from_owner(One { _alive: Arc::clone(&counted) });
            left -= 1;
            std::task::Poll::Ready((left >= 0).then(|| Ok::<_, Infallible>(Frame::data(frame))))
        });
        let message = joined(StreamBody::new(frames)).await.unwrap();
        assert_eq!(message, "x".repeat(100_000));
        assert_eq!(most, 0);
    }
}

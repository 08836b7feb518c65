//! Answers on their way to a client, and clients that do not take them.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep},
};

use super::io::Cut;
use crate::answer::{BodyBroken, HttpBody};

/// Bytes that are given to a stream of HTTP/2 at once. It may hold one such part which is not seen here any more.
const PART: usize = 16 << 10;

type Next = Option<Result<Frame<Bytes>, BodyBroken>>;

/// The answers of a connection of HTTP/2 that are not sent to their end. A client that opens no window for one takes nothing
/// of it, while its connection seems alive.
#[derive(Debug, Clone, Default)]
pub(super) struct Unsent(Arc<Mutex<Vec<Arc<Mutex<State>>>>>);

/// The body of an answer on its way. It counts as a request in hand until it is gone.
pub(super) struct Sent {
    body: Way,
    /// Of a client that takes the end of its connection for the end of the body.
    cut: Option<Cut>,
    /// None of an answer that says so.
    _in_hand: Option<OwnedSemaphorePermit>,
}

/// Who sees that nobody takes a body.
enum Way {
    /// The connection of HTTP/1, which has no other.
    Alone(HttpBody),
    /// Whoever looks at all of a connection of HTTP/2.
    Among(Unsent, Arc<Mutex<State>>),
}

#[derive(Debug)]
struct State {
    /// Gone once nobody takes it.
    body: Option<HttpBody>,
    /// The rest of a frame that goes out in parts.
    rest: Bytes,
    /// What was found waiting for the client, and when.
    waiting: Option<(Next, Instant)>,
    /// When the connection last asked.
    asked: Instant,
    /// Whom to wake when there is more.
    waker: Option<Waker>,
}

impl Sent {
    /// Of HTTP/1.
    pub(super) fn alone(body: HttpBody, in_hand: Option<OwnedSemaphorePermit>) -> Self {
        Self { body: Way::Alone(body), cut: None, _in_hand: in_hand }
    }

    /// One of these.
    pub(super) fn among(unsent: &Unsent, body: HttpBody, in_hand: Option<OwnedSemaphorePermit>) -> Self {
        let state = State { body: Some(body), rest: Bytes::new(), waiting: None, asked: Instant::now(), waker: None };
        let state = Arc::new(Mutex::new(state));
        unsent.0.lock().push(Arc::clone(&state));
        Self { body: Way::Among(unsent.clone(), state), cut: None, _in_hand: in_hand }
    }

    /// Whose connection is cut if it does not end.
    pub(super) fn or(mut self, cut: Cut) -> Self {
        cut.set(!self.is_end_stream());
        self.cut = Some(cut);
        self
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if let Way::Among(Unsent(all), own) = &self.body {
            all.lock().retain(|state| !Arc::ptr_eq(state, own));
        }
    }
}

impl State {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(Some(Err(BodyBroken::NotTaken))),
        }
    }

    /// The next part of a frame.
    fn part(&mut self) -> Next {
        let part = self.rest.split_to(PART.min(self.rest.len()));
        // A copy, which does not keep all of the frame.
        Some(Ok(Frame::data(Bytes::copy_from_slice(&part))))
    }

    /// Whether something waits for the client for longer than it may.
    fn is_stuck(&mut self, write_idle: Duration, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.asked);
        if !self.rest.is_empty() {
            return age >= write_idle;
        }
        if let Some((_, since)) = &self.waiting {
            return now.saturating_duration_since(*since) >= write_idle;
        }
        // Not at once, because it mostly asks soon; and not later, so that all of it lasts twice `write_idle` at most.
        if age < write_idle / 2 {
            return false;
        }
        // In the connection's place, which is told as if it had asked.
        let waker = self.waker.clone().unwrap_or_else(|| Waker::noop().clone());
        if let Poll::Ready(next) = self.poll_next(&mut Context::from_waker(&waker)) {
            self.waiting = Some((next, now));
            waker.wake();
        }
        false
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = BodyBroken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Next> {
        let this = &mut *self;
        let mut state = match &mut this.body {
            Way::Among(_, state) => state.lock(),
            Way::Alone(body) => {
                let next = Pin::new(&mut *body).poll_frame(cx);
                if let Some(cut) = &this.cut
                    && (matches!(next, Poll::Ready(None)) || body.is_end_stream())
                {
                    cut.set(false);
                }
                return next;
            }
        };
        state.asked = Instant::now();
        if !state.rest.is_empty() {
            return Poll::Ready(state.part());
        }
        let next = match state.waiting.take() {
            Some((next, _)) => Poll::Ready(next),
            None => state.poll_next(cx),
        };
        match next {
            Poll::Pending => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(match frame.into_data() {
                Ok(data) if data.len() > PART => {
                    state.rest = data;
                    state.part()
                }
                Ok(data) => Some(Ok(Frame::data(data))),
                Err(frame) => Some(Ok(frame)),
            }),
            ended => ended,
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Way::Alone(body) => body.is_end_stream(),
            Way::Among(_, state) => {
                let state = state.lock();
                let has_more = state.waiting.is_some() || !state.rest.is_empty();
                !has_more && state.body.as_ref().is_some_and(Body::is_end_stream)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Way::Alone(body) => body.size_hint(),
            Way::Among(_, state) => state.lock().body.as_ref().map_or_else(SizeHint::default, Body::size_hint),
        }
    }
}

impl Unsent {
    /// Returns when the client has taken nothing of an answer for so long. What it has not taken is gone then.
    pub(super) async fn stuck(self, write_idle: Duration) {
        let Self(all) = self;
        loop {
            sleep(write_idle / 2).await;
            let now = Instant::now();
            let seen = all.lock().clone();
            let stuck = seen.iter().filter(|state| state.lock().is_stuck(write_idle, now));
            let stuck: Vec<_> = stuck.collect();
            for state in &stuck {
                let mut state = state.lock();
                // Outside of the lock nobody minds how long it takes; the guest is cancelled by it.
                let gone = (state.body.take(), mem::take(&mut state.rest), state.waiting.take());
                drop(state);
                drop(gone);
            }
            if !stuck.is_empty() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt, StreamBody};
    use tokio::sync::{Semaphore, mpsc};

    use super::*;

    const WRITE_IDLE: Duration = Duration::from_secs(30);

    fn sent(body: HttpBody) -> (Unsent, Sent) {
        let unsent = Unsent::default();
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let sent = Sent::among(&unsent, body, Some(permit));
        (unsent, sent)
    }

    fn streamed() -> (mpsc::Sender<&'static str>, HttpBody) {
        let (sender, mut receiver) = mpsc::channel::<&'static str>(1);
        let stream = futures_util::stream::poll_fn(move |cx| {
            receiver.poll_recv(cx).map(|text| Some(Ok::<_, Infallible>(Frame::data(Bytes::from(text?)))))
        });
        (sender, StreamBody::new(stream).map_err(|never| match never {}).boxed_unsync())
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_takes_is_gone_after_a_while() {
        let (sender, body) = streamed();
        let (unsent, mut sent) = sent(body);
        sender.send("one").await.unwrap();
        sent.frame().await.unwrap().unwrap();
        sender.send("two").await.unwrap();
        let began = Instant::now();
        unsent.stuck(WRITE_IDLE).await;
        assert_eq!(began.elapsed(), WRITE_IDLE * 3 / 2);
        assert!(sender.is_closed());
        assert!(matches!(sent.frame().await, Some(Err(BodyBroken::NotTaken))));
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_gone_within_twice_the_time_whenever_it_was_asked_for() {
        for millis in [0, 1, 14_999, 15_000, 15_001, 29_999] {
            let (sender, body) = streamed();
            let (unsent, mut sent) = sent(body);
            let mut stuck = Box::pin(unsent.stuck(WRITE_IDLE));
            assert!(tokio::time::timeout(Duration::from_millis(millis), &mut stuck).await.is_err());
            sender.send("one").await.unwrap();
            sent.frame().await.unwrap().unwrap();
            sender.send("two").await.unwrap();
            let asked = Instant::now();
            stuck.await;
            let took = asked.elapsed();
            assert!((WRITE_IDLE..=WRITE_IDLE * 2).contains(&took), "{millis}: {took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_guest_has_not_written_is_not_waited_for() {
        let (sender, body) = streamed();
        let (unsent, mut sent) = sent(body);
        let mut stuck = Box::pin(unsent.stuck(WRITE_IDLE));
        let reading = tokio::spawn(async move {
            let mut frames = 0;
            while sent.frame().await.transpose().unwrap().is_some() {
                frames += 1;
            }
            frames
        });
        for _ in 0..3 {
            assert!(tokio::time::timeout(WRITE_IDLE * 10, &mut stuck).await.is_err());
            sender.send("part").await.unwrap();
        }
        drop(sender);
        assert_eq!(reading.await.unwrap(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_frame_goes_out_in_parts() {
        let bytes: Vec<u8> = (0..=255).cycle().take(PART * 2 + 1).collect();
        let (unsent, mut sent) = sent(crate::answer::whole(bytes.clone().into()));
        let mut out = Vec::new();
        for len in [PART, PART, 1] {
            assert!(!sent.is_end_stream());
            let part = sent.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(part.len(), len);
            out.extend_from_slice(&part);
        }
        assert_eq!(out, bytes);
        assert!(sent.frame().await.is_none());
        drop(sent);
        assert!(unsent.0.lock().is_empty());
    }
}

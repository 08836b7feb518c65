//! Bodies that come from others, with bounds on their bytes, their rate and their time.

use airssys_wasm_limits::later;
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, combinators::UnsyncBoxBody};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};
use wasmtime_wasi_http::{Error, WasiBody};

/// What a body may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Bytes. A frame without any counts as one.
    pub(crate) bytes: u64,
    /// Time from one frame to the next.
    pub(crate) idle: Duration,
    /// Bytes a second, over the time that was waited for it, once that is longer than `idle`.
    pub(crate) rate: u64,
    /// Time in all.
    pub(crate) time: Duration,
}

/// Whose body it is, which decides the error that the guest gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Request,
    Response,
}

/// Why a body was broken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    TooLarge,
    TooSlow,
    /// It ended before its end.
    Broken,
}

/// The state of a body, for who does not hold it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watch(Arc<Watched>);

#[derive(Debug, Default)]
struct Watched {
    state: AtomicU8,
    fragmented: AtomicBool,
}

/// A body is fragmented that has more frames than this, with less than `SMALL_FRAME` bytes on average. Each costs its guest calls
/// of the host, and hyper gives out chunks of HTTP/1 one by one.
const MANY_FRAMES: u64 = 1_000;
const SMALL_FRAME: u64 = 1 << 10;

const RUNNING: u8 = 0;
const WAITING: u8 = 1;
const ENDED: u8 = 2;
const TOO_LARGE: u8 = 3;
const TOO_SLOW: u8 = 4;
const BROKEN: u8 = 5;

impl Watch {
    fn set(&self, state: u8) {
        self.0.state.store(state, Ordering::Relaxed);
    }

    pub(crate) fn fault(&self) -> Option<Fault> {
        match self.0.state.load(Ordering::Relaxed) {
            TOO_LARGE => Some(Fault::TooLarge),
            TOO_SLOW => Some(Fault::TooSlow),
            BROKEN => Some(Fault::Broken),
            _ => None,
        }
    }

    /// Whether its reader waits for it: since the last [`forget_wait`](Self::forget_wait) it has asked, and nothing came.
    pub(crate) fn is_awaited(&self) -> bool {
        self.0.state.load(Ordering::Relaxed) == WAITING
    }

    /// Whether it came in so many small frames that to read them may take more than its guest may use.
    pub(crate) fn is_fragmented(&self) -> bool {
        self.0.fragmented.load(Ordering::Relaxed)
    }

    /// Says that nobody waits, before a reader is polled that asks again if it does.
    pub(crate) fn forget_wait(&self) {
        _ = self.0.state.compare_exchange(WAITING, RUNNING, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// When a wait has ended, which may be long before the reader asks again.
#[derive(Default)]
struct Waited(Mutex<(Option<Waker>, Option<Instant>)>);

impl Wake for Waited {
    fn wake(self: Arc<Self>) {
        let mut state = self.0.lock();
        state.1.get_or_insert_with(Instant::now);
        let waker = state.0.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A reader that is still there asks again within this time after it was woken.
const LATE: Duration = Duration::from_secs(1);

/// A body within bounds.
pub(crate) struct Bounded {
    /// Gone once it has failed.
    inner: Option<WasiBody>,
    bounds: Bounds,
    side: Side,
    watch: Watch,
    bytes: u64,
    frames: u64,
    began: Instant,
    /// Since when a frame is awaited.
    since: Option<Instant>,
    waited: Duration,
    /// Of the wait for a frame.
    ended: Arc<Waited>,
    /// Since the first wait.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Bounded {
    pub(crate) fn new(inner: WasiBody, bounds: Bounds, side: Side) -> Self {
        let watch = Watch::default();
        let (began, since, waited) = (Instant::now(), None, Duration::ZERO);
        let ended = Arc::default();
        Self { inner: Some(inner), bounds, side, watch, bytes: 0, frames: 0, began, since, waited, ended, timer: None }
    }

    pub(crate) fn watch(&self) -> Watch {
        self.watch.clone()
    }

    fn fail(&mut self, fault: Fault) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.inner = None;
        self.watch.set(match fault {
            Fault::TooLarge => TOO_LARGE,
            Fault::TooSlow => TOO_SLOW,
            Fault::Broken => BROKEN,
        });
        let error = match (fault, self.side) {
            (Fault::TooLarge, Side::Request) => Error::HttpRequestBodySize(Some(self.bytes)),
            (Fault::TooLarge, Side::Response) => Error::HttpResponseBodySize(Some(self.bytes)),
            (Fault::TooSlow, _) => Error::ConnectionReadTimeout,
            (Fault::Broken, Side::Request) => Error::ConnectionTerminated,
            (Fault::Broken, Side::Response) => Error::HttpResponseIncomplete,
        };
        Poll::Ready(Some(Err(error)))
    }

    fn is_too_slow(&self) -> bool {
        // In thousandths, because the time is mostly a part of a second.
        self.waited > self.bounds.idle
            && u128::from(self.bytes) * 1_000 < u128::from(self.bounds.rate) * self.waited.as_millis()
    }

    /// Whether the wait has been too long.
    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (now, end) = (Instant::now(), later(self.began, self.bounds.time));
        let mut since = *self.since.get_or_insert(now);
        // The reader was woken at the end of that, and has not asked: it did not wait for it any more.
        if now > later(later(since, self.bounds.idle), LATE) {
            since = now;
            self.since = Some(now);
        }
        let at = later(since, self.bounds.idle).min(end);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        timer.as_mut().poll(cx)
    }
}

impl Body for Bounded {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        let before = std::mem::replace(&mut *this.ended.0.lock(), (Some(cx.waker().clone()), None)).1;
        let waker = Waker::from(Arc::clone(&this.ended));
        let polled = Pin::new(inner).poll_frame(&mut Context::from_waker(&waker));
        if polled.is_pending() {
            this.watch.set(WAITING);
            if !this.is_too_slow() {
                ready!(this.poll_wait(cx));
            }
            return this.fail(Fault::TooSlow);
        }
        if let Some(since) = this.since.take() {
            // Not until now: the reader may have been busy with something else.
            let until = before.unwrap_or_else(Instant::now);
            this.waited += until.saturating_duration_since(since).min(this.bounds.idle);
        }
        this.watch.set(RUNNING);
        match ready!(polled) {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.bytes = this.bytes.saturating_add(data.len().max(1) as u64);
                    this.frames += 1;
                    if this.frames > MANY_FRAMES && this.bytes / this.frames < SMALL_FRAME {
                        this.watch.0.fragmented.store(true, Ordering::Relaxed);
                    }
                }
                if this.bytes > this.bounds.bytes {
                    return this.fail(Fault::TooLarge);
                }
                if this.began.elapsed() > this.bounds.time {
                    return this.fail(Fault::TooSlow);
                }
                if this.is_end_stream() {
                    this.watch.set(ENDED);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(_)) => this.fail(Fault::Broken),
            None => {
                this.watch.set(ENDED);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

/// A body without anything.
pub(crate) fn nothing<E>() -> UnsyncBoxBody<Bytes, E> {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use tokio::sync::mpsc;

    use super::*;

    const BOUNDS: Bounds =
        Bounds { bytes: 100, idle: Duration::from_secs(10), rate: 5, time: Duration::from_secs(100) };

    fn body(bounds: Bounds) -> (mpsc::Sender<Result<Frame<Bytes>, Error>>, Bounded) {
        let (sender, mut receiver) = mpsc::channel(8);
        let stream = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        (sender, Bounded::new(StreamBody::new(stream).boxed_unsync(), bounds, Side::Request))
    }

    fn data(len: usize) -> Result<Frame<Bytes>, Error> {
        Ok(Frame::data(Bytes::from(vec![0; len])))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_within_its_bounds_passes() {
        let (sender, mut body) = body(BOUNDS);
        let watch = body.watch();
        sender.send(data(60)).await.unwrap();
        sender.send(data(40)).await.unwrap();
        drop(sender);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), 60);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), 40);
        assert!(body.frame().await.is_none());
        assert_eq!(watch.fault(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn one_byte_more_is_too_large() {
        let (sender, mut body) = body(BOUNDS);
        let watch = body.watch();
        sender.send(data(100)).await.unwrap();
        sender.send(data(1)).await.unwrap();
        body.frame().await.unwrap().unwrap();
        assert!(matches!(body.frame().await, Some(Err(Error::HttpRequestBodySize(Some(101))))));
        assert_eq!(watch.fault(), Some(Fault::TooLarge));
        assert!(body.frame().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn frames_with_nothing_in_them_do_not_come_without_end() {
        let (sender, mut body) = body(BOUNDS);
        let sending = tokio::spawn(async move { while sender.send(data(0)).await.is_ok() {} });
        let mut frames = 0;
        while let Some(Ok(_)) = body.frame().await {
            frames += 1;
        }
        assert_eq!(frames, 100);
        drop(body);
        sending.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_of_many_small_frames_is_fragmented() {
        for (len, expected) in [(1, true), (1023, true), (1024, false)] {
            let (sender, mut body) = body(Bounds { bytes: 2 << 20, ..BOUNDS });
            let watch = body.watch();
            for frame in 1..=1_001 {
                sender.send(data(len)).await.unwrap();
                body.frame().await.unwrap().unwrap();
                assert_eq!(watch.is_fragmented(), expected && frame > 1_000, "{len}, {frame}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stands_still_is_too_slow() {
        let (sender, mut body) = body(BOUNDS);
        let began = Instant::now();
        assert!(matches!(body.frame().await, Some(Err(Error::ConnectionReadTimeout))));
        assert_eq!(began.elapsed().as_secs(), 10);
        drop(sender);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_is_too_slow() {
        let (sender, mut body) = body(BOUNDS);
        let dripping = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(4)).await;
                if sender.send(data(1)).await.is_err() {
                    break;
                }
            }
        });
        let began = Instant::now();
        let watch = body.watch();
        while let Some(Ok(_)) = body.frame().await {}
        assert_eq!(watch.fault(), Some(Fault::TooSlow));
        assert_eq!(began.elapsed().as_secs(), 12);
        drop(body);
        dripping.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nobody_asks_for_it_makes_no_body_slow() {
        let (sender, mut body) = body(BOUNDS);
        sender.send(data(1)).await.unwrap();
        sender.send(data(1)).await.unwrap();
        body.frame().await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_secs(50)).await;
        body.frame().await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_when_something_comes_though_its_reader_is_busy() {
        let (sender, mut body) = body(BOUNDS);
        for _ in 0..3 {
            assert!(futures_util::poll!(body.frame()).is_pending());
            sender.send(data(1)).await.unwrap();
            tokio::time::sleep(Duration::from_secs(20)).await;
            body.frame().await.unwrap().unwrap();
        }
        // The control: it is waited for.
        let waiting = tokio::spawn(async move { body.frame().await.unwrap().is_err() });
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert!(waiting.await.unwrap());
        drop(sender);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_was_given_up_is_none() {
        let (sender, mut body) = body(BOUNDS);
        let watch = body.watch();
        assert!(tokio::time::timeout(Duration::from_secs(1), body.frame()).await.is_err());
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(futures_util::poll!(body.frame()).is_pending());
        assert!(watch.is_awaited());
        watch.forget_wait();
        assert!(!watch.is_awaited());
        sender.send(data(1)).await.unwrap();
        body.frame().await.unwrap().unwrap();
        assert_eq!(watch.fault(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_has_so_much_time_in_all() {
        let (sender, mut body) = body(Bounds { rate: 0, bytes: 1_000, ..BOUNDS });
        let dripping = tokio::spawn(async move {
            while sender.send(data(1)).await.is_ok() {
                tokio::time::sleep(Duration::from_secs(9)).await;
            }
        });
        let began = Instant::now();
        while let Some(Ok(_)) = body.frame().await {}
        assert_eq!(began.elapsed().as_secs(), 100);
        drop(body);
        dripping.await.unwrap();
    }
}

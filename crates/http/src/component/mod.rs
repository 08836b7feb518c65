//! A component that answers requests, each by a call of its handler in a sandbox.

mod body;
mod handler;
mod reuse;

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use airssys_wasm_actor::{ActorRef, ActorState, Front, Lifecycle, RestartPolicy};
use airssys_wasm_engine::{ExportError, wasmtime};
use airssys_wasm_isolation::{Crash, CrashClass, CrashKind, InstantiateError, Sandbox, SandboxSpec};
use airssys_wasm_limits::{CancellationToken, later};
use http::{Method, Response, StatusCode, Version};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::{
    sync::{Semaphore, broadcast, oneshot},
    time::Instant,
};
use tracing::{Instrument, Span, field};
use wasmtime_wasi_http::WasiBody;

pub(crate) use self::handler::Interface;
use self::{
    body::{AnswerBody, Unread},
    handler::{Handler, Head, Request, keeps_request},
    reuse::{Idle, Kept},
};
use crate::{
    answer::{HttpBody, Refused, ReportId},
    bounded::{Bounded, Fault, Side, Watch, nothing},
    breaker::{Breaker, Verdict, default_policy},
    events::{Events, HttpEvent},
    host::{End, Followed, HttpHost, HttpState, Whether, Written, length_of},
    limits::RouteLimits,
    outgoing::{Denials, Outgoing},
    request::{CanCut, Checked},
};

/// A component that exports `wasi:http/incoming-handler@0.2`, or `wasi:http/handler@0.3` where the engine has
/// [async](airssys_wasm_engine::Features::component_async), as a target of routes. Cheap to clone.
pub struct HttpComponent<U: HttpHost = HttpState>(pub(crate) Arc<Component<U>>);

impl<U: HttpHost> Clone for HttpComponent<U> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<U: HttpHost> fmt::Debug for HttpComponent<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HttpComponent").field(&self.0.name).finish()
    }
}

/// What an [`HttpComponent`] is made of.
pub struct HttpComponentSpec<U: HttpHost = HttpState> {
    name: Arc<str>,
    sandbox: SandboxSpec<U>,
    make: Box<dyn Fn() -> U + Send + Sync>,
    limits: RouteLimits,
    restart: RestartPolicy,
    outgoing: Option<Outgoing>,
    actor: Option<ActorRef>,
}

impl<U: HttpHost> fmt::Debug for HttpComponentSpec<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpComponentSpec")
            .field("name", &self.name)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl HttpComponentSpec {
    /// A component under this name in log, events and metrics, without outgoing requests.
    pub fn new(name: &str, sandbox: SandboxSpec<HttpState>) -> Self {
        Self::with_state(name, sandbox, HttpState::default)
    }
}

impl<U: HttpHost> HttpComponentSpec<ActorState<U>> {
    /// A component in front of actors: it may import what actors import, with the grants of its [`Front`]. Its sandboxes get
    /// the embedder's state, made for each. When its actor has ended, requests are answered with 503.
    pub fn of_front(front: Front<U>, make: impl Fn() -> U + Send + Sync + 'static) -> Self {
        let actor = front.actor().clone();
        let sandbox = front.sandbox().clone();
        let spec = Self::with_state(actor.id().as_str(), sandbox, move || front.state(make()));
        Self { actor: Some(actor), ..spec }
    }
}

impl<U: HttpHost> HttpComponentSpec<U> {
    /// A component whose sandboxes get the embedder's state, made for each.
    pub fn with_state(name: &str, sandbox: SandboxSpec<U>, make: impl Fn() -> U + Send + Sync + 'static) -> Self {
        let (limits, restart) = (RouteLimits::default(), default_policy());
        Self { name: name.into(), sandbox, make: Box::new(make), limits, restart, outgoing: None, actor: None }
    }

    /// With these limits of its requests.
    #[must_use]
    pub fn with_limits(mut self, limits: RouteLimits) -> Self {
        self.limits = limits;
        self
    }

    /// With this policy for crashes. More of them than its intensity permits close the component for its back-off, without
    /// the jitter: requests are answered with 503. A kind of crash that is not restarted closes it until
    /// [`HttpComponent::reopen`]. Default: twenty crashes within ten seconds, one second, up to a minute.
    #[must_use]
    pub fn with_restart(mut self, policy: RestartPolicy) -> Self {
        self.restart = policy;
        self
    }

    /// With these grants of outgoing requests, for all its sandboxes.
    #[must_use]
    pub fn with_outgoing(mut self, outgoing: Outgoing) -> Self {
        self.outgoing = Some(outgoing);
        self
    }

    /// The component, to be given to a route.
    ///
    /// # Errors
    ///
    /// [`ExportError::Missing`] when it does not export the handler.
    pub fn build(self) -> Result<HttpComponent<U>, ExportError> {
        let Self { name, sandbox, make, limits, restart, outgoing, actor } = self;
        let interface = Interface::of(&sandbox)?;
        Ok(HttpComponent(Arc::new(Component {
            interface,
            make,
            permits: Arc::new(Semaphore::new((limits.concurrency as usize).min(Semaphore::MAX_PERMITS))),
            idle: limits.reuse.map(Idle::new),
            deadline: sandbox.quota().limits().deadline,
            sandbox,
            limits,
            breaker: Breaker::new(restart),
            outgoing,
            actor,
            denials: Denials::new(Some(Arc::clone(&name))),
            events: Events::new(Arc::clone(&name)),
            name,
        })))
    }
}

impl<U: HttpHost> HttpComponent<U> {
    /// Its crashes from now on. A receiver that is more than 256 behind loses the oldest.
    pub fn events(&self) -> broadcast::Receiver<HttpEvent> {
        self.0.events.receiver()
    }

    /// How long it is closed after crashes; `None` if it is open. [`Duration::MAX`] is until [`reopen`](Self::reopen).
    pub fn closed_for(&self) -> Option<Duration> {
        self.0.breaker.closed_for(Instant::now())
    }

    /// Opens it, and forgets its crashes.
    pub fn reopen(&self) {
        self.0.breaker.reopen();
    }

    /// Requests that it may take now beside those in hand.
    pub fn room(&self) -> usize {
        self.0.permits.available_permits()
    }
}

/// A sandbox and its handler.
type Ready<U> = (Sandbox<U>, Handler);

pub(crate) struct Component<U: HttpHost> {
    name: Arc<str>,
    sandbox: SandboxSpec<U>,
    interface: Interface,
    make: Box<dyn Fn() -> U + Send + Sync>,
    limits: RouteLimits,
    deadline: Duration,
    permits: Arc<Semaphore>,
    /// Where sandboxes are used again.
    idle: Option<Arc<Idle<Ready<U>>>>,
    breaker: Breaker,
    outgoing: Option<Outgoing>,
    denials: Arc<Denials>,
    /// Whose name it has among actors.
    actor: Option<ActorRef>,
    events: Events,
}

/// A request that the guest has a handle on.
struct Passed {
    watch: Watch,
    call: handler::Call,
    answered: oneshot::Receiver<Head>,
    /// Whether the call has crashed; then it may wait until what the guest had is freed.
    crashed: Arc<AtomicBool>,
    span: Span,
}

/// How a call ended.
enum Ended {
    Returned,
    Crashed(Crash),
}

/// What comes first of a call.
enum First {
    /// It is answered, or its request is refused, and goes on.
    Answered,
    /// It has crashed, and what the guest had is being freed.
    Crashed,
    Ended(Ended),
}

type Running = Pin<Box<dyn Future<Output = Ended> + Send>>;

/// Refuses a request whose body was broken off.
fn refused_for(watch: &Watch) -> Result<(), Refused> {
    Err(match watch.fault() {
        None => return Ok(()),
        Some(Fault::TooLarge) => Refused::TooLarge,
        Some(Fault::TooSlow) => Refused::TooSlow,
        Some(Fault::Broken) => Refused::Malformed,
    })
}

/// Whether a guest has exited as one does that is done.
fn is_done(crash: &Crash) -> bool {
    matches!(crash.kind(), CrashKind::Exit { code: 0 })
}

/// Whether a client made the guest use up what it has, by a body in so many frames that to read them takes as much.
fn is_of_fragments(crash: &Crash, watch: &Watch) -> bool {
    let used_up = [CrashClass::HostCalls, CrashClass::CpuTime, CrashClass::OutOfFuel];
    watch.is_fragmented() && used_up.contains(&crash.kind().class())
}

/// Bodies of one sandbox that clients may still read while it is used again.
const READ_BY_OTHERS: usize = 16;

/// Handles that a sandbox may keep from one request to the next. With more, the next might find no room for its own.
const HANDLES: usize = 100;

/// When to come back, where nobody knows.
const SOON: Duration = Duration::from_secs(1);

impl<U: HttpHost> Component<U> {
    pub(crate) async fn serve(self: Arc<Self>, request: Checked) -> Response<HttpBody> {
        self.events.requests.increment(1);
        match self.answer(request).await {
            Ok(response) => response,
            Err(refused) => self.events.refuse(refused),
        }
    }

    async fn answer(self: &Arc<Self>, request: Checked) -> Result<Response<HttpBody>, Refused> {
        if request.parts.version < Version::HTTP_11 && request.parts.extensions.get::<CanCut>().is_none() {
            return Err(Refused::Version);
        }
        let now = Instant::now();
        if let Some(left) = self.breaker.closed_for(now) {
            return Err(Refused::NoRoom(left));
        }
        if self.actor.as_ref().is_some_and(|actor| actor.state() == Lifecycle::Stopped) {
            return Err(Refused::NoRoom(SOON));
        }
        if request.length.is_some_and(|length| length > self.limits.request_body.as_u64()) {
            return Err(Refused::TooLarge);
        }
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| Refused::NoRoom(SOON))?;
        let mut kept = match self.idle.as_ref().and_then(|idle| idle.take(now)) {
            Some(kept) => kept,
            None => Kept { value: self.start().await?, requests: 0, born: now },
        };
        let is_head = request.parts.method == Method::HEAD;
        let Passed { watch, call, mut answered, crashed, span } =
            self.pass(&mut kept.value, request).map_err(|error| {
                let id = ReportId::new();
                self.events.fault(id, format_args!("the request cannot be passed to the guest: {error:#}"));
                Refused::Failed(Some(id))
            })?;

        let token = CancellationToken::new();
        // When this future is dropped, the client is gone: so is the sandbox then.
        let running = {
            let (this, token) = (Arc::clone(self), token.clone());
            async move {
                let Kept { value: (sandbox, handle), requests, born } = kept;
                let ended = match handle.call(sandbox, call, &token).await {
                    Ok(sandbox) => {
                        this.give_back(Kept { value: (sandbox, handle), requests, born });
                        Ended::Returned
                    }
                    Err(crash) => Ended::Crashed(crash),
                };
                drop(permit);
                ended
            }
        };
        // Entering a span costs time even if it is disabled.
        let mut running: Running =
            if span.is_disabled() { Box::pin(running) } else { Box::pin(running.instrument(span)) };
        let mut head: Option<Head> = None;
        let first = poll_fn(|cx| {
            watch.forget_wait();
            let polled = running.as_mut().poll(cx);
            // Both are of this task alone: the guest does them while it is polled.
            if head.is_none() {
                head = answered.try_recv().ok();
            }
            match polled {
                Poll::Ready(ended) => Poll::Ready(First::Ended(ended)),
                // Nothing has gone out, so it is as if it had said nothing.
                Poll::Pending if crashed.load(Ordering::Acquire) => Poll::Ready(First::Crashed),
                Poll::Pending if head.is_some() || watch.fault().is_some() => Poll::Ready(First::Answered),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        let has_answered = head.is_some();
        let running = match first {
            First::Answered => {
                refused_for(&watch)?;
                Some(running)
            }
            First::Ended(ended) => {
                self.ended_before(ended, has_answered, &watch)?;
                None
            }
            // Told by a task of its own, because the client may go away before all that the guest had is freed.
            First::Crashed => {
                let (this, watch) = (Arc::clone(self), watch.clone());
                let told = tokio::spawn(async move { this.ended_before(running.await, has_answered, &watch) });
                told.await.unwrap_or(Err(Refused::Failed(None)))?;
                None
            }
        };
        let head = match head {
            Some(Ok(head)) => head,
            declined => {
                let id = ReportId::new();
                let why =
                    if declined.is_some() { "the guest answered with an error" } else { "the guest gave no answer" };
                self.events.unanswered(id, format_args!("{why}"));
                return Err(Refused::Failed(Some(id)));
            }
        };
        // Of 0.3 a body has come to its end as well when its guest has crashed.
        let (head, asked) = if running.is_some() && self.interface.is_p3() && !head.body().is_end_stream() {
            let (end, asked) = End::asked();
            let length = length_of(head.headers());
            (head.map(|body| Written::new(body, length, end, None).boxed_unsync()), Some(asked))
        } else {
            (head, None)
        };
        let unread = Unread::default();
        let response = self.checked(head, is_head, token, &unread)?;
        if let Some(running) = running {
            tokio::spawn(Arc::clone(self).run(running, asked, unread, (watch, crashed)));
        }
        Ok(response)
    }

    /// Runs a guest whose head has gone out to its end, and says whether its body is complete when that is asked.
    async fn run(
        self: Arc<Self>,
        mut running: Running,
        mut asked: Option<oneshot::Receiver<Whether>>,
        unread: Unread,
        (watch, crashed): (Watch, Arc<AtomicBool>),
    ) {
        let ended = poll_fn(|cx| {
            let polled = running.as_mut().poll(cx);
            // Asked after the guest has run: what ended its body was no crash.
            if polled.is_pending()
                && !crashed.load(Ordering::Acquire)
                && let Some(asking) = &mut asked
                && let Poll::Ready(whether) = Pin::new(asking).poll(cx)
            {
                asked = None;
                whether.into_iter().for_each(|whether| _ = whether.send(true));
            }
            polled
        })
        .await;
        let is_well = match ended {
            Ended::Returned => true,
            Ended::Crashed(crash) => {
                let is_well = is_done(&crash);
                // A guest that insists on being read, or on reading, fails by what its client does.
                if !unread.get() && watch.fault().is_none() {
                    self.crashed_after(crash, &watch);
                }
                is_well
            }
        };
        // The client may still read.
        if let Some(asked) = asked
            && let Ok(whether) = asked.await
        {
            _ = whether.send(is_well);
        }
    }

    /// A fresh sandbox.
    async fn start(&self) -> Result<Ready<U>, Refused> {
        let mut state = (self.make)();
        if let Some(outgoing) = &self.outgoing {
            state.http().grant(outgoing.clone());
        }
        state.http().tell(&self.denials);
        let mut sandbox = self.sandbox.instantiate(state).await.map_err(|error| match error {
            InstantiateError::PoolExhausted { .. } => Refused::NoRoom(SOON),
            InstantiateError::Crash(crash) => self.crashed_before(crash, &Watch::default()),
            error => self.failed(&error),
        })?;
        let handle = self.interface.handler(&mut sandbox).map_err(|error| self.failed(&error))?;
        Ok((sandbox, handle))
    }

    fn failed(&self, error: &dyn std::error::Error) -> Refused {
        let id = ReportId::new();
        self.events.fault(id, format_args!("no sandbox: {error}"));
        Refused::Failed(Some(id))
    }

    /// Gives the guest handles on the request and on its answer.
    fn pass(&self, (sandbox, handler): &mut Ready<U>, request: Checked) -> wasmtime::Result<Passed> {
        let Checked { parts, authority, body, https, .. } = request;
        let (watch, body) = if body.is_end_stream() {
            (Watch::default(), body)
        } else {
            let bounded = Bounded::new(body, self.limits.request_bounds(self.deadline), Side::Request);
            (bounded.watch(), bounded.boxed_unsync())
        };
        let (head, answered) = oneshot::channel();
        let (table, ext) = sandbox.table_and_ext();
        let followed = ext.http().follow(&parts.headers);
        let span = self.span(&parts.method, followed.as_ref());
        ext.begin(&parts, later(Instant::now(), self.deadline));
        let call = handler.pass(table, ext.http(), Request { parts, authority, body, https }, head)?;
        let crashed = Arc::<AtomicBool>::default();
        sandbox.tell_crash(Arc::clone(&crashed));
        Ok(Passed { watch, call, answered, crashed, span })
    }

    /// The span of a call of the guest.
    fn span(&self, method: &Method, followed: Option<&Followed>) -> Span {
        let hex = |number: Option<u128>| number.map(|number| field::display(format!("{number:x}")));
        tracing::debug_span!(
            "request",
            component = %self.name,
            method = %method,
            trace_id = hex(followed.map(|followed| followed.trace.trace_id)),
            span_id = hex(followed.map(|followed| followed.trace.parent_id.into())),
            parent_id = hex(followed.map(|followed| followed.parent_id.into())),
        )
    }

    fn give_back(&self, mut kept: Kept<Ready<U>>) {
        let Some(idle) = &self.idle else { return };
        let sandbox = &mut kept.value.0;
        let most = match self.limits.reuse.and_then(|reuse| reuse.memory) {
            Some(memory) => memory.as_u64(),
            None => self.sandbox.quota().limits().memory.as_u64() / 2,
        };
        if sandbox.memory() > most {
            return;
        }
        let (table, ext) = sandbox.table_and_ext();
        if !keeps_request(table) && table.iter_mut().count() <= HANDLES && ext.http().live_bodies() < READ_BY_OTHERS {
            idle.give(kept, Instant::now());
        }
    }

    /// The guest's answer, as it goes out.
    fn checked(
        &self,
        head: Response<WasiBody>,
        is_head: bool,
        token: CancellationToken,
        unread: &Unread,
    ) -> Result<Response<HttpBody>, Refused> {
        let length = length_of(head.headers());
        let (parts, inner) = head.into_parts();
        let has_none = is_head || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&parts.status);
        // The guest made no body and promises one; or it wants the connection for itself.
        let is_false = inner.is_end_stream() && !has_none && length.is_some_and(|length: u64| length > 0);
        if is_false || parts.status.is_informational() {
            let id = ReportId::new();
            self.events.unanswered(id, format_args!("the guest's answer is none, of status {}", parts.status.as_u16()));
            return Err(Refused::Failed(Some(id)));
        }
        if has_none {
            // The guest goes on, and writes what nobody gets.
            unread.set();
            return Ok(Response::from_parts(parts, nothing()));
        }
        // Of a body that has no bytes the head is all that is sent; who sends it may drop the body at once.
        let guard = (!inner.is_end_stream() && length != Some(0)).then(|| token.drop_guard());
        let left = self.limits.response_body.as_u64();
        let body = AnswerBody { inner, unread: unread.clone(), left, missing: length, guard, broken: false };
        Ok(Response::from_parts(parts, body.boxed_unsync()))
    }

    /// A call that has ended before anything was sent.
    fn ended_before(&self, ended: Ended, has_answered: bool, watch: &Watch) -> Result<(), Refused> {
        refused_for(watch)?;
        match ended {
            Ended::Returned => Ok(()),
            // Some toolchains end each call by it.
            Ended::Crashed(crash) if has_answered && is_done(&crash) => Ok(()),
            // Nothing has been sent yet, so nothing of the guest's is.
            Ended::Crashed(crash) => Err(self.crashed_before(crash, watch)),
        }
    }

    /// A crash before anything was sent.
    fn crashed_before(&self, crash: Crash, watch: &Watch) -> Refused {
        match crash.kind() {
            CrashKind::Budget { .. } => {
                self.report(crash);
                Refused::NoRoom(SOON)
            }
            CrashKind::Cancelled => Refused::NoRoom(SOON),
            // The actor that its import leads to failed.
            CrashKind::Link { .. } => Refused::Failed(Some(self.report(crash))),
            // The guest waited for the client.
            CrashKind::Deadline { .. } if watch.is_awaited() => Refused::TooSlow,
            CrashKind::Deadline { .. } => {
                self.blame(crash);
                Refused::Deadline
            }
            _ if is_of_fragments(&crash, watch) => {
                self.report(crash);
                Refused::TooLarge
            }
            _ => Refused::Failed(Some(self.blame(crash))),
        }
    }

    /// A crash after the head was sent. The body is broken off by itself.
    fn crashed_after(&self, crash: Crash, watch: &Watch) {
        match crash.kind() {
            // The client is gone.
            CrashKind::Cancelled => {}
            CrashKind::Exit { code: 0 } => {}
            // A client that reads slowly makes a guest wait; a shortage is the host's.
            CrashKind::Deadline { .. } | CrashKind::Budget { .. } | CrashKind::Link { .. } => _ = self.report(crash),
            _ if is_of_fragments(&crash, watch) => _ = self.report(crash),
            _ => _ = self.blame(crash),
        }
    }

    fn report(&self, crash: Crash) -> ReportId {
        let id = ReportId::new();
        self.events.crashed(id, crash);
        id
    }

    /// Reports a crash that counts against the component.
    fn blame(&self, crash: Crash) -> ReportId {
        let verdict = self.breaker.note(crash.kind(), Instant::now());
        let id = self.report(crash);
        match verdict {
            Verdict::Open => {}
            Verdict::ClosedFor(wait) => self.events.closed(Some(wait)),
            Verdict::ClosedForGood => self.events.closed(None),
        }
        id
    }
}

//! The imports of guests: messaging and logging. Each messaging call is checked against the component's capabilities; a
//! denied call returns an error to the guest.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use airssys_wasm_engine::{
    Linker, LoadedComponent,
    wasmtime::{
        self, StoreContextMut,
        component::{Accessor, LinkerInstance},
    },
};
use airssys_wasm_isolation::HostState;
use airssys_wasm_limits::{LogLine, Metered};
use airssys_wasm_registry::{ComponentId, ContentType, MessageEnvelope, Refusal, SendError, Topic, TopicPattern};
use bytes::Bytes;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    ActorState, AskError, DeniedAction, SystemEvent,
    failure::{
        policy::later,
        report::{LONGEST_TEXT, is_news, shown},
    },
    guest::wire::{BrokerMessage, GuestRequestError, GuestSendError, GuestSubscribeError, Level},
    runtime::{
        cell::Cell,
        endpoint::Endpoint,
        in_flight::{Room, Share},
        mailbox::{Answer, Delivery, ReplyTo, Unanswered, size_of_answer},
    },
};

type Ctx<'a, U> = StoreContextMut<'a, HostState<ActorState<U>>>;

/// Defines the imports of a component in a linker.
pub(crate) fn link<U: Send + 'static>(
    linker: &mut Linker<HostState<ActorState<U>>>,
    component: &LoadedComponent,
) -> wasmtime::Result<()> {
    link_messaging(&mut linker.instance("airssys:actor/messaging@0.1.0")?)?;
    link_logging(&mut linker.instance("airssys:actor/logging@0.1.0")?)?;
    link_wasmcloud(&mut linker.instance("wasmcloud:messaging/consumer@0.2.0")?)?;
    if component.features().component_async {
        link_async_messaging(&mut linker.instance("airssys:actor/messaging@0.2.0")?)?;
        link_logging(&mut linker.instance("airssys:actor/logging@0.2.0")?)?;
    }
    Ok(())
}

type Instance<'a, U> = LinkerInstance<'a, HostState<ActorState<U>>>;

fn link_messaging<U: Send + 'static>(messaging: &mut Instance<'_, U>) -> wasmtime::Result<()> {
    link_what_does_not_wait(messaging)?;
    messaging.func_wrap_async(
        "request",
        |mut store: Ctx<'_, U>, (to, payload, timeout_ms): (String, Bytes, u32)| {
            Box::new(async move {
                let timeout = Duration::from_millis(timeout_ms.into());
                let answer = match Request::new(&mut store.data_mut().ext, &to, payload) {
                    Ok(request) => request.answer(timeout).await,
                    Err(error) => Err(GuestRequestError::NotSent(error)),
                };
                Ok((answer,))
            })
        },
    )?;
    messaging.func_wrap_async("publish", |mut store: Ctx<'_, U>, (topic, payload): (String, Bytes)| {
        Box::new(async move { Ok((publish(&mut store.data_mut().ext, &topic, payload).await,)) })
    })
}

/// For guests of which several tasks may wait at the same time.
fn link_async_messaging<U: Send + 'static>(messaging: &mut Instance<'_, U>) -> wasmtime::Result<()> {
    link_what_does_not_wait(messaging)?;
    messaging.func_wrap_concurrent(
        "request",
        |tasks: &Accessor<HostState<ActorState<U>>>, (to, payload, timeout_ms): (String, Bytes, u32)| {
            Box::pin(async move {
                let timeout = Duration::from_millis(timeout_ms.into());
                let request = tasks.with(|mut store| {
                    let data = store.data_mut();
                    let share = share(data, payload.len()).ok_or(GuestSendError::Full)?;
                    let request = Request { room: Some(room(data)), ..Request::new(&mut data.ext, &to, payload)? };
                    Ok((request, share, data.host_call()))
                });
                let answer = match request {
                    Ok((request, _share, _call)) => request.answer(timeout).await,
                    Err(error) => Err(GuestRequestError::NotSent(error)),
                };
                Ok((answer,))
            })
        },
    )?;
    messaging.func_wrap_concurrent(
        "publish",
        |tasks: &Accessor<HostState<ActorState<U>>>, (topic, payload): (String, Bytes)| {
            Box::pin(async move {
                let publication = tasks.with(|mut store| {
                    let data = store.data_mut();
                    let share = share(data, payload.len()).ok_or(GuestSendError::Full)?;
                    Ok((Publication::new(&mut data.ext, &topic, payload)?, share, data.host_call()))
                });
                let published = match publication {
                    Ok((publication, _share, _call)) => Ok(publication.publish().await),
                    Err(error) => Err::<_, GuestSendError>(error),
                };
                Ok((published,))
            })
        },
    )
}

fn link_what_does_not_wait<U: Send + 'static>(messaging: &mut Instance<'_, U>) -> wasmtime::Result<()> {
    messaging.func_wrap("self-id", |store: Ctx<'_, U>, (): ()| Ok((Arc::<str>::from(store.data().ext.id()),)))?;
    messaging.func_wrap(
        "send",
        |mut store: Ctx<'_, U>, (to, payload, content_type): (String, Bytes, Option<Arc<str>>)| {
            Ok((send(&mut store.data_mut().ext, &to, payload, content_type),))
        },
    )?;
    messaging.func_wrap("subscribe", |mut store: Ctx<'_, U>, (pattern,): (String,)| {
        Ok((subscribe(&mut store.data_mut().ext, &pattern),))
    })?;
    messaging.func_wrap("unsubscribe", |store: Ctx<'_, U>, (pattern,): (String,)| {
        if let Ok(pattern) = TopicPattern::new(&pattern) {
            store.data().ext.cell.unsubscribe(&pattern);
        }
        Ok(())
    })
}

fn link_logging<U: Send + 'static>(logging: &mut Instance<'_, U>) -> wasmtime::Result<()> {
    logging.func_wrap("log", |mut store: Ctx<'_, U>, (level, line): (Level, String)| {
        let data = store.data_mut();
        match data.meter().log().line(line.len().min(LONGEST_TEXT)) {
            LogLine::Kept { left_out } => log(&data.ext.cell, level, left_out, &line),
            LogLine::LeftOut { first: true } => {
                let actor = data.ext.id();
                tracing::warn!(target: "guest", %actor, "writes more than its `log_bytes`: lines are left out");
            }
            LogLine::LeftOut { first: false } => {}
        }
        Ok(())
    })
}

fn link_wasmcloud<U: Send + 'static>(consumer: &mut Instance<'_, U>) -> wasmtime::Result<()> {
    consumer.func_wrap_async(
        "request",
        |mut store: Ctx<'_, U>, (subject, body, timeout_ms): (String, Bytes, u32)| {
            Box::new(async move {
                let timeout = Duration::from_millis(timeout_ms.into());
                let answer = match Publication::new(&mut store.data_mut().ext, &subject, body) {
                    Ok(question) => request_topic(question, timeout).await,
                    Err(error) => Err(GuestRequestError::NotSent(error)),
                };
                let message = |body| BrokerMessage { subject: subject.into(), body, reply_to: None };
                Ok((answer.map(message).map_err(|error| error.to_string()),))
            })
        },
    )?;
    consumer.func_wrap_async("publish", |mut store: Ctx<'_, U>, (message,): (BrokerMessage,)| {
        Box::new(async move {
            let state = &mut store.data_mut().ext;
            if answer_asker(&state.cell, &message.subject, &message.body) {
                return Ok((Ok(()),));
            }
            let published = publish(state, &message.subject, message.body).await;
            Ok((published.map(|_| ()).map_err(|error| error.to_string()),))
        })
    })
}

/// Counts bytes among those that are on their way. There is no room for what would make them more than one host call may
/// carry.
pub(super) fn share<U: Send + 'static>(data: &mut HostState<ActorState<U>>, bytes: usize) -> Option<Share> {
    let most = data.meter().quota().limits().host_call_bytes.as_u64();
    data.ext.in_flight.get_or_insert_default().take(bytes, most)
}

/// Room for an answer among those that wait for the guest. All together have as many bytes as wait in its mailbox.
pub(super) fn room<U>(data: &mut HostState<ActorState<U>>) -> Arc<Room> {
    let ActorState { cell, answers, .. } = &mut data.ext;
    Room::new(answers.get_or_insert_default(), cell.mailbox.bytes())
}

impl<U> ActorState<U> {
    /// A message from this actor, in the trace of the message in flight.
    pub(super) fn envelope(&self, payload: Bytes) -> MessageEnvelope {
        self.cell.envelope(MessageEnvelope::new(payload), self.trace())
    }

    pub(super) fn deny(&mut self, action: DeniedAction, target: &str) {
        let denials = self.denials.get_or_insert_default().fetch_add(1, Ordering::Relaxed) + 1;
        self.cell.metrics.denied.increment(1);
        // A guest must not flood the log or the events.
        if is_news(denials) {
            tracing::warn!(actor = %self.cell.id(), nth = denials, %action, target = %shown(target), "denied");
            let actor = &self.cell.address;
            self.cell.services.event(|| SystemEvent::Denied {
                actor: actor.clone(),
                action,
                target: target.to_owned(),
                denials,
            });
        }
    }
}

fn send<U>(
    state: &mut ActorState<U>,
    to: &str,
    payload: Bytes,
    content_type: Option<Arc<str>>,
) -> Result<(), GuestSendError> {
    let (to, message) = outgoing(state, to, payload, content_type)?;
    state.cell.services.send(&to, message).map_err(|error| match error {
        SendError::Refused { reason, .. } => refused(reason),
        _ => GuestSendError::Unknown,
    })
}

/// A message that may be sent.
pub(super) fn outgoing<U>(
    state: &mut ActorState<U>,
    to: &str,
    payload: Bytes,
    content_type: Option<Arc<str>>,
) -> Result<(ComponentId, MessageEnvelope), GuestSendError> {
    let to = ComponentId::new(to).map_err(invalid)?;
    may_act(&state.cell)?;
    if !state.capabilities.may_send(&to) {
        state.deny(DeniedAction::Send, to.as_str());
        return Err(GuestSendError::Denied);
    }
    if content_type.as_ref().is_some_and(|ty| ty.len() > LONGEST_CONTENT_TYPE) {
        return Err(invalid(format_args!("a content type has {LONGEST_CONTENT_TYPE} bytes at the most")));
    }
    let mut message = state.envelope(payload);
    if let Some(content_type) = content_type {
        message = message.with_content_type(ContentType(content_type));
    }
    Ok((to, message))
}

/// One whose name may be another host's sends nothing in it.
fn may_act(cell: &Cell) -> Result<(), GuestSendError> {
    if cell.is_fenced() { Err(GuestSendError::Stopped) } else { Ok(()) }
}

/// The longest media type, in bytes.
const LONGEST_CONTENT_TYPE: usize = 255;

fn invalid(error: impl ToString) -> GuestSendError {
    GuestSendError::Invalid(error.to_string())
}

pub(super) fn refused(reason: Refusal) -> GuestSendError {
    match reason {
        Refusal::Full => GuestSendError::Full,
        Refusal::Restarting => GuestSendError::Restarting,
        Refusal::TooLarge { allowed, .. } => GuestSendError::TooLarge(allowed),
        // Nobody who takes messages.
        Refusal::NoHandler | Refusal::Unknown => GuestSendError::Unknown,
        _ => GuestSendError::Stopped,
    }
}

/// A request that may be made.
struct Request {
    asker: Arc<Cell>,
    to: ComponentId,
    message: MessageEnvelope,
    /// What the asker itself has time for.
    ends: Option<Instant>,
    /// Of an asker that can have several.
    room: Option<Arc<Room>>,
}

impl Request {
    fn new<U>(state: &mut ActorState<U>, to: &str, payload: Bytes) -> Result<Self, GuestSendError> {
        let to = ComponentId::new(to).map_err(invalid)?;
        may_act(&state.cell)?;
        if !state.capabilities.may_request(&to) {
            state.deny(DeniedAction::Request, to.as_str());
            return Err(GuestSendError::Denied);
        }
        Ok(Self { asker: Arc::clone(&state.cell), to, message: state.envelope(payload), ends: state.ends, room: None })
    }

    async fn answer(self, timeout: Duration) -> Result<Bytes, GuestRequestError> {
        let Self { asker, to, message, ends, room } = self;
        let room = room.as_ref();
        let (mut receivers, until) = (asker.services.registry.sinks(&to).peekable(), earlier(timeout, ends));
        if receivers.peek().is_some() {
            return ask_any(&asker, receivers, &message, until, Silence::IsAnAnswer, room).await;
        }
        match asker.services.awaken(&to, Some(&asker.address)) {
            None => {
                let message = message.with_deadline(until);
                match asker.services.ask_elsewhere(&to, &message) {
                    Some(answer) => {
                        let answer = match room {
                            Some(room) => in_room(answer, Arc::clone(room)).await,
                            None => answer.await,
                        };
                        checked(&asker, answer)
                    }
                    None => Err(GuestRequestError::NotSent(GuestSendError::Unknown)),
                }
            }
            Some(Err(reason)) => Err(GuestRequestError::NotSent(refused(reason))),
            Some(Ok(actor)) => {
                let receiver = std::iter::once(Arc::new(Endpoint::Actor(actor.0)));
                ask_any(&asker, receiver, &message, until, Silence::IsAnAnswer, room).await
            }
        }
    }
}

/// Asks a topic's subscribers, one after the other, until one answers.
pub(super) async fn request_topic(question: Publication, timeout: Duration) -> Result<Bytes, GuestRequestError> {
    let Publication { by, topic, message, ends, room } = question;
    let receivers = by.services.broker.sinks(&topic);
    let until = earlier(timeout, ends);
    let message = message.with_topic(topic);
    ask_any(&by, receivers.into_iter(), &message, until, Silence::IsPassedOver, room.as_ref()).await
}

/// When a request has ended.
fn earlier(timeout: Duration, ends: Option<Instant>) -> Instant {
    let until = later(Instant::now(), timeout);
    ends.map_or(until, |ends| ends.min(until))
}

/// How a handler's return without an answer counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Silence {
    IsAnAnswer,
    IsPassedOver,
}

/// Asks the first receiver that accepts the message. If all are full, waits for the first.
async fn ask_any(
    asker: &Cell,
    receivers: impl Iterator<Item = Arc<Endpoint>>,
    message: &MessageEnvelope,
    until: Instant,
    silence: Silence,
    room: Option<&Arc<Room>>,
) -> Result<Bytes, GuestRequestError> {
    // Host subscribers do not answer.
    let actors = receivers.filter_map(|receiver| match &*receiver {
        Endpoint::Actor(cell) => Some(Arc::clone(cell)),
        Endpoint::Host(_) => None,
    });
    let exchange = async {
        let mut last = GuestRequestError::NotSent(GuestSendError::Unknown);
        let mut full = None;
        let mut actors = actors.fuse();
        let mut again = None;
        loop {
            let (receiver, waits) = match again.take().or_else(|| actors.next()) {
                Some(receiver) => (receiver, false),
                None => match full.take() {
                    Some(receiver) => (receiver, true),
                    None => return Err(last),
                },
            };
            // Also of one that it waits for a second time: the table of waits holds one receiver per asker.
            let Some(_waiting) = asker.waits_for(&receiver) else {
                last = GuestRequestError::Cycle;
                continue;
            };
            let (delivery, answer) = question(message, &receiver, until, room);
            let pushed = if waits { receiver.push(delivery).await } else { receiver.try_push(delivery) };
            match pushed {
                Ok(()) => {
                    let answered = heard(asker, answer.await);
                    if silence == Silence::IsPassedOver && answered == Err(GuestRequestError::NoAnswer) {
                        last = GuestRequestError::NoAnswer;
                        continue;
                    }
                    return answered;
                }
                // It left the memory on the way here.
                Err((Refusal::Moved, _)) => match asker.services.awaken(receiver.id(), Some(&asker.address)) {
                    Some(Ok(actor)) => again = Some(actor.0),
                    Some(Err(reason)) => last = GuestRequestError::NotSent(refused(reason)),
                    None => {}
                },
                Err((reason, _)) => {
                    last = GuestRequestError::NotSent(refused(reason));
                    if !waits && matches!(reason, Refusal::Full | Refusal::Restarting) && full.is_none() {
                        full = Some(receiver);
                    }
                }
            }
        }
    };
    tokio::time::timeout_at(until, exchange).await.unwrap_or(Err(GuestRequestError::Timeout))
}

fn question(
    message: &MessageEnvelope,
    to: &Cell,
    until: Instant,
    room: Option<&Arc<Room>>,
) -> (Delivery, oneshot::Receiver<Answer>) {
    let message = message.clone().with_deadline(until).with_target(to.address.generation());
    let (reply, answer) = oneshot::channel();
    (Delivery::new(message, Some(ReplyTo::in_room(reply, room.cloned()))), answer)
}

/// Checks an answer's size, since it is lowered into the asker's memory: an answer may be as large as a message to the
/// asker.
fn heard(asker: &Cell, answer: Result<Answer, oneshot::error::RecvError>) -> Result<Bytes, GuestRequestError> {
    let size = answer.as_ref().map_or(0, size_of_answer);
    if let Err(Refusal::TooLarge { allowed, .. }) = asker.mailbox.check_size(size) {
        return Err(GuestRequestError::TooLarge(allowed));
    }
    match answer {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(Unanswered::Crashed(_))) => Err(GuestRequestError::Crashed),
        Ok(Err(Unanswered::Failed(message))) => Err(GuestRequestError::Failed(message)),
        // `request-error` has no case of its own for it.
        Ok(Err(Unanswered::Declined(declined))) => Err(GuestRequestError::Failed(declined.to_string())),
        Ok(Err(Unanswered::NoReply)) => Err(GuestRequestError::NoAnswer),
        // As a crash after the message: it is not known to last.
        Ok(Err(Unanswered::NotSaved)) => Err(GuestRequestError::Crashed),
        Ok(Err(Unanswered::NotActivated(_))) => Err(GuestRequestError::Stopped),
        Ok(Err(Unanswered::TooLarge { allowed, .. })) => Err(GuestRequestError::TooLarge(allowed)),
        Ok(Err(Unanswered::Late)) => Err(GuestRequestError::Timeout),
        Ok(Err(Unanswered::NotTaken(undelivered))) => Err(GuestRequestError::NotSent(refused(undelivered.reason))),
        Err(_) => Err(GuestRequestError::Stopped),
    }
}

/// An answer from elsewhere, which takes room when it comes, as one from here does.
async fn in_room(
    asking: impl Future<Output = Result<Bytes, AskError>> + Send + 'static,
    room: Arc<Room>,
) -> Result<Bytes, AskError> {
    let taking = async move {
        let answer = asking.await;
        let size = size_from_elsewhere(&answer);
        room.take(size).map_err(|allowed| AskError::AnswerTooLarge { size: size as u64, allowed }).and(answer)
    };
    beside(taking).await.unwrap_or(Err(AskError::Stopped))
}

/// What comes of a future that goes on while the guest waits for something else, or computes. It ends with this one.
pub(super) async fn beside<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let (mut told, came) = oneshot::channel();
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = told.closed() => {}
            what = future => {
                // Who waited may have gone just now.
                _ = told.send(what);
            }
        }
    });
    came.await.ok()
}

fn size_from_elsewhere(answer: &Result<Bytes, AskError>) -> usize {
    match answer {
        Ok(answer) => answer.len(),
        Err(AskError::Failed { message }) => message.len(),
        Err(AskError::Rejected { reason }) => reason.as_ref().map_or(0, String::len),
        Err(_) => 0,
    }
}

/// Checks the size of an answer from elsewhere.
fn checked(asker: &Cell, answer: Result<Bytes, AskError>) -> Result<Bytes, GuestRequestError> {
    if let Err(Refusal::TooLarge { allowed, .. }) = asker.mailbox.check_size(size_from_elsewhere(&answer)) {
        return Err(GuestRequestError::TooLarge(allowed));
    }
    answer.map_err(|error| match error {
        AskError::NotSent(undelivered) => GuestRequestError::NotSent(refused(undelivered.reason)),
        AskError::Deadline => GuestRequestError::Timeout,
        AskError::Failed { message } => GuestRequestError::Failed(message),
        declined @ (AskError::Retry | AskError::Rejected { .. }) => GuestRequestError::Failed(declined.to_string()),
        AskError::NoReply => GuestRequestError::NoAnswer,
        AskError::Stopped | AskError::NotActivated(_) => GuestRequestError::Stopped,
        AskError::AnswerTooLarge { allowed, .. } => GuestRequestError::TooLarge(allowed),
        // It is not known whether the message was handled, or lasts.
        AskError::Crashed(_) | AskError::NotSaved | AskError::Lost { .. } => GuestRequestError::Crashed,
    })
}

/// A message to a topic that may be published.
pub(super) struct Publication {
    by: Arc<Cell>,
    topic: Topic,
    message: MessageEnvelope,
    ends: Option<Instant>,
    /// For the answer, of an asker that can have several.
    pub(super) room: Option<Arc<Room>>,
}

impl Publication {
    pub(super) fn new<U>(state: &mut ActorState<U>, topic: &str, payload: Bytes) -> Result<Self, GuestSendError> {
        let topic = Topic::new(topic).map_err(invalid)?;
        may_act(&state.cell)?;
        if !state.capabilities.may_publish(&topic) {
            state.deny(DeniedAction::Publish, topic.as_str());
            return Err(GuestSendError::Denied);
        }
        Ok(Self { by: Arc::clone(&state.cell), topic, message: state.envelope(payload), ends: state.ends, room: None })
    }

    /// Tells how many took it.
    pub(super) async fn publish(self) -> u32 {
        let Self { by, topic, message, .. } = self;
        let report = by.services.publish(&topic, message).await;
        // The guest gets the number of deliveries, the metrics the number of refusals.
        by.metrics.refused_publications.increment((report.refused.len() + report.dropped) as u64);
        report.delivered as u32
    }
}

async fn publish<U>(state: &mut ActorState<U>, topic: &str, payload: Bytes) -> Result<u32, GuestSendError> {
    Ok(Publication::new(state, topic, payload)?.publish().await)
}

/// Resolves the ask that waits on this reply subject.
pub(super) fn answer_asker(cell: &Cell, subject: &str, body: &Bytes) -> bool {
    let mut waiting = cell.reply_subject.lock();
    match waiting.take_if(|(reply_to, _)| **reply_to == *subject) {
        Some((_, reply)) => {
            drop(waiting);
            if !reply.send(Ok(body.clone())) {
                cell.metrics.unclaimed.increment(1);
            }
            true
        }
        None => false,
    }
}

fn subscribe<U>(state: &mut ActorState<U>, pattern: &str) -> Result<(), GuestSubscribeError> {
    let pattern = TopicPattern::new(pattern).map_err(|error| GuestSubscribeError::Invalid(error.to_string()))?;
    if !state.capabilities.may_subscribe(&pattern) {
        state.deny(DeniedAction::Subscribe, pattern.as_str());
        return Err(GuestSubscribeError::Denied);
    }
    let most = state.capabilities.subscriptions;
    if state.cell.subscribe(pattern, most) { Ok(()) } else { Err(GuestSubscribeError::TooMany(most)) }
}

fn log(cell: &Cell, level: Level, left_out: u64, line: &str) {
    let (actor, bytes, line) = (cell.id(), line.len(), shown(line));
    if left_out > 0 {
        tracing::warn!(target: "guest", %actor, left_out, "lines were left out");
    }
    match level {
        Level::Trace => tracing::trace!(target: "guest", %actor, bytes, "{line}"),
        Level::Debug => tracing::debug!(target: "guest", %actor, bytes, "{line}"),
        Level::Info => tracing::info!(target: "guest", %actor, bytes, "{line}"),
        Level::Warn => tracing::warn!(target: "guest", %actor, bytes, "{line}"),
        Level::Error => tracing::error!(target: "guest", %actor, bytes, "{line}"),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Waker},
    };

    use airssys_wasm_engine::{EngineConfig, WasmEngine};

    use super::*;
    use crate::{
        ActorRef, ActorSystem, NativeActor, NativeContext, NativeSpec, SystemConfig, runtime::in_flight::InFlight,
    };

    struct Busy;

    impl NativeActor for Busy {
        async fn handle(&mut self, _: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn an_error_for_which_there_is_no_room_is_refused_as_an_answer_is() {
        let (all, kept) = (InFlight::default(), |room: &InFlight| Some(Room::new(room, 8)));
        let replies = || {
            let (reply, answer) = oneshot::channel();
            (ReplyTo::in_room(reply, kept(&all)), answer)
        };
        let ((first, heard_first), (second, heard_second)) = (replies(), replies());
        let room = kept(&all).unwrap();
        room.take(3).unwrap();
        assert!(
            first.send(Err(Unanswered::Failed("x".repeat(6)))) && second.send(Err(Unanswered::Failed("x".repeat(5))))
        );
        assert!(matches!(heard_first.await, Ok(Err(Unanswered::TooLarge { size: 6, allowed: 5 }))));
        assert!(matches!(heard_second.await, Ok(Err(Unanswered::Failed(_)))));
    }

    #[tokio::test]
    async fn who_waits_for_room_in_a_group_is_known_to_wait() {
        let system = ActorSystem::new(
            WasmEngine::new(EngineConfig::small().compile_in_process()).unwrap(),
            SystemConfig::default(),
        );
        let mut actors: Vec<ActorRef> = Vec::new();
        for name in ["asker", "first", "second"] {
            let mut spec = NativeSpec::new(name.parse().unwrap(), || Busy);
            spec = spec.with_mailbox(1);
            let actor = system.spawn_native(spec).await.unwrap();
            // One message in flight, and one that fills the mailbox.
            actor.tell("x").await.unwrap();
            actor.tell("x").await.unwrap();
            actors.push(actor);
        }
        let cells: Vec<_> = actors.iter().map(|actor| Arc::clone(&actor.0)).collect();
        let group: Vec<_> = cells[1..].iter().map(|cell| Arc::new(Endpoint::Actor(Arc::clone(cell)))).collect();
        let question = MessageEnvelope::new("x");
        let long = Instant::now() + Duration::from_secs(60);
        let mut asking = pin!(ask_any(&cells[0], group.into_iter(), &question, long, Silence::IsAnAnswer, None));
        assert!(asking.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert!(cells[1].waits_for(&cells[0]).is_none(), "it would wait for itself");
        assert!(cells[2].waits_for(&cells[0]).is_some(), "the asker waits for the first alone");
    }
}

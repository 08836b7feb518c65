//! The queue of a mailbox: bounded, of many senders and one receiver, who takes what is there in parts. Not tokio's channel,
//! which has a block of 32 messages from the first on, and lets senders hold a place that they do not use.

use std::{
    collections::{BTreeMap, VecDeque},
    future::poll_fn,
    mem,
    pin::pin,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    task::{Context, Poll, Waker, ready},
};

use airssys_wasm_registry::Refusal;
use parking_lot::Mutex;
use tokio::task::coop;

use crate::runtime::sync::point;

pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    /// Items that nobody has taken yet. More only under the lock.
    len: AtomicUsize,
    capacity: usize,
    /// Whether senders wait for room. Written under the lock.
    has_waiting: AtomicBool,
}

struct State<T> {
    /// The newest items.
    last: VecDeque<T>,
    /// Those before them, by [`PART`].
    parts: VecDeque<VecDeque<T>>,
    /// An empty part, to be filled again.
    spare: VecDeque<T>,
    /// Of a receiver that has found nothing.
    receiver: Option<Waker>,
    /// In the order in which they came.
    waiting: BTreeMap<u64, Waiting<T>>,
    tickets: u64,
    closed: bool,
}

/// A sender that waits for room. Its item goes into the queue also if it is not polled.
struct Waiting<T> {
    item: T,
    sender: Waker,
}

/// The receiving end: items that are out of the lock, and count as in the queue until they are taken.
pub(crate) struct Receiver<T>(VecDeque<T>);

/// Items of a part. As many are moved in one go, and so much memory is freed and allocated again at most.
const PART: usize = 32;

/// Items for which an idle queue keeps memory, twice.
const FEW: usize = 8;

impl<T> Default for Receiver<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

/// An empty part, if it is a large one.
fn few<T>(part: &mut VecDeque<T>) -> VecDeque<T> {
    if part.capacity() > FEW { mem::take(part) } else { VecDeque::new() }
}

impl<T> State<T> {
    fn put(&mut self, item: T) {
        if self.last.len() == PART {
            let spare = mem::take(&mut self.spare);
            self.parts.push_back(mem::replace(&mut self.last, spare));
        }
        if self.last.capacity() == 0 {
            // Many actors have one message at a time.
            self.last.reserve_exact(1);
        }
        self.last.push_back(item);
    }

    /// Fills an empty part with the oldest items.
    fn take(&mut self, part: &mut VecDeque<T>) {
        match self.parts.pop_front() {
            Some(oldest) => self.spare = mem::replace(part, oldest),
            None => mem::swap(part, &mut self.last),
        }
    }
}

impl<T> Queue<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        let state = State {
            last: VecDeque::new(),
            parts: VecDeque::new(),
            spare: VecDeque::new(),
            receiver: None,
            waiting: BTreeMap::new(),
            tickets: 0,
            closed: false,
        };
        Self { state: Mutex::new(state), len: AtomicUsize::new(0), capacity, has_waiting: AtomicBool::new(false) }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::SeqCst)
    }

    /// For how many items there is room.
    pub(crate) fn room(&self) -> usize {
        self.capacity.saturating_sub(self.len())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Puts an item in at once. Nobody comes before those who wait.
    #[inline]
    pub(crate) fn try_push(&self, item: T) -> Result<(), (Refusal, T)> {
        let mut state = self.state.lock();
        if state.closed {
            return Err((Refusal::Stopped, item));
        }
        if self.len() >= self.capacity || !state.waiting.is_empty() {
            return Err((Refusal::Full, item));
        }
        self.len.fetch_add(1, Ordering::Relaxed);
        state.put(item);
        let receiver = state.receiver.take();
        drop(state);
        if let Some(receiver) = receiver {
            receiver.wake();
        }
        Ok(())
    }

    /// Puts an item in as soon as there is room, in the order of those who wait for it. Gives it back if the queue is closed
    /// or `over` is ready before. If the future is dropped, the item is in the queue or nowhere.
    pub(crate) async fn push(&self, item: T, over: impl Future<Output = ()>) -> Result<(), (Refusal, T)> {
        let (mut item, mut ticket, mut over) = (Some(item), None, pin!(over));
        poll_fn(|cx| {
            if let Some(new) = item.take() {
                match self.try_push(new) {
                    Err((Refusal::Full, back)) => match self.wait(back, cx) {
                        Ok(waits) => ticket = Some(waits),
                        Err(back) => return Poll::Ready(Err((Refusal::Stopped, back))),
                    },
                    done => return Poll::Ready(done),
                }
                // There may be room by now.
                point();
                self.admit();
            }
            let Some(Ticket(_, ticket)) = &ticket else { return Poll::Pending };
            match self.poll_waiting(*ticket, cx) {
                // It may have found room meanwhile.
                Poll::Pending if over.as_mut().poll(cx).is_ready() => {
                    let waiting = self.state.lock().waiting.remove(ticket);
                    Poll::Ready(waiting.map_or(Ok(()), |waiting| Err((Refusal::Full, waiting.item))))
                }
                polled => polled,
            }
        })
        .await
    }

    fn wait(&self, item: T, cx: &Context<'_>) -> Result<Ticket<'_, T>, T> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(item);
        }
        let ticket = state.tickets;
        state.tickets += 1;
        state.waiting.insert(ticket, Waiting { item, sender: cx.waker().clone() });
        self.has_waiting.store(true, Ordering::SeqCst);
        Ok(Ticket(self, ticket))
    }

    fn poll_waiting(&self, ticket: u64, cx: &Context<'_>) -> Poll<Result<(), (Refusal, T)>> {
        let mut state = self.state.lock();
        if state.closed {
            let waiting = state.waiting.remove(&ticket);
            return Poll::Ready(waiting.map_or(Ok(()), |waiting| Err((Refusal::Stopped, waiting.item))));
        }
        let Some(waiting) = state.waiting.get_mut(&ticket) else { return Poll::Ready(Ok(())) };
        if !waiting.sender.will_wake(cx.waker()) {
            let before = mem::replace(&mut waiting.sender, cx.waker().clone());
            drop(state);
            // Without the lock.
            drop(before);
        }
        Poll::Pending
    }

    /// Gives room that there is to those who wait for it.
    #[cold]
    fn admit(&self) {
        let mut more = true;
        while more {
            let mut state = self.state.lock();
            let has_room = !state.closed && self.len() < self.capacity;
            let first = if has_room { state.waiting.pop_first() } else { None };
            more = first.is_some();
            let (sender, receiver) = match first {
                Some((_, Waiting { item, sender })) => {
                    self.len.fetch_add(1, Ordering::Relaxed);
                    state.put(item);
                    (Some(sender), state.receiver.take())
                }
                None => (None, None),
            };
            self.has_waiting.store(!state.waiting.is_empty(), Ordering::SeqCst);
            drop(state);
            sender.into_iter().chain(receiver).for_each(Waker::wake);
        }
    }

    /// Takes no more items, and gives those back whose senders wait for room.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let receiver = state.receiver.take();
        let senders = state.waiting.values().map(|waiting| waiting.sender.clone());
        let woken: Vec<_> = senders.chain(receiver).collect();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Takes no more items, unless there is one in it or a sender that waits.
    pub(crate) fn close_if_empty(&self) -> bool {
        let mut state = self.state.lock();
        if self.len() > 0 || !state.waiting.is_empty() {
            return false;
        }
        state.closed = true;
        true
    }

    /// The oldest item, to where it is needed: each move costs time. `false` once the queue is closed and empty. Within tokio's
    /// budget.
    #[inline]
    pub(crate) fn poll_next(
        &self,
        receiver: &mut Receiver<T>,
        next: &mut Option<T>,
        cx: &mut Context<'_>,
    ) -> Poll<bool> {
        let budget = ready!(coop::poll_proceed(cx));
        let any = !receiver.0.is_empty() || ready!(self.poll_part(&mut receiver.0, cx));
        budget.made_progress();
        if any {
            *next = receiver.0.pop_front();
            self.taken();
        }
        Poll::Ready(any)
    }

    /// Fills an empty part. `false` once there will be nothing any more.
    fn poll_part(&self, part: &mut VecDeque<T>, cx: &mut Context<'_>) -> Poll<bool> {
        let mut state = self.state.lock();
        state.take(part);
        if !part.is_empty() || state.closed {
            return Poll::Ready(!part.is_empty());
        }
        let mut before = None;
        if !state.receiver.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            before = state.receiver.replace(cx.waker().clone());
        }
        let idle = (mem::take(&mut state.spare), mem::take(&mut state.parts), few(&mut state.last));
        drop(state);
        // Without the lock.
        drop((before, idle, few(part)));
        Poll::Pending
    }

    /// The oldest item, if there is one.
    pub(crate) fn try_next(&self, receiver: &mut Receiver<T>) -> Option<T> {
        if receiver.0.is_empty() {
            self.state.lock().take(&mut receiver.0);
        }
        let next = receiver.0.pop_front();
        if next.is_some() {
            self.taken();
        }
        next
    }

    /// An item is out of the queue.
    #[inline]
    fn taken(&self) {
        self.len.fetch_sub(1, Ordering::SeqCst);
        point();
        if self.has_waiting.load(Ordering::SeqCst) {
            self.admit();
        }
    }
}

/// A sender's place among those who wait.
struct Ticket<'a, T>(&'a Queue<T>, u64);

impl<T> Drop for Ticket<'_, T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        let waiting = state.waiting.remove(&self.1);
        if state.waiting.is_empty() {
            self.0.has_waiting.store(false, Ordering::SeqCst);
        }
        drop(state);
        // Without the lock.
        drop(waiting);
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::pending, rc::Rc, sync::Arc, task::Wake};

    use futures_util::future::LocalBoxFuture;
    use proptest::prelude::*;

    use super::*;

    fn next<T>(queue: &Queue<T>, receiver: &mut Receiver<T>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut next = None;
        queue.poll_next(receiver, &mut next, cx).map(|any| {
            assert_eq!(any, next.is_some());
            next
        })
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    /// What has left its waker, and whether it was woken.
    #[derive(Default, Clone)]
    struct Task(Arc<Woken>);

    impl Task {
        fn poll<T>(&self, poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
            poll(&mut Context::from_waker(&Waker::from(Arc::clone(&self.0))))
        }

        fn take(&self) -> bool {
            self.0.0.swap(false, Ordering::SeqCst)
        }
    }

    struct Sender<'a> {
        item: u32,
        push: LocalBoxFuture<'a, Result<(), (Refusal, u32)>>,
        over: Rc<Cell<bool>>,
        task: Task,
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        TryPush,
        Push,
        /// Polls one of the senders.
        Poll(usize),
        /// Polls one whose time is over.
        Over(usize),
        /// Drops one.
        Drop(usize),
        Next,
        TryNext,
        CloseIfEmpty,
        Close,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            12 => Just(Step::TryPush),
            8 => Just(Step::Push),
            6 => any::<usize>().prop_map(Step::Poll),
            4 => any::<usize>().prop_map(Step::Over),
            4 => any::<usize>().prop_map(Step::Drop),
            12 => Just(Step::Next),
            4 => Just(Step::TryNext),
            1 => Just(Step::CloseIfEmpty),
            1 => Just(Step::Close),
        ]
    }

    /// What a queue should be: items in it, and those of senders that wait.
    #[derive(Default)]
    struct Model {
        queue: VecDeque<u32>,
        waiting: VecDeque<u32>,
        closed: bool,
        idle: bool,
    }

    impl Model {
        /// Takes an item, and those that find room for it.
        fn next(&mut self, capacity: usize) -> Option<u32> {
            let item = self.queue.pop_front();
            while !self.closed
                && self.queue.len() < capacity
                && let Some(first) = self.waiting.pop_front()
            {
                self.queue.push_back(first);
            }
            item
        }
    }

    fn check(capacity: usize, steps: Vec<Step>) {
        let (queue, mut receiver, taker) = (Queue::new(capacity), Receiver::default(), Task::default());
        let (mut model, mut senders) = (Model::default(), Vec::<Sender<'_>>::new());
        for (item, step) in (0..).zip(steps) {
            match step {
                Step::TryPush => {
                    let expected = if model.closed {
                        Err((Refusal::Stopped, item))
                    } else if model.queue.len() >= capacity {
                        Err((Refusal::Full, item))
                    } else {
                        model.queue.push_back(item);
                        Ok(())
                    };
                    assert_eq!(queue.try_push(item), expected);
                }
                Step::Push => {
                    let over = Rc::new(Cell::new(false));
                    let is_over = Rc::clone(&over);
                    let over_when = poll_fn(move |_| if is_over.get() { Poll::Ready(()) } else { Poll::Pending });
                    let mut push = Box::pin(queue.push(item, over_when));
                    let task = Task::default();
                    match task.poll(|cx| push.as_mut().poll(cx)) {
                        Poll::Ready(Ok(())) => {
                            assert!(!model.closed && model.queue.len() < capacity);
                            model.queue.push_back(item);
                        }
                        Poll::Ready(Err(back)) => assert!(model.closed && back == (Refusal::Stopped, item)),
                        Poll::Pending => {
                            assert!(!model.closed && model.queue.len() >= capacity);
                            model.waiting.push_back(item);
                            senders.push(Sender { item, push, over, task });
                        }
                    }
                }
                Step::Poll(which) | Step::Over(which) if !senders.is_empty() => {
                    let which = which % senders.len();
                    let Sender { item, push, over, task } = &mut senders[which];
                    over.set(matches!(step, Step::Over(_)));
                    let waits = model.waiting.contains(item);
                    let woken = task.take();
                    let task = std::mem::take(task);
                    match task.poll(|cx| push.as_mut().poll(cx)) {
                        Poll::Pending => {
                            assert!(waits && !model.closed && !over.get());
                            senders[which].task = task;
                        }
                        Poll::Ready(done) => {
                            assert!(woken || over.get());
                            let refusal = if model.closed { Refusal::Stopped } else { Refusal::Full };
                            assert_eq!(done, if waits { Err((refusal, *item)) } else { Ok(()) });
                            let item = senders.swap_remove(which).item;
                            model.waiting.retain(|waiting| *waiting != item);
                        }
                    }
                }
                Step::Drop(which) if !senders.is_empty() => {
                    let item = senders.swap_remove(which % senders.len()).item;
                    model.waiting.retain(|waiting| *waiting != item);
                }
                Step::Poll(_) | Step::Over(_) | Step::Drop(_) => {}
                Step::Next => match taker.poll(|cx| next(&queue, &mut receiver, cx)) {
                    Poll::Pending => {
                        assert!(model.queue.is_empty() && !model.closed);
                        assert!(receiver.0.capacity() <= FEW && queue.state.lock().last.capacity() <= FEW);
                        model.idle = true;
                        taker.take();
                    }
                    Poll::Ready(next) => {
                        assert!(next.is_some() || model.closed);
                        assert_eq!(next, model.next(capacity));
                    }
                },
                Step::TryNext => assert_eq!(queue.try_next(&mut receiver), model.next(capacity)),
                Step::CloseIfEmpty => {
                    let closes = model.queue.is_empty() && model.waiting.is_empty();
                    assert_eq!(queue.close_if_empty(), closes);
                    model.closed |= closes;
                }
                Step::Close => {
                    queue.close();
                    model.closed = true;
                }
            }
            assert_eq!(queue.len(), model.queue.len());
            assert_eq!(queue.room(), capacity.saturating_sub(model.queue.len()));
            assert_eq!(queue.has_waiting.load(Ordering::SeqCst), !queue.state.lock().waiting.is_empty());
            // Whoever can go on was woken.
            for sender in &senders {
                let waits = model.waiting.contains(&sender.item) && !model.closed;
                assert_eq!(sender.task.0.0.load(Ordering::SeqCst), !waits);
            }
            if model.idle && !model.queue.is_empty() {
                assert!(taker.take());
                model.idle = false;
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_queue_is_as_its_model(capacity in 1_usize..5, steps in prop::collection::vec(step(), 0..120)) {
            check(capacity, steps);
        }

        #[test]
        fn a_long_queue_is_as_its_model(capacity in 1_usize..200, pushed in 0_usize..300, taken in 0_usize..300) {
            let pushes = std::iter::repeat_n(Step::TryPush, pushed);
            let takes = std::iter::repeat_n(Step::Next, taken);
            check(capacity, pushes.clone().chain(takes.clone()).chain(pushes).chain(takes).collect());
        }
    }

    #[test]
    fn the_item_of_a_sender_that_nobody_polls_is_taken() {
        let (queue, mut receiver) = (Queue::new(1), Receiver::default());
        queue.try_push(1).unwrap();
        let mut push = Box::pin(queue.push(2, pending()));
        assert!(Task::default().poll(|cx| push.as_mut().poll(cx)).is_pending());
        assert_eq!(queue.try_next(&mut receiver), Some(1));
        assert_eq!(queue.try_next(&mut receiver), Some(2));
    }

    #[tokio::test]
    async fn a_receiver_that_always_finds_something_yields() {
        let (queue, mut receiver) = (Queue::new(10_000), Receiver::default());
        (0..10_000).for_each(|item| queue.try_push(item).unwrap());
        let received = poll_fn(|cx| {
            let ready = std::iter::from_fn(|| Some(next(&queue, &mut receiver, cx).is_ready()));
            Poll::Ready(ready.take_while(|ready| *ready).count())
        });
        assert!((1..1_000).contains(&received.await));
    }
}

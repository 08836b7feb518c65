//! Messages that were accepted and not handled.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::Arc,
    time::SystemTime,
};

use airssys_wasm_registry::{ActorAddress, ComponentId, MessageEnvelope, Refusal};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{CrashReport, failure::report::because};

/// A message that was accepted and not handled.
///
/// Serialization drops the message's deadline, and the host function's error of a crash.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The letter's number, in order of arrival.
    pub number: u64,
    /// The receiver.
    pub to: ActorAddress,
    /// The message.
    pub message: MessageEnvelope,
    /// Why it was not handled.
    #[serde(flatten)]
    pub reason: DeadReason,
    /// When it became a dead letter.
    pub since: SystemTime,
}

/// Why a message is a dead letter.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DeadReason {
    /// The message crashed the actor.
    Poison {
        /// Attempts, each a crash or a request to retry: 1 without redelivery.
        attempts: u32,
        /// The last crash.
        report: Arc<CrashReport>,
    },
    /// The actor's handler rejected the message.
    Rejected {
        /// The handler's reason.
        because: Option<String>,
    },
    /// The actor's handler asked to retry the message, and the attempts are used up.
    RetriesExhausted {
        /// Attempts, each a crash or a request to retry, which was the last: 1 without redelivery.
        attempts: u32,
    },
    /// The actor was killed, or terminated by its supervisor, with the message in flight.
    Interrupted,
    /// The actor stopped before the message's turn.
    Stopped,
    /// The actor was to be brought into memory for the message, and did not start.
    NotActivated {
        /// Why, as text.
        because: String,
    },
    /// The message was to be sent later, and when its time came its receiver did not take it. The letter is for its
    /// sender.
    NotSent {
        /// The receiver.
        to: ComponentId,
        /// Why, as text.
        because: String,
    },
    /// The message was to go to an actor on another host, which did not take it.
    Undeliverable {
        /// Why.
        because: Refusal,
    },
    /// The message went to another host, which was lost: whether it was handled is not known.
    Lost,
    /// Another host may have the actor's name by now.
    Fenced,
    /// The message's deadline passed before its turn.
    Late,
    /// The actor was upgraded while the message waited, and the new version's `message_size` is smaller.
    TooLarge {
        /// The message's size in bytes.
        size: u64,
        /// The largest size in bytes.
        allowed: u64,
    },
}

impl fmt::Display for DeadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Poison { attempts: 1, report } => write!(f, "it crashed its receiver: {report}"),
            Self::Poison { attempts, report } => {
                write!(f, "it crashed its receiver {attempts} times, lastly: {report}")
            }
            Self::Rejected { because: reason } => {
                write!(f, "its receiver rejected it{}", because(reason.as_deref()))
            }
            Self::RetriesExhausted { attempts } => {
                write!(f, "its receiver asked to retry it, and had it {attempts} times")
            }
            Self::Interrupted => f.write_str("its receiver was ended while it had it"),
            Self::Stopped => f.write_str("its receiver stopped before it came to it"),
            Self::NotActivated { because } => write!(f, "its receiver did not start for it: {because}"),
            Self::NotSent { because, .. } => write!(f, "it was sent later, and was {because}"),
            Self::Undeliverable { because } => write!(f, "it was not taken on another host: {because}"),
            Self::Lost => f.write_str("its receiver's host was lost, and whether it was handled is not known"),
            Self::Fenced => f.write_str("its receiver's name may be another host's by now"),
            Self::Late => f.write_str("its deadline was over when its turn came"),
            Self::TooLarge { size, allowed } => {
                write!(f, "it has {size} bytes, and when its turn came its receiver took {allowed}")
            }
        }
    }
}

/// How many dead letters are kept. Beyond that the oldest are evicted, and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadLetterLimits {
    /// Letters in total. Default: 1,024.
    pub letters: usize,
    /// Letters for one name. Default: 128.
    pub letters_per_actor: usize,
    /// Bytes in total, of messages, crash reports and handlers' reasons. Default: 16 MiB.
    pub bytes: usize,
    /// Bytes for one name. Default: 2 MiB.
    pub bytes_per_actor: usize,
}

impl Default for DeadLetterLimits {
    fn default() -> Self {
        Self { letters: 1_024, letters_per_actor: 128, bytes: 16 << 20, bytes_per_actor: 2 << 20 }
    }
}

/// The dead letters of a system. Evicts first from the name that has the most.
pub struct DeadLetters {
    limits: DeadLetterLimits,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    letters: VecDeque<DeadLetter>,
    per_actor: HashMap<ComponentId, Share>,
    bytes: usize,
    next: u64,
    evicted: u64,
}

/// The letters of one name.
#[derive(Default, Clone, Copy)]
struct Share {
    letters: usize,
    bytes: usize,
}

impl DeadLetter {
    /// Whom it is sent to when it is sent again.
    pub(crate) fn receiver(&self) -> &ComponentId {
        match &self.reason {
            DeadReason::NotSent { to, .. } => to,
            _ => self.to.id(),
        }
    }

    /// Bytes that count against the limits: the message's, and the crash report's or the handler's reason's.
    fn size(&self) -> usize {
        let reason = match &self.reason {
            DeadReason::Poison { report, .. } => report.crash.size(),
            DeadReason::Rejected { because } => because.as_ref().map_or(0, String::len),
            DeadReason::NotActivated { because } => because.len(),
            DeadReason::NotSent { to, because } => to.as_str().len() + because.len(),
            _ => 0,
        };
        self.message.size() + reason
    }
}

impl Kept {
    /// Inserts a letter by its number, and evicts others beyond the limits.
    fn insert(&mut self, letter: DeadLetter, limits: &DeadLetterLimits) {
        let (id, size) = (letter.to.id().clone(), letter.size());
        let at = self.letters.partition_point(|other| other.number < letter.number);
        self.letters.insert(at, letter);
        self.bytes += size;
        let share = self.per_actor.entry(id.clone()).or_default();
        share.letters += 1;
        share.bytes += size;
        while self
            .per_actor
            .get(&id)
            .is_some_and(|share| share.letters > limits.letters_per_actor || share.bytes > limits.bytes_per_actor)
        {
            self.evict_of(&id);
        }
        while self.letters.len() > limits.letters || self.bytes > limits.bytes {
            let by_letters = self.letters.len() > limits.letters;
            let most =
                self.per_actor.iter().max_by_key(|(_, share)| if by_letters { share.letters } else { share.bytes });
            let Some(id) = most.map(|(id, _)| id.clone()) else { return };
            self.evict_of(&id);
        }
    }

    fn evict_of(&mut self, id: &ComponentId) {
        if let Some(oldest) = self.letters.iter().position(|letter| letter.to.id() == id) {
            self.remove(oldest);
            self.evicted += 1;
        }
    }

    fn remove(&mut self, at: usize) -> Option<DeadLetter> {
        let letter = self.letters.remove(at)?;
        self.bytes -= letter.size();
        if let Some(share) = self.per_actor.get_mut(letter.to.id()) {
            share.letters -= 1;
            share.bytes -= letter.size();
            if share.letters == 0 {
                self.per_actor.remove(letter.to.id());
            }
        }
        Some(letter)
    }
}

impl fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetters").field("len", &self.len()).field("evicted", &self.evicted()).finish()
    }
}

impl DeadLetters {
    pub(crate) fn new(limits: DeadLetterLimits) -> Self {
        Self { limits, kept: Mutex::default() }
    }

    pub(crate) fn add(&self, to: ActorAddress, message: MessageEnvelope, reason: DeadReason) {
        let kept = &mut *self.kept.lock();
        let number = kept.next;
        kept.next += 1;
        kept.insert(DeadLetter { number, to, message, reason, since: SystemTime::now() }, &self.limits);
    }

    /// How many letters are kept.
    pub fn len(&self) -> usize {
        self.kept.lock().letters.len()
    }

    /// Whether no letter is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many letters there have been, including those still kept.
    pub fn total(&self) -> u64 {
        self.kept.lock().next
    }

    /// How many letters were evicted.
    pub fn evicted(&self) -> u64 {
        self.kept.lock().evicted
    }

    /// A copy of all letters, the oldest first. Payloads are shared.
    pub fn list(&self) -> Vec<DeadLetter> {
        self.kept.lock().letters.iter().cloned().collect()
    }

    /// Removes a letter by its number.
    pub fn take(&self, number: u64) -> Option<DeadLetter> {
        let kept = &mut *self.kept.lock();
        let at = kept.letters.iter().position(|letter| letter.number == number)?;
        kept.remove(at)
    }

    /// Removes all letters, the oldest first.
    pub fn drain(&self) -> Vec<DeadLetter> {
        let kept = &mut *self.kept.lock();
        kept.per_actor.clear();
        kept.bytes = 0;
        kept.letters.drain(..).collect()
    }

    /// Puts back a letter that could not be resent.
    pub(crate) fn put_back(&self, letter: DeadLetter) {
        self.kept.lock().insert(letter, &self.limits);
    }
}

#[cfg(test)]
mod tests {
    use airssys_wasm_isolation::{Crash, CrashKind};
    use airssys_wasm_registry::ComponentRegistry;

    use super::*;
    use crate::During;

    fn addresses(names: &[&str]) -> Vec<ActorAddress> {
        let registry = ComponentRegistry::<()>::new();
        names.iter().map(|name| registry.register(&name.parse().unwrap(), Arc::new(())).unwrap()).collect()
    }

    fn payloads(letters: &DeadLetters) -> Vec<String> {
        letters.list().iter().map(|letter| String::from_utf8_lossy(letter.message.payload()).into_owned()).collect()
    }

    const LIMITS: DeadLetterLimits =
        DeadLetterLimits { letters: 100, letters_per_actor: 100, bytes: 1_000, bytes_per_actor: 1_000 };

    #[test]
    fn one_actor_does_not_crowd_out_the_others() {
        for limits in [
            DeadLetterLimits { letters_per_actor: 2, ..LIMITS },
            DeadLetterLimits { bytes_per_actor: 5, ..LIMITS },
            // With only a total limit, the name with the most is evicted from.
            DeadLetterLimits { letters: 3, ..LIMITS },
            DeadLetterLimits { bytes: 7, ..LIMITS },
        ] {
            let letters = DeadLetters::new(limits);
            let to = addresses(&["a", "b"]);
            letters.add(to[1].clone(), "b0".into(), DeadReason::Stopped);
            for n in 0..5 {
                letters.add(to[0].clone(), format!("a{n}").into(), DeadReason::Stopped);
            }
            assert_eq!(payloads(&letters), ["b0", "a3", "a4"], "{limits:?}");
            assert_eq!((letters.len(), letters.total(), letters.evicted()), (3, 6, 3));
        }
    }

    #[test]
    fn letters_and_bytes_are_bounded() {
        let letters = DeadLetters::new(DeadLetterLimits { letters: 3, bytes: 10, ..LIMITS });
        let to = addresses(&["a"]);
        for payload in ["1", "2", "3", "4"] {
            letters.add(to[0].clone(), payload.into(), DeadReason::Late);
        }
        assert_eq!(payloads(&letters), ["2", "3", "4"]);
        letters.add(to[0].clone(), "nine char".into(), DeadReason::Late);
        assert_eq!(payloads(&letters), ["4", "nine char"]);
        letters.add(to[0].clone(), "more than ten".into(), DeadReason::Late);
        assert_eq!((payloads(&letters).len(), letters.evicted()), (0, 6));
    }

    #[test]
    fn they_are_taken_and_put_back_in_their_order() {
        let letters = DeadLetters::new(DeadLetterLimits::default());
        let to = addresses(&["a"]);
        for payload in ["1", "2", "3"] {
            letters.add(to[0].clone(), payload.into(), DeadReason::Stopped);
        }
        let second = letters.take(1).unwrap();
        assert!(letters.take(1).is_none());
        assert_eq!(payloads(&letters), ["1", "3"]);
        letters.put_back(second);
        assert_eq!(payloads(&letters), ["1", "2", "3"]);
        assert_eq!(letters.drain().len(), 3);
        assert!(letters.is_empty());
        letters.add(to[0].clone(), "4".into(), DeadReason::Stopped);
        assert_eq!((payloads(&letters), letters.total()), (vec!["4".to_owned()], 4));
    }

    #[test]
    fn letters_can_be_written_and_read_again() {
        let to = addresses(&["a"]).remove(0);
        let letters = DeadLetters::new(LIMITS);
        let crash = Crash::of_host(CrashKind::OutOfFuel { allowed: 7 }, "handle");
        let report = CrashReport { actor: to.clone(), incarnation: 3, during: During::Message, crash };
        letters.add(to.clone(), "x".into(), DeadReason::Poison { attempts: 2, report: Arc::new(report) });
        letters.add(to.clone(), MessageEnvelope::new("y"), DeadReason::Stopped);
        letters.add(to.clone(), "z".into(), DeadReason::Rejected { because: Some("so".to_owned()) });
        letters.add(to, "z".into(), DeadReason::RetriesExhausted { attempts: 2 });
        let written = serde_json::to_value(letters.list()).unwrap();
        assert_eq!(written[0]["reason"], "poison");
        assert_eq!(written[0]["report"]["during"], "message");
        assert_eq!(written[1]["reason"], "stopped");
        assert_eq!((&written[2]["reason"], &written[2]["because"]), (&"rejected".into(), &"so".into()));
        assert_eq!((&written[3]["reason"], &written[3]["attempts"]), (&"retries-exhausted".into(), &2.into()));
        let read: Vec<DeadLetter> = serde_json::from_value(written).unwrap();
        for (read, letter) in read.iter().zip(letters.list()) {
            assert_eq!((read.number, &read.to, read.since), (letter.number, &letter.to, letter.since));
            assert_eq!((&read.message, read.reason.to_string()), (&letter.message, letter.reason.to_string()));
        }
    }

    #[test]
    fn the_reasons_that_letters_keep_count() {
        let to = addresses(&["a"]);
        for (because, kept) in [(Some("x".repeat(998)), 1), (None, 3)] {
            let letters = DeadLetters::new(LIMITS);
            for _ in 0..3 {
                letters.add(to[0].clone(), "x".into(), DeadReason::Rejected { because: because.clone() });
            }
            assert_eq!(letters.len(), kept);
        }
    }

    #[test]
    fn the_crashes_that_letters_keep_count() {
        let to = addresses(&["a"]);
        for (crash, kept) in [("x".repeat(1_000), 10), (String::new(), 100)] {
            let letters = DeadLetters::new(DeadLetterLimits { bytes: 20_000, bytes_per_actor: 20_000, ..LIMITS });
            for _ in 0..100 {
                let crash = Crash::of_host(CrashKind::HostPanic { message: crash.clone() }, "handle");
                let report = CrashReport { actor: to[0].clone(), incarnation: 1, during: During::Message, crash };
                letters.add(to[0].clone(), "x".into(), DeadReason::Poison { attempts: 1, report: Arc::new(report) });
            }
            assert!((kept / 2..=kept + 10).contains(&letters.len()), "{}", letters.len());
        }
    }
}

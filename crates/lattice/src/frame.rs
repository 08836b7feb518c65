//! What goes over the wire between two hosts: packets of frames.
//!
//! A packet is one message of NATS: a byte with the version, a head, and frames, each with its payload behind it. What comes in
//! is not trusted to be well-formed.

use std::{borrow::Cow, num::NonZeroU64};

use airssys_wasm_actor::{
    Bytes,
    registry::{ComponentId, ContentType, CorrelationId, Refusal, TraceContext},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::lease::Bucket;

/// The versions that are spoken here, from the oldest. A packet is of the latest that both hosts speak.
pub(crate) const VERSIONS: std::ops::RangeInclusive<u8> = 1..=1;

/// Bytes of frames in a packet, unless a single one has more.
pub(crate) const PACKET: usize = 32 << 10;
/// What a frame counts for at the least.
const SMALLEST: usize = 32;
/// Frames of a packet: one in memory may be many times as large as on the wire.
const FRAMES: usize = PACKET / SMALLEST;
/// Gaps that a packet may tell of. While there are so many, what comes after another is not taken.
pub(crate) const GAPS: usize = 64;
/// Bytes of a packet that are not payload, at the most: gaps, two names, a content type, and numbers.
pub(crate) const OVERHEAD: usize = 4 << 10;
/// Payloads with less bytes are copied out of the packets that they came in.
const SMALL: usize = 4 << 10;

/// One life of a host in a lattice. No other has the same. Of two with the same bucket the later is the larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct SessionId {
    /// That of the lattice's records: revisions begin anew in another.
    pub(crate) bucket: i128,
    /// That of the record by which it began.
    pub(crate) revision: NonZeroU64,
}

impl SessionId {
    /// None for a revision that no record has.
    pub(crate) fn new(bucket: Bucket, revision: u64) -> Option<Self> {
        Some(Self { bucket: bucket.0, revision: NonZeroU64::new(revision)? })
    }
}

/// What is at the beginning of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// Whose packet it is.
    pub(crate) from: SessionId,
    /// Whom it is for.
    pub(crate) to: SessionId,
    /// The number of the first frame in it, or, if there is none, the number that the next one will have.
    pub(crate) first: u64,
    /// Frames of the receiver with a number below this have come or are given up; the sender awaits this one.
    pub(crate) expected: u64,
    /// Those of them that have not come, and will not be taken any more: first and last. Of those below the receiver's `floor`
    /// nothing is said.
    pub(crate) missed: Vec<(u64, u64)>,
    /// The sender knows what became of its frames below this.
    pub(crate) floor: u64,
    /// Whether a packet is wanted back at once.
    pub(crate) wants: bool,
}

/// A part of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    Letter(Letter),
    Reply(Reply),
}

/// A message on its way to an actor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Letter {
    pub(crate) head: LetterHead,
    pub(crate) payload: Bytes,
}

/// A message on its way, but for its payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LetterHead {
    pub(crate) to: ComponentId,
    pub(crate) how: How,
    pub(crate) sender: Option<Sender>,
    /// Milliseconds until its deadline, when it left.
    pub(crate) left: Option<u64>,
    pub(crate) correlation: Option<CorrelationId>,
    pub(crate) trace: Option<TraceContext>,
    pub(crate) content_type: Option<ContentType>,
}

/// What its sender waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum How {
    /// Nothing: if the mailbox is full, it is refused.
    Send,
    /// Until the mailbox has taken it.
    Tell,
    /// For the answer.
    Ask,
}

impl How {
    pub(crate) fn is_ask(self) -> bool {
        self == Self::Ask
    }
}

/// An actor that sends, by a number that tells it apart from others of its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sender {
    pub(crate) id: ComponentId,
    pub(crate) number: u64,
}

/// What became of a letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Mailboxes have taken those with the numbers from the first to the last.
    Accepted { first: u64, last: u64 },
    /// It was not handled, and will not be.
    Refused { of: u64, reason: Refusal },
    /// It was asked, and this came of it.
    Answered { of: u64, answer: Answer },
}

/// What came of a letter that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Given(Bytes),
    /// The report of a crash, in JSON.
    Crashed(Bytes),
    Other(Other),
}

/// An answer that has nothing large in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Other {
    Failed(String),
    Retry,
    Rejected(Option<String>),
    NoReply,
    Stopped,
    NotSaved,
    NotActivated(String),
    Deadline,
    /// It was handled, and the answer is larger than the broker takes.
    TooLarge {
        size: u64,
        allowed: u64,
    },
    /// Its host has lost the one that had it.
    Lost {
        accepted: bool,
    },
}

/// A frame as it is written, with the number of bytes that come behind it.
#[derive(Serialize, Deserialize)]
enum Wire<'a> {
    Letter(Cow<'a, LetterHead>, u32),
    Accepted(u64, u64),
    Refused(u64, Refusal),
    Answer(u64, u32),
    Crashed(u64, u32),
    Other(u64, Other),
}

/// Bytes that are no packet of a version spoken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("a packet of version {0}")]
    Version(u8),
    #[error("not a packet")]
    Bytes,
}

impl Frame {
    /// Bytes that come behind it.
    fn tail(&self) -> &[u8] {
        match self {
            Self::Letter(letter) => &letter.payload,
            Self::Reply(Reply::Answered { answer: Answer::Given(bytes) | Answer::Crashed(bytes), .. }) => bytes,
            Self::Reply(_) => &[],
        }
    }

    /// Bytes that it takes at the most, roughly.
    pub(crate) fn size(&self) -> usize {
        let head = match self {
            Self::Letter(Letter { head, .. }) => {
                let sender = head.sender.as_ref().map_or(0, |sender| sender.id.as_str().len());
                let content_type = head.content_type.as_ref().map_or(0, |ty| ty.0.len());
                96 + head.to.as_str().len() + sender + content_type
            }
            Self::Reply(Reply::Answered { answer: Answer::Other(other), .. }) => match other {
                Other::Failed(text) | Other::NotActivated(text) | Other::Rejected(Some(text)) => SMALLEST + text.len(),
                _ => SMALLEST,
            },
            Self::Reply(_) => SMALLEST,
        };
        head + self.tail().len()
    }

    fn write(&self, to: &mut Vec<u8>) {
        let tail = self.tail();
        let len = u32::try_from(tail.len()).expect("a packet is smaller than the broker's limit");
        let wire = match self {
            Self::Letter(letter) => Wire::Letter(Cow::Borrowed(&letter.head), len),
            Self::Reply(Reply::Accepted { first, last }) => Wire::Accepted(*first, *last),
            Self::Reply(Reply::Refused { of, reason }) => Wire::Refused(*of, *reason),
            Self::Reply(Reply::Answered { of, answer: Answer::Given(_) }) => Wire::Answer(*of, len),
            Self::Reply(Reply::Answered { of, answer: Answer::Crashed(_) }) => Wire::Crashed(*of, len),
            Self::Reply(Reply::Answered { of, answer: Answer::Other(other) }) => Wire::Other(*of, other.clone()),
        };
        append(&wire, to);
        to.extend_from_slice(tail);
    }

    fn read(from: &mut Bytes) -> Result<Self, Malformed> {
        let frame = match take::<Wire<'static>>(from)? {
            Wire::Letter(head, len) => Self::Letter(Letter { head: head.into_owned(), payload: split(from, len)? }),
            Wire::Accepted(first, last) => Self::Reply(Reply::Accepted { first, last }),
            Wire::Refused(of, reason) => Self::Reply(Reply::Refused { of, reason }),
            Wire::Answer(of, len) => Self::Reply(Reply::Answered { of, answer: Answer::Given(split(from, len)?) }),
            Wire::Crashed(of, len) => Self::Reply(Reply::Answered { of, answer: Answer::Crashed(split(from, len)?) }),
            Wire::Other(of, other) => Self::Reply(Reply::Answered { of, answer: Answer::Other(other) }),
        };
        Ok(frame)
    }
}

/// A packet as bytes.
pub(crate) fn encode<'a>(head: &Head, frames: impl IntoIterator<Item = &'a Frame>) -> Bytes {
    let mut bytes = vec![*VERSIONS.end()];
    append(head, &mut bytes);
    frames.into_iter().for_each(|frame| frame.write(&mut bytes));
    bytes.into()
}

/// A packet from bytes. Large payloads are parts of them, not copies.
pub(crate) fn decode(mut bytes: Bytes) -> Result<(Head, Vec<Frame>), Malformed> {
    take_version(&mut bytes)?;
    let head = take::<Head>(&mut bytes)?;
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        if frames.len() == FRAMES {
            return Err(Malformed::Bytes);
        }
        frames.push(Frame::read(&mut bytes)?);
    }
    Ok((head, frames))
}

/// A letter by itself as bytes: a publication.
pub(crate) fn encode_letter(letter: &Letter) -> Bytes {
    let mut bytes = vec![*VERSIONS.end()];
    append(&letter.head, &mut bytes);
    bytes.extend_from_slice(&letter.payload);
    bytes.into()
}

/// A letter by itself from bytes.
pub(crate) fn decode_letter(mut bytes: Bytes) -> Result<Letter, Malformed> {
    take_version(&mut bytes)?;
    let head = take::<LetterHead>(&mut bytes)?;
    let len = bytes.len();
    Ok(Letter { head, payload: part(&mut bytes, len) })
}

/// Takes the version from the front, which must be one that is spoken here.
fn take_version(bytes: &mut Bytes) -> Result<(), Malformed> {
    let version = *bytes.first().ok_or(Malformed::Bytes)?;
    if !VERSIONS.contains(&version) {
        return Err(Malformed::Version(version));
    }
    _ = bytes.split_to(1);
    Ok(())
}

/// Appends a value.
pub(crate) fn append(value: &impl Serialize, to: &mut Vec<u8>) {
    // Only a value whose length is not known beforehand, or memory, could fail.
    postcard::to_io(value, to).expect("it has no sequences of unknown length");
}

/// Takes a value from the front.
pub(crate) fn take<T: DeserializeOwned>(from: &mut Bytes) -> Result<T, Malformed> {
    let (value, rest) = postcard::take_from_bytes::<T>(from).map_err(|_| Malformed::Bytes)?;
    let taken = from.len() - rest.len();
    _ = from.split_to(taken);
    Ok(value)
}

fn split(from: &mut Bytes, len: u32) -> Result<Bytes, Malformed> {
    let len = len as usize;
    if len > from.len() {
        return Err(Malformed::Bytes);
    }
    Ok(part(from, len))
}

/// The first bytes. What waits somewhere does not keep a packet, and what the client has read with it, in memory.
fn part(from: &mut Bytes, len: usize) -> Bytes {
    let part = from.split_to(len);
    if len < SMALL { Bytes::copy_from_slice(&part) } else { part }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn session() -> impl Strategy<Value = SessionId> {
        (any::<i128>(), any::<NonZeroU64>()).prop_map(|(bucket, revision)| SessionId { bucket, revision })
    }

    fn head() -> impl Strategy<Value = Head> {
        let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<bool>());
        let missed = prop::collection::vec(any::<(u64, u64)>(), 0..5);
        (session(), session(), numbers, missed).prop_map(|(from, to, (first, expected, floor, wants), missed)| Head {
            from,
            to,
            first,
            expected,
            missed,
            floor,
            wants,
        })
    }

    fn bytes() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..50).prop_map(Bytes::from)
    }

    fn id() -> impl Strategy<Value = ComponentId> {
        "[a-z]{1,9}(/[a-z0-9]{1,9})?".prop_map(|text| text.parse().unwrap())
    }

    fn letter() -> impl Strategy<Value = Frame> {
        let how = prop::sample::select(vec![How::Send, How::Tell, How::Ask]);
        let sender = prop::option::of((id(), any::<u64>()).prop_map(|(id, number)| Sender { id, number }));
        let trace = prop::option::of(any::<(u128, u64, bool)>());
        let numbers = (any::<Option<u64>>(), any::<Option<NonZeroU64>>());
        let content_type = prop::option::of("[a-z]{0,9}/[a-z]{0,9}");
        (id(), how, sender, numbers, trace, content_type, bytes()).prop_map(
            |(to, how, sender, (left, correlation), trace, content_type, payload)| {
                let trace = trace.map(|(trace_id, parent_id, sampled)| TraceContext { trace_id, parent_id, sampled });
                let correlation = correlation.map(CorrelationId);
                let content_type = content_type.map(|text| ContentType(text.as_str().into()));
                let head = LetterHead { to, how, sender, left, correlation, trace, content_type };
                Frame::Letter(Letter { head, payload })
            },
        )
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let other = prop_oneof![
            ".{0,20}".prop_map(Other::Failed),
            prop::option::of(".{0,20}").prop_map(Other::Rejected),
            any::<(u64, u64)>().prop_map(|(size, allowed)| Other::TooLarge { size, allowed }),
            any::<bool>().prop_map(|accepted| Other::Lost { accepted }),
            Just(Other::NoReply),
        ];
        let answer = prop_oneof![
            bytes().prop_map(Answer::Given),
            bytes().prop_map(Answer::Crashed),
            other.prop_map(Answer::Other)
        ];
        let refusal = prop_oneof![
            Just(Refusal::Moved),
            any::<(u64, u64)>().prop_map(|(size, allowed)| Refusal::TooLarge { size, allowed })
        ];
        prop_oneof![
            letter(),
            any::<(u64, u64)>().prop_map(|(first, last)| Frame::Reply(Reply::Accepted { first, last })),
            (any::<u64>(), refusal).prop_map(|(of, reason)| Frame::Reply(Reply::Refused { of, reason })),
            (any::<u64>(), answer).prop_map(|(of, answer)| Frame::Reply(Reply::Answered { of, answer })),
        ]
    }

    fn packet() -> impl Strategy<Value = (Head, Vec<Frame>)> {
        (head(), prop::collection::vec(frame(), 0..6))
    }

    #[test]
    fn a_small_payload_does_not_keep_its_packet_in_memory() {
        for (len, is_part) in [(0, false), (10, false), (SMALL - 1, false), (SMALL, true)] {
            let to = "shop".parse().unwrap();
            let head = LetterHead {
                to,
                how: How::Ask,
                sender: None,
                left: None,
                correlation: None,
                trace: None,
                content_type: None,
            };
            let letter = Letter { head, payload: vec![7; len].into() };
            let session = SessionId::new(Bucket(1), 1).unwrap();
            let head =
                Head { from: session, to: session, first: 1, expected: 1, missed: Vec::new(), floor: 1, wants: false };
            let answer = Reply::Answered { of: 1, answer: Answer::Given(letter.payload.clone()) };
            let packet = encode(&head, &[Frame::Letter(letter.clone()), Frame::Reply(answer)]);
            let (_, frames) = decode(packet.clone()).unwrap();
            let publication = encode_letter(&letter);
            let published = decode_letter(publication.clone()).unwrap();
            let parts = frames.iter().map(|frame| (frame.tail(), &packet));
            for (payload, of) in parts.chain([(&*published.payload, &publication)]) {
                assert_eq!(payload, letter.payload);
                assert_eq!(of.as_ptr_range().contains(&payload.as_ptr()), is_part, "{len}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_packet_is_read_as_it_was_written((head, frames) in packet()) {
            prop_assert_eq!(decode(encode(&head, &frames)), Ok((head, frames)));
        }

        #[test]
        fn a_letter_by_itself_is_read_as_it_was_written(frame in letter(), version: u8) {
            let Frame::Letter(letter) = frame else { return Ok(()) };
            let bytes = encode_letter(&letter);
            prop_assert_eq!(decode_letter(bytes.clone()), Ok(letter));
            let mut other = bytes.to_vec();
            other[0] = version;
            prop_assert_eq!(decode_letter(other.into()).is_ok(), VERSIONS.contains(&version));
        }

        #[test]
        fn frames_are_no_larger_than_they_say(frame in frame()) {
            let mut written = Vec::new();
            frame.write(&mut written);
            prop_assert!(written.len() <= frame.size(), "{} of {frame:?}", written.len());
        }

        #[test]
        fn a_packet_is_no_larger_than_its_payload_and_what_is_kept_for_the_rest(
            id in "[a-z]{128}",
            content_type in "[a-z]{255}",
            payload in bytes(),
        ) {
            let most = || SessionId { bucket: i128::MIN, revision: NonZeroU64::MAX };
            let head = Head {
                from: most(),
                to: most(),
                first: u64::MAX,
                expected: u64::MAX,
                missed: vec![(u64::MAX, u64::MAX); GAPS],
                floor: u64::MAX,
                wants: true,
            };
            let to: ComponentId = id.parse().unwrap();
            let sender = Some(Sender { id: to.clone(), number: u64::MAX });
            let trace = Some(TraceContext { trace_id: u128::MAX, parent_id: u64::MAX, sampled: true });
            let (left, correlation) = (Some(u64::MAX), Some(CorrelationId(NonZeroU64::MAX)));
            let content_type = Some(ContentType(content_type.as_str().into()));
            let letter = LetterHead { to, how: How::Ask, sender, left, correlation, trace, content_type };
            let len = payload.len();
            let packet = encode(&head, &[Frame::Letter(Letter { head: letter, payload })]);
            prop_assert!(packet.len() <= OVERHEAD + len, "{}", packet.len());
        }

        #[test]
        fn a_packet_cut_short_is_malformed_or_has_fewer_frames((head, frames) in packet(), cut in any::<prop::sample::Index>()) {
            let bytes = encode(&head, &frames);
            let cut = cut.index(bytes.len());
            if let Ok((read, some)) = decode(bytes.slice(..cut)) {
                prop_assert_eq!(read, head);
                prop_assert!(some.len() < frames.len() && frames.starts_with(&some));
            }
        }

        #[test]
        fn broken_packets_are_read_without_harm(
            (head, frames) in packet(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..9),
        ) {
            let mut bytes = encode(&head, &frames).to_vec();
            let len = bytes.len();
            for (at, byte) in changes {
                bytes[at.index(len)] = byte;
            }
            if let Ok((_, frames)) = decode(bytes.into()) {
                prop_assert!(frames.iter().map(|frame| frame.tail().len()).sum::<usize>() <= len);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let version = bytes.first().copied();
            match decode(bytes.into()) {
                Err(Malformed::Version(found)) => prop_assert!(version == Some(found) && !VERSIONS.contains(&found)),
                Ok(_) => prop_assert!(version.is_some_and(|version| VERSIONS.contains(&version))),
                Err(Malformed::Bytes) => {}
            }
        }
    }

    #[test]
    fn a_packet_has_so_many_frames() {
        let packet = |frames: usize| {
            let session = SessionId { bucket: 0, revision: NonZeroU64::MIN };
            let head =
                Head { from: session, to: session, first: 1, expected: 1, missed: vec![], floor: 1, wants: false };
            let frame = Frame::Reply(Reply::Accepted { first: 1, last: 0 });
            decode(encode(&head, std::iter::repeat_n(&frame, frames)))
        };
        assert_eq!(packet(FRAMES).unwrap().1.len(), FRAMES);
        assert_eq!(packet(FRAMES + 1), Err(Malformed::Bytes));
    }
}

//! What goes over the wire between two hosts: packets of frames.
//!
//! A packet is one message of NATS: a byte with the version, a head, and frames, each with its payload behind it. What comes in
//! is not trusted to be well-formed.

use std::{borrow::Cow, num::NonZeroU64, sync::Arc};

use airssys_wasm_actor::{
    Bytes,
    registry::{ComponentId, ContentType, CorrelationId, Refusal, TraceContext},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::lease::Bucket;

/// The versions that are spoken here. A packet is of the latest that both hosts speak.
pub(crate) const VERSIONS: Versions = Versions(1, CALLS);
/// The first version that has calls of exports.
pub(crate) const CALLS: u8 = 2;

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
/// So are those that are a smaller part of a packet. No packet of [`PACKET`] bytes has one that is not copied already.
const PART: usize = PACKET / SMALL;

/// The versions that a host speaks: the oldest and the latest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Versions(pub(crate) u8, pub(crate) u8);

impl Versions {
    pub(crate) fn contain(self, version: u8) -> bool {
        (self.0..=self.1).contains(&version)
    }

    /// The latest that both speak.
    pub(crate) fn common(self, other: Self) -> Option<u8> {
        let latest = self.1.min(other.1);
        (self.contain(latest) && other.contain(latest)).then_some(latest)
    }
}

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

/// A message of one host to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) version: u8,
    pub(crate) head: Head,
    pub(crate) frames: Vec<Frame>,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum How {
    /// Nothing: if the mailbox is full, it is refused.
    Send,
    /// Until the mailbox has taken it.
    Tell,
    /// For the answer.
    Ask,
    /// For the result of an export, whose parameters are the payload.
    Call(Arc<Callee>),
}

/// An export that is called.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Callee {
    pub(crate) export: Arc<str>,
    /// Its type, as the caller has it.
    pub(crate) ty: Arc<str>,
}

impl How {
    /// Whether more comes than that the mailbox has taken it.
    pub(crate) fn is_answered(&self) -> bool {
        matches!(self, Self::Ask | Self::Call(_))
    }

    /// The first version that has it.
    pub(crate) fn since(&self) -> u8 {
        if matches!(self, Self::Call(_)) { CALLS } else { VERSIONS.0 }
    }

    /// Bytes that it has on the wire, without numbers.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Call(callee) => callee.export.len() + callee.ty.len(),
            Self::Send | Self::Tell | Self::Ask => 0,
        }
    }
}

impl Letter {
    /// The first version that has it.
    pub(crate) fn since(&self) -> u8 {
        self.head.how.since()
    }

    /// Bytes that it counts for while it is on its way.
    pub(crate) fn size(&self) -> usize {
        self.payload.len() + self.head.how.size()
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

impl Reply {
    /// Bytes that it counts for while it is not confirmed: those of what was answered.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Answered { answer: Answer::Given(bytes) | Answer::Crashed(bytes), .. } => bytes.len(),
            Self::Answered { answer: Answer::Other(other), .. } => match other {
                Other::Failed(text)
                | Other::NotActivated(text)
                | Other::Rejected(Some(text))
                | Other::Contract(Some(text)) => text.len(),
                _ => 0,
            },
            Self::Accepted { .. } | Self::Refused { .. } => 0,
        }
    }
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
    /// The export that was called has this type, in place of the caller's, or there is none.
    Contract(Option<String>),
    /// Who was called has no exports.
    NoComponent,
    /// What was called with, or if it was `made` the result, is not of the export's type.
    Malformed {
        made: bool,
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
        match self {
            Self::Letter(Letter { head, payload }) => {
                let sender = head.sender.as_ref().map_or(0, |sender| sender.id.as_str().len());
                let content_type = head.content_type.as_ref().map_or(0, |ty| ty.0.len());
                96 + head.to.as_str().len() + sender + content_type + head.how.size() + payload.len()
            }
            Self::Reply(reply) => SMALLEST + reply.size(),
        }
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

    /// The first version that has it.
    pub(crate) fn since(&self) -> u8 {
        match self {
            Self::Letter(letter) => letter.since(),
            Self::Reply(
                Reply::Refused { reason: Refusal::NotOffered, .. }
                | Reply::Answered {
                    answer: Answer::Other(Other::Contract(_) | Other::NoComponent | Other::Malformed { .. }),
                    ..
                },
            ) => CALLS,
            Self::Reply(_) => VERSIONS.0,
        }
    }

    /// Reads the next frame of a packet of so many bytes.
    fn read(from: &mut Bytes, version: u8, packet: usize) -> Result<Self, Malformed> {
        let split = |from: &mut Bytes, len| split(from, len, packet);
        let frame = match take::<Wire<'static>>(from)? {
            Wire::Letter(head, len) => Self::Letter(Letter { head: head.into_owned(), payload: split(from, len)? }),
            Wire::Accepted(first, last) => Self::Reply(Reply::Accepted { first, last }),
            Wire::Refused(of, reason) => Self::Reply(Reply::Refused { of, reason }),
            Wire::Answer(of, len) => Self::Reply(Reply::Answered { of, answer: Answer::Given(split(from, len)?) }),
            Wire::Crashed(of, len) => Self::Reply(Reply::Answered { of, answer: Answer::Crashed(split(from, len)?) }),
            Wire::Other(of, other) => Self::Reply(Reply::Answered { of, answer: Answer::Other(other) }),
        };
        if frame.since() > version { Err(Malformed::Bytes) } else { Ok(frame) }
    }
}

/// A packet as bytes. All in it is of the version.
pub(crate) fn encode<'a>(version: u8, head: &Head, frames: impl IntoIterator<Item = &'a Frame>) -> Bytes {
    let mut bytes = vec![version];
    append(head, &mut bytes);
    frames.into_iter().for_each(|frame| frame.write(&mut bytes));
    bytes.into()
}

/// A packet from bytes. Large payloads are parts of them, not copies.
pub(crate) fn decode(mut bytes: Bytes, spoken: Versions) -> Result<Packet, Malformed> {
    let packet = bytes.len();
    let version = take_version(&mut bytes, spoken)?;
    let head = take::<Head>(&mut bytes)?;
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        if frames.len() == FRAMES {
            return Err(Malformed::Bytes);
        }
        frames.push(Frame::read(&mut bytes, version, packet)?);
    }
    Ok(Packet { version, head, frames })
}

/// A letter by itself as bytes: a publication.
pub(crate) fn encode_letter(version: u8, letter: &Letter) -> Bytes {
    let mut bytes = vec![version];
    append(&letter.head, &mut bytes);
    bytes.extend_from_slice(&letter.payload);
    bytes.into()
}

/// A letter by itself from bytes.
pub(crate) fn decode_letter(mut bytes: Bytes, spoken: Versions) -> Result<Letter, Malformed> {
    let publication = bytes.len();
    take_version(&mut bytes, spoken)?;
    let head = take::<LetterHead>(&mut bytes)?;
    let len = bytes.len();
    Ok(Letter { head, payload: part(&mut bytes, len, publication) })
}

/// Takes the version from the front, which must be one that is spoken.
fn take_version(bytes: &mut Bytes, spoken: Versions) -> Result<u8, Malformed> {
    let version = *bytes.first().ok_or(Malformed::Bytes)?;
    if !spoken.contain(version) {
        return Err(Malformed::Version(version));
    }
    _ = bytes.split_to(1);
    Ok(version)
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

fn split(from: &mut Bytes, len: u32, packet: usize) -> Result<Bytes, Malformed> {
    let len = len as usize;
    if len > from.len() {
        return Err(Malformed::Bytes);
    }
    Ok(part(from, len, packet))
}

/// The first bytes. What waits somewhere does not keep a packet of so many bytes, and what the client has read with it, in memory.
fn part(from: &mut Bytes, len: usize, packet: usize) -> Bytes {
    let part = from.split_to(len);
    if len < SMALL.max(packet / PART) { Bytes::copy_from_slice(&part) } else { part }
}

#[cfg(test)]
mod recorded;

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

    fn call() -> impl Strategy<Value = How> {
        ("[a-z:/#]{0,20}", ".{0,20}").prop_map(|(export, ty)| {
            How::Call(Arc::new(Callee { export: export.as_str().into(), ty: ty.as_str().into() }))
        })
    }

    fn letter() -> impl Strategy<Value = Frame> {
        let how = prop_oneof![3 => prop::sample::select(vec![How::Send, How::Tell, How::Ask]), 1 => call()];
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
            prop::option::of(".{0,20}").prop_map(Other::Contract),
            Just(Other::NoComponent),
            any::<bool>().prop_map(|made| Other::Malformed { made }),
        ];
        let answer = prop_oneof![
            bytes().prop_map(Answer::Given),
            bytes().prop_map(Answer::Crashed),
            other.prop_map(Answer::Other)
        ];
        let refusal = prop_oneof![
            Just(Refusal::Moved),
            Just(Refusal::NotOffered),
            any::<(u64, u64)>().prop_map(|(size, allowed)| Refusal::TooLarge { size, allowed })
        ];
        prop_oneof![
            letter(),
            any::<(u64, u64)>().prop_map(|(first, last)| Frame::Reply(Reply::Accepted { first, last })),
            (any::<u64>(), refusal).prop_map(|(of, reason)| Frame::Reply(Reply::Refused { of, reason })),
            (any::<u64>(), answer).prop_map(|(of, answer)| Frame::Reply(Reply::Answered { of, answer })),
        ]
    }

    fn packet() -> impl Strategy<Value = Packet> {
        (VERSIONS.0..=VERSIONS.1, head(), prop::collection::vec(frame(), 0..6)).prop_map(
            |(version, head, mut frames)| {
                frames.retain(|frame| frame.since() <= version);
                Packet { version, head, frames }
            },
        )
    }

    fn written(Packet { version, head, frames }: &Packet) -> Bytes {
        encode(*version, head, frames)
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
            let packet = encode(VERSIONS.1, &head, &[Frame::Letter(letter.clone()), Frame::Reply(answer)]);
            let frames = decode(packet.clone(), VERSIONS).unwrap().frames;
            let publication = encode_letter(VERSIONS.1, &letter);
            let published = decode_letter(publication.clone(), VERSIONS).unwrap();
            let parts = frames.iter().map(|frame| (frame.tail(), &packet));
            for (payload, of) in parts.chain([(&*published.payload, &publication)]) {
                assert_eq!(payload, letter.payload);
                assert_eq!(of.as_ptr_range().contains(&payload.as_ptr()), is_part, "{len}");
            }
        }
    }

    #[test]
    fn a_payload_does_not_keep_a_packet_in_memory_that_is_many_times_as_large() {
        for (beside, is_part) in [(1, true), (2 * PART, false)] {
            let session = SessionId::new(Bucket(1), 1).unwrap();
            let head =
                Head { from: session, to: session, first: 1, expected: 1, missed: Vec::new(), floor: 1, wants: false };
            let frames = [SMALL, beside * SMALL]
                .map(|len| Frame::Reply(Reply::Answered { of: 1, answer: Answer::Given(vec![7; len].into()) }));
            let packet = encode(VERSIONS.1, &head, &frames);
            let read = decode(packet.clone(), VERSIONS).unwrap().frames;
            assert_eq!(read, frames);
            assert_eq!(packet.as_ptr_range().contains(&read[0].tail().as_ptr()), is_part);
            assert!(packet.as_ptr_range().contains(&read[1].tail().as_ptr()), "the control");
        }
    }

    proptest! {
        #[test]
        fn a_packet_is_read_as_it_was_written(packet in packet()) {
            prop_assert_eq!(decode(written(&packet), VERSIONS), Ok(packet));
        }

        #[test]
        fn a_version_has_nothing_of_a_later_one(head in head(), frame in frame(), version in VERSIONS.0..=VERSIONS.1) {
            let of_it = decode(encode(version, &head, [&frame]), VERSIONS);
            prop_assert_eq!(of_it.is_ok(), frame.since() <= version, "{:?}", frame);
            let before = Versions(VERSIONS.0, version - 1);
            prop_assert_eq!(decode(encode(version, &head, [&frame]), before), Err(Malformed::Version(version)));
        }

        #[test]
        fn a_letter_by_itself_is_read_as_it_was_written(frame in letter(), version: u8) {
            let Frame::Letter(letter) = frame else { return Ok(()) };
            let bytes = encode_letter(VERSIONS.0, &letter);
            prop_assert_eq!(decode_letter(bytes.clone(), VERSIONS), Ok(letter));
            let mut other = bytes.to_vec();
            other[0] = version;
            prop_assert_eq!(decode_letter(other.into(), VERSIONS).is_ok(), VERSIONS.contain(version));
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
            how in prop_oneof![Just(How::Ask), call()],
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
            let len = payload.len() + how.size();
            let letter = LetterHead { to, how, sender, left, correlation, trace, content_type };
            let packet = encode(VERSIONS.1, &head, &[Frame::Letter(Letter { head: letter, payload })]);
            prop_assert!(packet.len() <= OVERHEAD + len, "{}", packet.len());
        }

        #[test]
        fn a_packet_cut_short_is_malformed_or_has_fewer_frames(packet in packet(), cut in any::<prop::sample::Index>()) {
            let bytes = written(&packet);
            let cut = cut.index(bytes.len());
            if let Ok(read) = decode(bytes.slice(..cut), VERSIONS) {
                prop_assert_eq!(read.head, packet.head);
                prop_assert!(read.frames.len() < packet.frames.len() && packet.frames.starts_with(&read.frames));
            }
        }

        #[test]
        fn broken_packets_are_read_without_harm(
            packet in packet(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..9),
        ) {
            let mut bytes = written(&packet).to_vec();
            let len = bytes.len();
            for (at, byte) in changes {
                bytes[at.index(len)] = byte;
            }
            if let Ok(Packet { frames, .. }) = decode(bytes.into(), VERSIONS) {
                prop_assert!(frames.iter().map(|frame| frame.tail().len()).sum::<usize>() <= len);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let version = bytes.first().copied();
            match decode(bytes.into(), VERSIONS) {
                Err(Malformed::Version(found)) => prop_assert!(version == Some(found) && !VERSIONS.contain(found)),
                Ok(packet) => prop_assert!(version == Some(packet.version) && VERSIONS.contain(packet.version)),
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
            decode(encode(VERSIONS.1, &head, std::iter::repeat_n(&frame, frames)), VERSIONS)
        };
        assert_eq!(packet(FRAMES).unwrap().frames.len(), FRAMES);
        assert_eq!(packet(FRAMES + 1), Err(Malformed::Bytes));
    }
}

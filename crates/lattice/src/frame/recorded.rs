//! What hosts of released versions write and read, byte for byte. On the wire a field has no name, and a variant is a number: they do not
//! understand a field that is new, or a variant before others.
//!
//! What is recorded here stays as it is while its version is spoken.

use std::{any::type_name, collections::BTreeMap, fmt::Debug};

use super::*;
use crate::{
    directory::{HostRecord, NameRecord},
    lease::{Owner, Session, Token},
};

const CHANGED: &str = "a released version would no longer be understood: append what is new, as a part of a new version (`VERSIONS`, \
    `since`), and record it here";
const RECORDS: &str = "records of a released version would no longer be understood, unless it is a new field with a default: record it \
    here then, and what was written before it";

const HEAD: &[u8] = b"\xaa\xb4\xae\xf2\xed\xa9\xfe\xfa0\xac\x02\
    \xaa\xb4\xae\xf2\xed\xa9\xfe\xfa0\x01\
    \x07\x08\x02\x03\x04\x06\x06\x02\x01";
const HEARTBEAT: &[u8] = b"\xaa\xb4\xae\xf2\xed\xa9\xfe\xfa0\xac\x02";
const PUBLICATION: &[u8] = b"\x04shop\x00\x01\x04cart\xac\x02\x01\xdc\x0b\x01\x01\
    \x01\x80\x80\x80\x80\x80\x80\x80\x80\x80\x02\x05\x01\x01\x0atext/plainhello";
const HOST: &str = concat!(
    r#"{"session":{"process":18446744073709551615,"number":2},"since":300,"versions":[1,2],"labels":{"zone":"eu"},"#,
    r#""topics":["orders.>"],"kinds":["cart"],"room":8,"lease":10000}"#
);
const NAME: &str = concat!(
    r#"{"owner":{"host":"a","token":{"bucket":1764000000123456789,"revision":300,"#,
    r#""session":{"process":18446744073709551615,"number":2}}},"leased":true}"#
);

const BUCKET: Bucket = Bucket(1_764_000_000_123_456_789);

fn session() -> SessionId {
    SessionId::new(BUCKET, 300).unwrap()
}

fn head() -> Head {
    let to = SessionId { revision: NonZeroU64::MIN, ..session() };
    Head { from: session(), to, first: 7, expected: 8, missed: vec![(3, 4), (6, 6)], floor: 2, wants: true }
}

fn letter(how: How) -> Letter {
    let head = LetterHead {
        to: "shop".parse().unwrap(),
        how,
        sender: None,
        left: None,
        correlation: None,
        trace: None,
        content_type: None,
    };
    Letter { head, payload: "hello".into() }
}

/// A letter with all that it may have.
fn full(how: How) -> Letter {
    let Letter { head, payload } = letter(how);
    let head = LetterHead {
        sender: Some(Sender { id: "cart".parse().unwrap(), number: 300 }),
        left: Some(1_500),
        correlation: Some(CorrelationId(NonZeroU64::MIN)),
        trace: Some(TraceContext { trace_id: 1 << 64, parent_id: 5, sampled: true }),
        content_type: Some(ContentType("text/plain".into())),
        ..head
    };
    Letter { head, payload }
}

fn refused(reason: Refusal) -> Frame {
    Frame::Reply(Reply::Refused { of: 300, reason })
}

fn answered(answer: Answer) -> Frame {
    Frame::Reply(Reply::Answered { of: 300, answer })
}

fn other(other: Other) -> Frame {
    answered(Answer::Other(other))
}

fn first_version() -> Vec<(Frame, &'static [u8])> {
    vec![
        (Frame::Letter(letter(How::Send)), b"\x00\x04shop\x00\x00\x00\x00\x00\x00\x05hello"),
        (Frame::Letter(letter(How::Tell)), b"\x00\x04shop\x01\x00\x00\x00\x00\x00\x05hello"),
        (
            Frame::Letter(full(How::Ask)),
            b"\x00\x04shop\x02\x01\x04cart\xac\x02\x01\xdc\x0b\x01\x01\
                \x01\x80\x80\x80\x80\x80\x80\x80\x80\x80\x02\x05\x01\x01\x0atext/plain\x05hello",
        ),
        (Frame::Reply(Reply::Accepted { first: 300, last: 301 }), b"\x01\xac\x02\xad\x02"),
        (refused(Refusal::Full), b"\x02\xac\x02\x00"),
        (refused(Refusal::Stopped), b"\x02\xac\x02\x01"),
        (refused(Refusal::Restarting), b"\x02\xac\x02\x02"),
        (refused(Refusal::TooLarge { size: 300, allowed: 5 }), b"\x02\xac\x02\x03\xac\x02\x05"),
        (refused(Refusal::Moved), b"\x02\xac\x02\x04"),
        (refused(Refusal::Quarantined), b"\x02\xac\x02\x05"),
        (refused(Refusal::NoHandler), b"\x02\xac\x02\x06"),
        (refused(Refusal::Unreachable), b"\x02\xac\x02\x07"),
        (refused(Refusal::Unknown), b"\x02\xac\x02\x08"),
        (answered(Answer::Given("hello".into())), b"\x03\xac\x02\x05hello"),
        (answered(Answer::Crashed("{}".into())), b"\x04\xac\x02\x02{}"),
        (other(Other::Failed("why".into())), b"\x05\xac\x02\x00\x03why"),
        (other(Other::Retry), b"\x05\xac\x02\x01"),
        (other(Other::Rejected(None)), b"\x05\xac\x02\x02\x00"),
        (other(Other::Rejected(Some("why".into()))), b"\x05\xac\x02\x02\x01\x03why"),
        (other(Other::NoReply), b"\x05\xac\x02\x03"),
        (other(Other::Stopped), b"\x05\xac\x02\x04"),
        (other(Other::NotSaved), b"\x05\xac\x02\x05"),
        (other(Other::NotActivated("why".into())), b"\x05\xac\x02\x06\x03why"),
        (other(Other::Deadline), b"\x05\xac\x02\x07"),
        (other(Other::TooLarge { size: 300, allowed: 5 }), b"\x05\xac\x02\x08\xac\x02\x05"),
        (other(Other::Lost { accepted: true }), b"\x05\xac\x02\x09\x01"),
    ]
}

/// What the second has besides.
fn calls() -> Vec<(Frame, &'static [u8])> {
    let callee = Callee { export: "acme:kv/store@1.0.0#get".into(), ty: "func(key: string)".into() };
    vec![
        (
            Frame::Letter(full(How::Call(Arc::new(callee)))),
            b"\x00\x04shop\x03\x17acme:kv/store@1.0.0#get\x11func(key: string)\x01\x04cart\xac\x02\x01\xdc\x0b\x01\x01\
                \x01\x80\x80\x80\x80\x80\x80\x80\x80\x80\x02\x05\x01\x01\x0atext/plain\x05hello",
        ),
        (refused(Refusal::NotOffered), b"\x02\xac\x02\x09"),
        (other(Other::Contract(None)), b"\x05\xac\x02\x0a\x00"),
        (other(Other::Contract(Some("func()".into()))), b"\x05\xac\x02\x0a\x01\x06func()"),
        (other(Other::NoComponent), b"\x05\xac\x02\x0b"),
        (other(Other::Malformed { made: true }), b"\x05\xac\x02\x0c\x01"),
    ]
}

#[test]
fn frames_are_those_that_released_versions_have() {
    for (version, mut frames) in [(1, first_version()), (2, calls())] {
        frames.iter().for_each(|(frame, _)| assert_eq!(frame.since(), version, "{CHANGED}: {frame:?}"));
        // A version has those before it.
        if version > 1 {
            frames.extend(first_version());
        }
        for (frame, recorded) in frames {
            let bytes = Bytes::from([&[version], HEAD, recorded].concat());
            assert_eq!(encode(version, &head(), [&frame]), bytes, "{CHANGED}: {frame:?}");
            let packet = Packet { version, head: head(), frames: vec![frame] };
            assert_eq!(decode(bytes, VERSIONS).as_ref(), Ok(&packet), "{CHANGED}");
        }
    }
}

#[test]
fn nothing_comes_after_what_is_recorded() {
    fn is_last<T: DeserializeOwned>(last: u8) {
        // Whatever a later one has behind its number.
        let of = |number| take::<T>(&mut [vec![number], vec![1; 64]].concat().into());
        assert!(of(last).is_ok() && of(last + 1).is_err(), "{CHANGED}: {}", type_name::<T>());
    }
    is_last::<Wire<'_>>(5);
    is_last::<Refusal>(9);
    is_last::<Other>(12);
    is_last::<How>(3);
}

#[test]
fn heartbeats_and_publications_are_those_of_released_versions() {
    let mut heartbeat = Vec::new();
    append(&session(), &mut heartbeat);
    assert_eq!(heartbeat, HEARTBEAT, "{CHANGED}");
    assert_eq!(take::<SessionId>(&mut HEARTBEAT.into()), Ok(session()), "{CHANGED}");
    for version in 1..=2 {
        let (letter, bytes) = (full(How::Send), Bytes::from([&[version], PUBLICATION].concat()));
        assert_eq!(encode_letter(version, &letter), bytes, "{CHANGED}");
        assert_eq!(decode_letter(bytes, VERSIONS), Ok(letter), "{CHANGED}");
    }
}

#[test]
fn records_are_those_of_released_versions() {
    let session = Session { process: u64::MAX, number: 2 };
    let token = Token { bucket: BUCKET, revision: 300, session };
    let host = HostRecord {
        session: Some(session),
        since: Some(300),
        versions: Versions(1, 2),
        labels: BTreeMap::from([("zone".to_owned(), "eu".to_owned())]),
        topics: vec!["orders.>".parse().unwrap()],
        kinds: vec!["cart".parse().unwrap()],
        room: 8,
        lease: Some(10_000),
    };
    let name = NameRecord { owner: Owner { host: "a".parse().unwrap(), token }, leased: true };
    is_recorded(&host, HOST);
    is_recorded(&name, NAME);
    // What did not tell its lease, and what had neither kinds nor deployments.
    let before = HOST.replace(r#","lease":10000"#, "");
    let host = HostRecord { lease: None, ..host };
    assert_eq!(serde_json::from_str::<HostRecord>(&before).unwrap(), host);
    let before = before.replace(r#","kinds":["cart"],"room":8"#, "");
    assert_eq!(serde_json::from_str::<HostRecord>(&before).unwrap(), HostRecord { kinds: vec![], room: 0, ..host });
}

fn is_recorded<T: Serialize + DeserializeOwned + PartialEq + Debug>(record: &T, recorded: &str) {
    assert_eq!(serde_json::to_string(record).unwrap(), recorded, "{RECORDS}");
    // A later version may have fields that this one does not know.
    for json in [recorded, &recorded.replacen('{', r#"{"later":1,"#, 1)] {
        assert_eq!(serde_json::from_str::<T>(json).as_ref().expect(RECORDS), record, "{RECORDS}");
    }
}

//! Names of components, topics, and patterns of both.

use std::{error::Error, sync::Arc};

use airssys_wasm_actor::{Capabilities, NamePattern};
use airssys_wasm_registry::{
    ComponentId, Load, MessageBroker, MessageEnvelope, Sink, Topic, TopicPattern, Undelivered, WhenFull,
};

use crate::host::{clean, run, told};

/// Lines looked at. Each is held against each other.
const MOST: usize = 16;

/// Lines of text, each of them taken for a name, a topic, and a pattern of either.
///
/// - What is accepted is what the documentation of [`ComponentId`], [`Topic`], [`TopicPattern`] and [`NamePattern`] says,
///   and nothing else.
/// - It is shown as it was written, read back as the same, and read as the same out of a `Component.toml`.
/// - A pattern matches and covers as a model says that goes token by token, and a pattern made from a topic matches it.
/// - A broker delivers to those whose pattern matches, also when some have left.
/// - Neither what is accepted nor an error shows a control character.
pub fn names(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (mut ids, mut globs, mut topics, mut patterns) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for line in text.split('\n').take(MOST) {
        ids.extend(id(line));
        globs.extend(glob(line));
        topics.extend(topic(line));
        patterns.extend(pattern(line));
    }
    for glob in &globs {
        for id in &ids {
            assert_eq!(glob.matches(id), glob_matches(glob.as_str(), id.as_str()), "{glob:?} {id}");
        }
    }
    for pattern in &patterns {
        let tokens: Vec<_> = pattern.tokens().collect();
        for topic in &topics {
            let expected = matches(&tokens, &topic.tokens().collect::<Vec<_>>());
            assert_eq!(pattern.matches(topic), expected, "{pattern} {topic}");
        }
        for other in &patterns {
            assert_eq!(pattern.covers(other), covers(&tokens, other), "{pattern} {other}");
        }
    }
    broker(&patterns, &topics);
}

fn id(text: &str) -> Option<ComponentId> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/@".contains(&b);
    let expected = (1..=128).contains(&text.len()) && text.bytes().all(allowed);
    let id = checked(text, ComponentId::new(text), expected)?;
    assert_eq!(id.as_str(), text);
    assert_eq!(clean(&id).parse(), Ok(id.clone()));
    Some(id)
}

fn glob(text: &str) -> Option<NamePattern> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/@*".contains(&b);
    let expected = (1..=128).contains(&text.len()) && text.bytes().all(allowed);
    let glob = checked(text, NamePattern::new(text), expected);
    let read = capabilities("send", text);
    assert_eq!(read.map(|read| read.send), glob.clone().map(|glob| vec![glob]), "{text:?}");
    glob
}

fn topic(text: &str) -> Option<Topic> {
    let expected = is_dotted(text) && !text.contains(['*', '>']);
    let topic = checked(text, Topic::new(text), expected)?;
    assert_eq!(topic.as_str(), text);
    assert_eq!(clean(&topic).parse(), Ok(topic.clone()));
    assert!(TopicPattern::from(&topic).matches(&topic), "{topic}");
    assert_eq!(TopicPattern::new(text), Ok(TopicPattern::from(&topic)));
    Some(topic)
}

fn pattern(text: &str) -> Option<TopicPattern> {
    let last = text.split('.').count() - 1;
    let stands =
        |(at, token): (usize, &str)| token == "*" || (token == ">" && at == last) || !token.contains(['*', '>']);
    let expected = is_dotted(text) && text.split('.').enumerate().all(stands);
    let pattern = checked(text, TopicPattern::new(text), expected);
    let read = capabilities("publish", text);
    assert_eq!(read.map(|read| read.publish), pattern.clone().map(|pattern| vec![pattern]), "{text:?}");
    let pattern = pattern?;
    assert_eq!(pattern.as_str(), text);
    assert_eq!(clean(&pattern).parse(), Ok(pattern.clone()));
    Some(pattern)
}

/// What topics and patterns have in common.
fn is_dotted(text: &str) -> bool {
    let mut tokens = text.split('.');
    text.len() <= 256
        && text.bytes().all(|b| b.is_ascii_graphic())
        && tokens.clone().count() <= 32
        && tokens.all(|token| !token.is_empty())
}

/// It is accepted where it should be, and an error can be shown.
fn checked<T, E: Error + 'static>(text: &str, made: Result<T, E>, expected: bool) -> Option<T> {
    assert_eq!(made.is_ok(), expected, "{text:?}");
    made.map_err(|error| told(&error)).ok()
}

/// The text as one of a list in a `[messaging]` table.
fn capabilities(key: &str, text: &str) -> Option<Capabilities> {
    let table = toml::Table::from_iter([(key.to_owned(), toml::Value::from(vec![text]))]);
    table.try_into().map_err(|error| told(&error)).ok()
}

/// Whether tokens match.
fn matches(pattern: &[&str], topic: &[&str]) -> bool {
    match (pattern, topic) {
        ([">"], [_, ..]) => true,
        (["*", pattern @ ..], [_, topic @ ..]) => matches(pattern, topic),
        ([token, pattern @ ..], [same, topic @ ..]) => token == same && matches(pattern, topic),
        ([], []) => true,
        _ => false,
    }
}

/// Whether all that a pattern matches is matched by these tokens. A blank is in no pattern, so what matches one in place
/// of a wildcard matches everything there; and what matches one and two of them in place of `>` matches more as well.
fn covers(wide: &[&str], narrow: &TopicPattern) -> bool {
    [1, 2].into_iter().all(|rest| {
        let topic: Vec<_> = narrow
            .tokens()
            .flat_map(|token| match token {
                "*" => vec![" "],
                ">" => vec![" "; rest],
                token => vec![token],
            })
            .collect();
        matches(wide, &topic)
    })
}

/// Whether a name matches, by the prefixes that do.
fn glob_matches(pattern: &str, name: &str) -> bool {
    let name = name.as_bytes();
    let mut prefixes = vec![false; name.len() + 1];
    prefixes[0] = true;
    for byte in pattern.bytes() {
        if byte == b'*' {
            let first = prefixes.iter().position(|&matches| matches).unwrap_or(prefixes.len());
            prefixes[first..].fill(true);
        } else {
            for len in (1..prefixes.len()).rev() {
                prefixes[len] = prefixes[len - 1] && name[len - 1] == byte;
            }
            prefixes[0] = false;
        }
    }
    prefixes[name.len()]
}

/// Takes everything.
struct Taker;

impl Sink for Taker {
    fn try_deliver(&self, _: MessageEnvelope) -> Result<(), Undelivered> {
        Ok(())
    }

    async fn deliver(&self, _: MessageEnvelope) -> Result<(), Undelivered> {
        Ok(())
    }

    fn load(&self) -> Load {
        Load { queued: 0, capacity: 1 }
    }
}

fn broker(patterns: &[TopicPattern], topics: &[Topic]) {
    let broker = MessageBroker::new();
    let subscribe = |pattern| broker.subscribe(pattern, Arc::new(Taker), WhenFull::Error);
    let mut subscriptions: Vec<_> = patterns.iter().map(subscribe).collect();
    run(async {
        while !subscriptions.is_empty() {
            for topic in topics {
                let expected = subscriptions.iter().filter(|one| one.pattern().matches(topic)).count();
                let report = broker.publish(topic, MessageEnvelope::new("x")).await;
                assert_eq!(report.delivered, expected, "{topic}");
            }
            // Every other one leaves.
            let mut at = 0;
            subscriptions.retain(|_| {
                at += 1;
                at % 2 == 0
            });
        }
    });
    assert!(topics.iter().all(|topic| broker.subscribers(topic) == 0), "somebody is still subscribed");
}

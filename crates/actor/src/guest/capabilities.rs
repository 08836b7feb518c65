//! Grants for the use of messages.

use std::{
    collections::HashSet,
    fmt,
    hash::Hash,
    str::FromStr,
    sync::{Arc, LazyLock},
};

use airssys_wasm_limits::ByteSize;
use airssys_wasm_registry::{ComponentId, InvalidId, Topic, TopicPattern};
use serde::{Deserialize, Deserializer, de};

use crate::Links;

/// Grants for messages: the `[messaging]` table of a `Component.toml`. The default grants nothing.
///
/// ```toml
/// [messaging]
/// send = ["billing", "tenant-7/*"]
/// request = ["clock"]
/// publish = ["orders.eu.>"]
/// subscribe = ["orders.*.created"]
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Capabilities {
    /// Names it may send to.
    pub send: Vec<NamePattern>,
    /// Names it may ask.
    pub request: Vec<NamePattern>,
    /// Names that its linked imports may call. What `[link]` names needs no further grant.
    pub call: Vec<NamePattern>,
    /// Topics it may publish to.
    pub publish: Vec<TopicPattern>,
    /// Topics it may subscribe to, and patterns that one of these covers.
    pub subscribe: Vec<TopicPattern>,
    /// Most subscriptions at a time. Default: 64.
    pub subscriptions: u32,
    /// Most messages at a time that it has said to send later. Default: 64.
    pub later: u32,
    /// Bytes of their payloads at a time. Default: 1 MiB.
    pub later_bytes: ByteSize,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            send: Vec::new(),
            request: Vec::new(),
            call: Vec::new(),
            publish: Vec::new(),
            subscribe: Vec::new(),
            subscriptions: 64,
            later: 64,
            later_bytes: ByteSize::mib(1),
        }
    }
}

impl Capabilities {
    /// Grants everything, for trusted components.
    pub fn all() -> Self {
        let everything = TopicPattern::new(">").expect("a pattern");
        let everybody = NamePattern::new("*").expect("a pattern");
        Self {
            send: vec![everybody.clone()],
            request: vec![everybody.clone()],
            call: vec![everybody],
            publish: vec![everything.clone()],
            subscribe: vec![everything],
            subscriptions: u32::MAX,
            later: u32::MAX,
            later_bytes: ByteSize::b(u64::MAX),
        }
    }

    /// Whether it may send to this component.
    pub fn may_send(&self, to: &ComponentId) -> bool {
        self.send.iter().any(|pattern| pattern.matches(to))
    }

    /// Whether it may ask this component.
    pub fn may_request(&self, to: &ComponentId) -> bool {
        self.request.iter().any(|pattern| pattern.matches(to))
    }

    /// Whether its linked imports may call this component.
    pub fn may_call(&self, to: &ComponentId) -> bool {
        self.call.iter().any(|pattern| pattern.matches(to))
    }

    /// Whether it may publish to this topic.
    pub fn may_publish(&self, topic: &Topic) -> bool {
        self.publish.iter().any(|pattern| pattern.matches(topic))
    }

    /// Whether it may subscribe to this pattern.
    pub fn may_subscribe(&self, wanted: &TopicPattern) -> bool {
        self.subscribe.iter().any(|pattern| pattern.covers(wanted))
    }
}

/// [`Capabilities`] as an actor has them, made once for its specification: names and topics without wildcards are looked up,
/// however many there are. Patterns with wildcards are tried one after the other.
#[derive(Debug, Clone)]
pub struct Grants {
    send: Granted<ComponentId, NamePattern>,
    request: Granted<ComponentId, NamePattern>,
    call: Granted<ComponentId, NamePattern>,
    publish: Granted<Topic, TopicPattern>,
    pub(crate) subscribe: Vec<TopicPattern>,
    pub(crate) subscriptions: u32,
    pub(crate) later: u32,
    pub(crate) later_bytes: ByteSize,
}

impl Grants {
    /// With what links need.
    pub(crate) fn with_links(mut self, links: &Links) -> Self {
        self.call.exact.extend(links.iter().map(|(_, to)| to.clone()));
        self
    }

    /// See [`Capabilities::may_send`].
    pub fn may_send(&self, to: &ComponentId) -> bool {
        self.send.has(to, NamePattern::matches)
    }

    /// See [`Capabilities::may_request`].
    pub fn may_request(&self, to: &ComponentId) -> bool {
        self.request.has(to, NamePattern::matches)
    }

    /// See [`Capabilities::may_call`].
    pub fn may_call(&self, to: &ComponentId) -> bool {
        self.call.has(to, NamePattern::matches)
    }

    /// See [`Capabilities::may_publish`].
    pub fn may_publish(&self, topic: &Topic) -> bool {
        self.publish.has(topic, TopicPattern::matches)
    }

    /// See [`Capabilities::may_subscribe`].
    pub fn may_subscribe(&self, wanted: &TopicPattern) -> bool {
        self.subscribe.iter().any(|pattern| pattern.covers(wanted))
    }
}

impl Grants {
    /// Those of actors that have none, which all of them share.
    pub(crate) fn none() -> Arc<Self> {
        static NONE: LazyLock<Arc<Grants>> = LazyLock::new(|| Arc::new(Capabilities::default().into()));
        Arc::clone(&NONE)
    }
}

impl From<Capabilities> for Grants {
    fn from(capabilities: Capabilities) -> Self {
        let Capabilities { send, request, call, publish, subscribe, subscriptions, later, later_bytes } = capabilities;
        // With a wildcard it is neither a name nor a topic.
        let names = |granted: Vec<_>| Granted::new(granted, |name: &NamePattern| ComponentId::new(name.as_str()).ok());
        Self {
            send: names(send),
            request: names(request),
            call: names(call),
            publish: Granted::new(publish, |pattern| Topic::new(pattern.as_str()).ok()),
            subscribe,
            subscriptions,
            later,
            later_bytes,
        }
    }
}

/// What a list grants, by a look-up where there are no wildcards.
#[derive(Debug, Clone)]
struct Granted<Exact, Pattern> {
    exact: HashSet<Exact>,
    patterns: Vec<Pattern>,
}

impl<Exact: Eq + Hash, Pattern> Granted<Exact, Pattern> {
    fn new(mut granted: Vec<Pattern>, as_exact: impl Fn(&Pattern) -> Option<Exact>) -> Self {
        let mut exact = HashSet::new();
        granted.retain(|pattern| match as_exact(pattern) {
            Some(one) => {
                exact.insert(one);
                false
            }
            None => true,
        });
        Self { exact, patterns: granted }
    }

    fn has(&self, one: &Exact, matches: impl Fn(&Pattern, &Exact) -> bool) -> bool {
        self.exact.contains(one) || self.patterns.iter().any(|pattern| matches(pattern, one))
    }
}

/// A pattern of component names. `*` matches any number of characters.
#[derive(Clone, PartialEq)]
pub struct NamePattern {
    text: Box<str>,
    /// `None` for a name without `*`, which is compared literally.
    stars: Option<Stars>,
}

/// Bytes before the first and after the last `*`.
#[derive(Clone, Copy, PartialEq)]
struct Stars {
    before: usize,
    after: usize,
}

impl NamePattern {
    /// Parses a pattern: a [`ComponentId`] with or without `*` in it.
    ///
    /// # Errors
    ///
    /// [`InvalidId`].
    pub fn new(text: &str) -> Result<Self, InvalidId> {
        // A pattern must be a name if each star is a character of it.
        ComponentId::new(&text.replace('*', "x"))?;
        let stars = text.find('*').zip(text.rfind('*'));
        let stars = stars.map(|(first, last)| Stars { before: first, after: text.len() - last - 1 });
        Ok(Self { text: text.into(), stars })
    }

    /// Whether it matches a name.
    pub fn matches(&self, id: &ComponentId) -> bool {
        let (text, name) = (&*self.text, id.as_str());
        let Some(Stars { before, after }) = self.stars else { return *text == *name };
        // Both are ASCII.
        let (last, end) = (text.len() - after, name.len().saturating_sub(after));
        if end < before || text[..before] != name[..before] || text[last..] != name[end..] {
            return false;
        }
        // What is between stars is taken where it is found first.
        let mut rest = &name[before..end];
        before + 1 == last
            || text[before + 1..last - 1].split('*').all(|part| match rest.split_once(part) {
                Some((_, left)) => {
                    rest = left;
                    true
                }
                None => false,
            })
    }

    /// The pattern's text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl From<&ComponentId> for NamePattern {
    fn from(id: &ComponentId) -> Self {
        Self { text: id.as_str().into(), stars: None }
    }
}

impl fmt::Debug for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NamePattern({:?})", self.text)
    }
}

impl FromStr for NamePattern {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Self::new(text)
    }
}

impl<'de> Deserialize<'de> for NamePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).map_err(|error| de::Error::custom(format_args!("{text:?}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{
        collection::vec,
        prelude::{prop_assert_eq, proptest},
    };

    use super::*;

    fn id(name: &str) -> ComponentId {
        name.parse().unwrap()
    }

    #[test]
    fn nothing_is_granted_by_default() {
        let none = Capabilities::default();
        assert!(!none.may_send(&id("a")) && !none.may_request(&id("a")));
        assert!(!none.may_publish(&Topic::new("a").unwrap()) && !none.may_subscribe(&">".parse().unwrap()));
        let all = Capabilities::all();
        assert!(all.may_send(&id("a")) && all.may_request(&id("a")));
        assert!(all.may_publish(&Topic::new("a").unwrap()) && all.may_subscribe(&">".parse().unwrap()));
    }

    #[test]
    fn names_match_as_globs() {
        let table = [
            ("billing", "billing", true),
            ("billing", "billing2", false),
            ("tenant-7/*", "tenant-7/a", true),
            ("tenant-7/*", "tenant-77/a", false),
            ("tenant-7/*", "tenant-7/", true),
            ("*", "anybody", true),
            ("*/public", "a/public", true),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "a-c-b", false),
        ];
        for (pattern, name, expected) in table {
            assert_eq!(NamePattern::new(pattern).unwrap().matches(&id(name)), expected, "{pattern} {name}");
        }
    }

    /// By trying everything.
    fn is_glob(pattern: &[u8], name: &[u8]) -> bool {
        match pattern {
            [] => name.is_empty(),
            [b'*', pattern @ ..] => (0..=name.len()).any(|at| is_glob(pattern, &name[at..])),
            [first, pattern @ ..] => name.first() == Some(first) && is_glob(pattern, &name[1..]),
        }
    }

    proptest! {
        #[test]
        fn names_match_as_they_do_by_trying_everything(pattern in "[ab*]{1,8}", name in "[ab]{1,10}") {
            let matches = NamePattern::new(&pattern).unwrap().matches(&id(&name));
            prop_assert_eq!(matches, is_glob(pattern.as_bytes(), name.as_bytes()));
        }
    }

    proptest! {
        #[test]
        fn looking_names_up_says_what_trying_each_says(granted in vec("[ab*]{1,3}", 0..8), name in "[ab]{1,3}") {
            let granted: Vec<_> = granted.iter().map(|pattern| NamePattern::new(pattern).unwrap()).collect();
            let tried = Capabilities { send: granted.clone(), ..Capabilities::default() };
            prop_assert_eq!(Grants::from(tried.clone()).may_send(&id(&name)), tried.may_send(&id(&name)));
            let tried = Capabilities { request: granted.clone(), ..Capabilities::default() };
            prop_assert_eq!(Grants::from(tried.clone()).may_request(&id(&name)), tried.may_request(&id(&name)));
            let tried = Capabilities { call: granted, ..Capabilities::default() };
            prop_assert_eq!(Grants::from(tried.clone()).may_call(&id(&name)), tried.may_call(&id(&name)));
        }

        #[test]
        fn looking_topics_up_says_what_trying_each_says(
            granted in vec("([ab]|[*])([.]([ab]|[*])){0,2}([.]>)?", 0..8),
            topic in "[ab]([.][ab]){0,2}",
        ) {
            let publish: Vec<_> = granted.iter().map(|pattern| TopicPattern::new(pattern).unwrap()).collect();
            let tried = Capabilities { publish, ..Capabilities::default() };
            let topic = Topic::new(&topic).unwrap();
            prop_assert_eq!(Grants::from(tried.clone()).may_publish(&topic), tried.may_publish(&topic));
        }
    }

    #[test]
    fn names_without_wildcards_are_looked_up() {
        let granted: Capabilities =
            toml::from_str("send = [\"a\", \"a*\", \"b\"]\npublish = [\"a.b\", \"a.*\", \"a.>\"]\nlater = 3").unwrap();
        let grants = Grants::from(granted);
        assert_eq!((grants.send.exact.len(), grants.send.patterns.len()), (2, 1));
        assert_eq!((grants.publish.exact.len(), grants.publish.patterns.len()), (1, 2));
        assert_eq!((grants.later, grants.subscriptions), (3, 64));
        assert!(!grants.may_send(&id("c")) && !grants.may_request(&id("a")));
    }

    #[test]
    fn malformed_patterns_are_refused() {
        for bad in ["", "a b", "a?", "ü", "a\n", ">"] {
            assert!(NamePattern::new(bad).is_err(), "{bad:?}");
        }
        let error = toml::from_str::<Capabilities>("publish = [\"a..b\"]").unwrap_err().to_string();
        assert!(error.contains("\"a..b\"") && error.contains("empty token"), "{error}");
        let error = toml::from_str::<Capabilities>("send = [\"a b\"]").unwrap_err().to_string();
        assert!(error.contains("\"a b\""), "{error}");
        assert!(toml::from_str::<Capabilities>("receive = []").is_err());
    }

    #[test]
    fn subscribing_to_more_than_is_granted_is_not() {
        let granted: Capabilities = toml::from_str("subscribe = [\"orders.*.created\"]").unwrap();
        assert!(granted.may_subscribe(&"orders.eu.created".parse().unwrap()));
        assert!(granted.may_subscribe(&"orders.*.created".parse().unwrap()));
        assert!(!granted.may_subscribe(&"orders.>".parse().unwrap()));
        assert!(!granted.may_subscribe(&"orders.*.*".parse().unwrap()));
    }
}

//! Topics, and patterns of topics, as NATS has them.

use std::{borrow::Cow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A topic: tokens separated by dots, `orders.eu.created`. Cheap to clone.
///
/// 1 to 256 visible ASCII characters in at most 32 tokens, none of them empty, and no `*` or `>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

/// A pattern of topics: `*` stands for one token, and `>` at the end for one or more. Cheap to clone.
///
/// `orders.*.created` matches `orders.eu.created`; `orders.>` matches that and `orders.eu`, but not `orders`. A pattern
/// without wildcards matches the topic of the same name. Otherwise it is checked as a [`Topic`] is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPattern {
    text: Arc<str>,
    shape: Shape,
}

/// What there is to compare, so that the common patterns are compared in one go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Shape {
    /// No wildcards.
    Exact,
    /// None but `>` at the end: what comes before it.
    Prefix,
    /// With `*`.
    Tokens,
}

/// Text that cannot be a topic or a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidTopic {
    /// No characters.
    #[error("a topic cannot be empty")]
    Empty,
    /// Too many characters.
    #[error("a topic has {len} bytes, and may have {}", Topic::MAX_LEN)]
    TooLong {
        /// Its bytes.
        len: usize,
    },
    /// Too many tokens.
    #[error("a topic has {tokens} tokens, and may have {}", Topic::MAX_TOKENS)]
    TooDeep {
        /// Its tokens.
        tokens: usize,
    },
    /// A dot at an end, or two in a row.
    #[error("a topic cannot have an empty token (at byte {at}): remove the dot")]
    EmptyToken {
        /// Where it would be.
        at: usize,
    },
    /// A character that may not be in a topic.
    #[error("a topic cannot have {character:?} in it (at byte {at}): use visible ASCII characters")]
    Character {
        /// The character.
        character: char,
        /// Where it is.
        at: usize,
    },
    /// A wildcard in a topic, or where none may stand in a pattern.
    #[error(
        "`{wildcard}` cannot stand there (at byte {at}): wildcards are for patterns, each a token of its own, `>` only \
         as the last"
    )]
    Wildcard {
        /// The wildcard.
        wildcard: char,
        /// Where it is.
        at: usize,
    },
}

impl Topic {
    /// Bytes that a topic may have.
    pub const MAX_LEN: usize = 256;
    /// Tokens that a topic may have.
    pub const MAX_TOKENS: usize = 32;

    /// Checks a topic.
    ///
    /// # Errors
    ///
    /// [`InvalidTopic`].
    pub fn new(text: &str) -> Result<Self, InvalidTopic> {
        check(text)?;
        match text.find(WILDCARDS) {
            Some(at) => Err(InvalidTopic::Wildcard { wildcard: char::from(text.as_bytes()[at]), at }),
            None => Ok(Self(text.into())),
        }
    }

    /// The topic's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its tokens, in order.
    pub fn tokens(&self) -> impl Iterator<Item = &str> + Clone {
        self.0.split('.')
    }
}

const WILDCARDS: [char; 2] = ['*', '>'];

impl TopicPattern {
    /// Checks a pattern.
    ///
    /// # Errors
    ///
    /// [`InvalidTopic`].
    pub fn new(text: &str) -> Result<Self, InvalidTopic> {
        check(text)?;
        let mut at = 0;
        for token in text.split('.') {
            let is_last = at + token.len() == text.len();
            if let Some(inside) = token.find(WILDCARDS)
                && !(token == "*" || (token == ">" && is_last))
            {
                let at = at + inside;
                return Err(InvalidTopic::Wildcard { wildcard: char::from(text.as_bytes()[at]), at });
            }
            at += token.len() + 1;
        }
        let shape = match text.find(WILDCARDS) {
            None => Shape::Exact,
            Some(at) if text.as_bytes()[at] == b'>' => Shape::Prefix,
            Some(_) => Shape::Tokens,
        };
        Ok(Self { text: text.into(), shape })
    }

    /// The pattern's text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its tokens, in order.
    pub fn tokens(&self) -> impl Iterator<Item = &str> + Clone {
        self.text.split('.')
    }

    /// Whether it matches a topic.
    pub fn matches(&self, topic: &Topic) -> bool {
        match self.shape {
            Shape::Exact => *self.text == *topic.0,
            // A topic does not end in a dot: what is longer than the prefix has a token more.
            Shape::Prefix => topic.0.starts_with(&self.text[..self.text.len() - 1]),
            Shape::Tokens => self.matches_by_tokens(topic),
        }
    }

    /// Byte by byte, which is several times faster than token by token.
    fn matches_by_tokens(&self, topic: &Topic) -> bool {
        let (pattern, topic) = (self.text.as_bytes(), topic.0.as_bytes());
        let (mut at, mut found) = (0, 0);
        loop {
            match pattern[at] {
                b'>' => return true,
                b'*' => {
                    at += 1;
                    found += topic[found..].iter().take_while(|&&byte| byte != b'.').count();
                }
                _ => {
                    let same = pattern[at..].iter().zip(&topic[found..]).take_while(|(a, b)| a == b && **a != b'.');
                    let same = same.count();
                    at += same;
                    found += same;
                }
            }
            // No token is empty: there is a byte behind each dot.
            match (pattern.get(at), topic.get(found)) {
                (None, None) => return true,
                (Some(b'.'), Some(b'.')) => (at, found) = (at + 1, found + 1),
                _ => return false,
            }
        }
    }
}

impl TopicPattern {
    /// Whether every topic that the other pattern matches is matched by this one.
    pub fn covers(&self, other: &Self) -> bool {
        let mut others = other.tokens();
        for token in self.tokens() {
            match (token, others.next()) {
                (">", Some(_)) => return true,
                // A token that may be several is wider than all but the line above.
                (_, None | Some(">")) => return false,
                ("*", Some(_)) => {}
                (token, Some(other)) if token == other => {}
                _ => return false,
            }
        }
        others.next().is_none()
    }
}

impl From<&Topic> for TopicPattern {
    fn from(topic: &Topic) -> Self {
        Self { text: Arc::clone(&topic.0), shape: Shape::Exact }
    }
}

fn check(text: &str) -> Result<(), InvalidTopic> {
    if text.is_empty() {
        return Err(InvalidTopic::Empty);
    }
    if text.len() > Topic::MAX_LEN {
        return Err(InvalidTopic::TooLong { len: text.len() });
    }
    if let Some((at, character)) = text.char_indices().find(|(_, c)| !c.is_ascii_graphic()) {
        return Err(InvalidTopic::Character { character, at });
    }
    let (mut at, mut tokens) = (0, 0);
    for token in text.split('.') {
        if token.is_empty() {
            return Err(InvalidTopic::EmptyToken { at });
        }
        at += token.len() + 1;
        tokens += 1;
    }
    if tokens > Topic::MAX_TOKENS { Err(InvalidTopic::TooDeep { tokens }) } else { Ok(()) }
}

impl From<&Topic> for Arc<str> {
    fn from(topic: &Topic) -> Self {
        Arc::clone(&topic.0)
    }
}

impl FromStr for Topic {
    type Err = InvalidTopic;

    fn from_str(text: &str) -> Result<Self, InvalidTopic> {
        Self::new(text)
    }
}

impl FromStr for TopicPattern {
    type Err = InvalidTopic;

    fn from_str(text: &str) -> Result<Self, InvalidTopic> {
        Self::new(text)
    }
}

/// As text, which is checked when it is read; the error quotes it.
macro_rules! as_text {
    ($($type:ident),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<str>::deserialize(deserializer)?;
                Self::new(&text).map_err(|error| de::Error::custom(format_args!("{text:?}: {error}")))
            }
        }
    )*};
}

as_text!(Topic, TopicPattern);

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_checked() {
        for good in ["a", "orders.eu.created", "x-1_y/z.@", &["t"; 32].join(".")] {
            assert_eq!(Topic::new(good).unwrap().as_str(), good);
        }
        assert_eq!(Topic::new(""), Err(InvalidTopic::Empty));
        assert_eq!(Topic::new(&"x".repeat(257)), Err(InvalidTopic::TooLong { len: 257 }));
        assert_eq!(Topic::new(&["t"; 33].join(".")), Err(InvalidTopic::TooDeep { tokens: 33 }));
        assert_eq!(Topic::new(".a"), Err(InvalidTopic::EmptyToken { at: 0 }));
        assert_eq!(Topic::new("a..b"), Err(InvalidTopic::EmptyToken { at: 2 }));
        assert_eq!(Topic::new("a."), Err(InvalidTopic::EmptyToken { at: 2 }));
        for bad in [' ', '\n', '\0', '\u{1b}', 'é', '\u{202e}'] {
            let text = format!("ab{bad}");
            assert_eq!(Topic::new(&text), Err(InvalidTopic::Character { character: bad, at: 2 }));
        }
        assert_eq!(Topic::new("a.*"), Err(InvalidTopic::Wildcard { wildcard: '*', at: 2 }));
        assert_eq!(Topic::new("a.>"), Err(InvalidTopic::Wildcard { wildcard: '>', at: 2 }));
    }

    #[test]
    fn wildcards_stand_only_where_they_mean_something() {
        for good in ["*", ">", "a.*", "*.a.>", "a.*.*", "a.b"] {
            assert_eq!(TopicPattern::new(good).unwrap().as_str(), good);
        }
        for (bad, wildcard, at) in
            [("a*", '*', 1), ("a.b*.c", '*', 3), (">.a", '>', 0), ("a.>b", '>', 2), ("**", '*', 0)]
        {
            assert_eq!(TopicPattern::new(bad), Err(InvalidTopic::Wildcard { wildcard, at }), "{bad}");
        }
    }

    #[test]
    fn a_pattern_covers_what_is_narrower() {
        let table = [
            ("a.b", "a.b", true),
            ("a.*", "a.b", true),
            ("a.*", "a.*", true),
            ("a.b", "a.*", false),
            ("a.*", "a.>", false),
            ("a.>", "a.*", true),
            ("a.>", "a.>", true),
            ("a.>", "a.*.>", true),
            ("a.*.>", "a.>", false),
            (">", "*.>", true),
            ("a.>", "a", false),
            ("a.b", "a", false),
            ("a", "a.b", false),
        ];
        for (wide, narrow, expected) in table {
            let covers = TopicPattern::new(wide).unwrap().covers(&TopicPattern::new(narrow).unwrap());
            assert_eq!(covers, expected, "{wide} {narrow}");
        }
    }

    #[test]
    fn patterns_match_as_nats_has_it() {
        let table = [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.b", "a", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("*.b", "a.b", true),
            ("a.>", "a.b", true),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            (">", "a.b", true),
            ("a.>", "ab", false),
            ("a.>", "ab.c", false),
            ("*.*.>", "a.b", false),
            ("*.*.>", "a.b.c", true),
        ];
        for (pattern, topic, expected) in table {
            let (pattern, topic) = (TopicPattern::new(pattern).unwrap(), Topic::new(topic).unwrap());
            assert_eq!(pattern.matches(&topic), expected, "{pattern} {topic}");
            assert_eq!(pattern.matches_by_tokens(&topic), expected, "{pattern} {topic}");
        }
    }

    #[test]
    fn only_topics_and_patterns_are_read() {
        let pattern: TopicPattern = serde_json::from_str(r#""a.*.>""#).unwrap();
        assert_eq!(serde_json::to_string(&pattern).unwrap(), r#""a.*.>""#);
        serde_json::from_str::<Topic>(r#""a.*.>""#).unwrap_err();
        assert_eq!(serde_json::from_str::<Topic>(r#""a.b""#).unwrap().to_string(), "a.b");
    }
}

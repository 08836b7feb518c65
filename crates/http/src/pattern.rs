//! Patterns of host names: for routes, and for grants of outgoing requests.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A host, `*.` and a domain for all hosts below that domain, or `*` for every host. Letters match in both cases, and a
/// port is no part of it.
///
/// ```
/// use airssys_wasm_http::HostPattern;
///
/// let pattern: HostPattern = "*.example.com".parse()?;
/// assert!(pattern.matches("api.example.com"));
/// assert!(!pattern.matches("example.com"));
/// assert!(!pattern.matches("api.example.com.evil.test"));
/// # Ok::<_, airssys_wasm_http::InvalidHostPattern>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPattern(Kind);

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
enum Kind {
    #[default]
    Any,
    Below(String),
    Host(String),
}

/// Text that is no pattern of host names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no host: write `example.com`, `*.example.com`, `10.0.0.1`, `[::1]` or `*`, without a port", .0.escape_debug())]
pub struct InvalidHostPattern(String);

impl HostPattern {
    /// Every host.
    pub const ANY: Self = Self(Kind::Any);

    /// Whether a host, without a port, is one of them.
    pub fn matches(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        match &self.0 {
            Kind::Any => true,
            Kind::Host(name) => name.eq_ignore_ascii_case(host),
            Kind::Below(domain) => {
                let split = host.len().checked_sub(domain.len());
                split.is_some_and(|at| {
                    let (below, suffix) = host.as_bytes().split_at(at);
                    below.len() > 1 && below.ends_with(b".") && suffix.eq_ignore_ascii_case(domain.as_bytes())
                })
            }
        }
    }

    /// How exactly it names a host: a host before a domain, a longer domain before a shorter one, any host last.
    pub(crate) fn rank(&self) -> usize {
        match &self.0 {
            Kind::Any => 0,
            Kind::Below(domain) => 1 + domain.len(),
            Kind::Host(_) => usize::MAX,
        }
    }
}

impl FromStr for HostPattern {
    type Err = InvalidHostPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "*" {
            return Ok(Self::ANY);
        }
        let (is_below, name) = match text.strip_prefix("*.") {
            Some(domain) => (true, domain),
            None => (false, text),
        };
        let is_ipv6 = !is_below
            && name
                .strip_prefix('[')
                .and_then(|name| name.strip_suffix(']'))
                .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
        let is_label = |label: &str| {
            (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        };
        let is_name = name.len() <= 253 && name.split('.').all(is_label);
        match (is_below, is_ipv6 || is_name) {
            (_, false) => Err(InvalidHostPattern(text.to_owned())),
            (true, true) => Ok(Self(Kind::Below(name.to_ascii_lowercase()))),
            (false, true) => Ok(Self(Kind::Host(name.to_ascii_lowercase()))),
        }
    }
}

impl TryFrom<String> for HostPattern {
    type Error = InvalidHostPattern;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<HostPattern> for String {
    fn from(pattern: HostPattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Any => f.write_str("*"),
            Kind::Below(domain) => write!(f, "*.{domain}"),
            Kind::Host(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_what_it_names_and_nothing_else() {
        let matches = |pattern: &str, host: &str| pattern.parse::<HostPattern>().unwrap().matches(host);
        assert!(matches("Example.com", "eXample.COM"));
        assert!(matches("example.com", "example.com."));
        assert!(!matches("example.com", "api.example.com"));
        assert!(matches("*.example.com", "a.b.EXAMPLE.com"));
        assert!(!matches("*.example.com", ".example.com"));
        assert!(!matches("*.example.com", "badexample.com"));
        assert!(matches("[::1]", "[::1]"));
        assert!(matches("*", "anything"));
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for text in
            ["", "a b", "example.com:80", "http://example.com", "a..b", "*.*.com", "a*.com", "user@host", "[::1"]
        {
            assert!(text.parse::<HostPattern>().is_err(), "{text}");
        }
    }
}

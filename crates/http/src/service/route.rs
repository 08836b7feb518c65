//! Which requests go where, as data.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::pattern::HostPattern;

/// Requests by host and path: an entry of `routes` in the `[http]` table of a `Component.toml`.
///
/// The host counts first: one that is named before a domain, a longer domain before a shorter, any host last. Of those to the
/// same host the longest path counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Route {
    /// The host. Default: every one.
    pub host: HostPattern,
    /// The beginning of the path. Default: `/`, every path.
    pub path: PathPrefix,
}

/// The beginning of a path, at a border of segments: `/api` is that of `/api` and `/api/x`, and not of `/apix`.
///
/// Paths are compared as the client wrote them: `/a/../b` and `/%61` begin with `/a` and `/%61`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathPrefix(String);

/// Text that is no beginning of a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no beginning of a path: write `/` and visible characters of ASCII, without `?` and `#`", .0.escape_debug())]
pub struct InvalidPathPrefix(String);

impl Route {
    /// All requests to all hosts.
    pub fn all() -> Self {
        Self::default()
    }

    /// Requests of all hosts to this path and those below.
    ///
    /// # Errors
    ///
    /// [`InvalidPathPrefix`].
    pub fn path(path: &str) -> Result<Self, InvalidPathPrefix> {
        Ok(Self { path: path.parse()?, ..Self::default() })
    }

    pub(super) fn matches(&self, host: &str, path: &str) -> bool {
        self.host.matches(host) && self.path.begins(path)
    }

    /// Routes of a lower rank are tried later.
    pub(super) fn rank(&self) -> (usize, usize) {
        (self.host.rank(), self.path.0.len())
    }
}

impl PathPrefix {
    /// Whether a path begins with it.
    pub fn begins(&self, path: &str) -> bool {
        path.strip_prefix(&*self.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl FromStr for PathPrefix {
    type Err = InvalidPathPrefix;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_of_paths = |byte: u8| byte.is_ascii_graphic() && !b"?#".contains(&byte);
        if text.starts_with('/') && text.bytes().all(is_of_paths) {
            Ok(Self(text.strip_suffix('/').unwrap_or(text).to_owned()))
        } else {
            Err(InvalidPathPrefix(text.to_owned()))
        }
    }
}

impl TryFrom<String> for PathPrefix {
    type Error = InvalidPathPrefix;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PathPrefix> for String {
    fn from(prefix: PathPrefix) -> Self {
        prefix.to_string()
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "/" } else { &self.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_at_a_segment() {
        let begins = |prefix: &str, path: &str| prefix.parse::<PathPrefix>().unwrap().begins(path);
        assert!(begins("/", "/"));
        assert!(begins("/", "/x"));
        assert!(begins("/api", "/api"));
        assert!(begins("/api/", "/api/x"));
        assert!(!begins("/api", "/apix"));
        assert!(!begins("/api", "/"));
        assert!(!begins("/api", "/API"));
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for text in ["", "api", "/a b", "/a?b", "/a#b", "/ä"] {
            assert!(text.parse::<PathPrefix>().is_err(), "{text}");
        }
    }
}

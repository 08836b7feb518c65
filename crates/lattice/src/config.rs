//! Which lattice a host joins, by what name, and over which servers.

use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::frame::{VERSIONS, Versions};

/// The name of a lattice or of a host in it: 1 to 64 letters, digits, `-` and `_`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

/// Text that cannot be the name of a host or of a lattice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` cannot be a name in a lattice: use 1 to {} letters, digits, `-` and `_`", text.escape_debug(), HostName::MAX_LEN)]
pub struct InvalidName {
    text: String,
}

impl HostName {
    /// Bytes that a name may have.
    pub const MAX_LEN: usize = 64;

    /// Checks a name.
    ///
    /// # Errors
    ///
    /// [`InvalidName`].
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if (1..=Self::MAX_LEN).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName { text: text.to_owned() })
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for HostName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HostName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::new(text)
    }
}

impl Serialize for HostName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for HostName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).map_err(de::Error::custom)
    }
}

/// How a host shows a server who it is.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Credentials {
    /// Not at all: a server that lets everybody in. For tests, on loopback.
    #[default]
    None,
    /// By the seed of an nkey, `SU…`. Its user has the permissions of this host alone, as `docs/lattice.md` lists them.
    NKey(String),
    /// By a file with a JWT and the seed of its nkey, as `nsc` writes it.
    File(PathBuf),
}

// A seed is a secret.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::NKey(_) => "NKey(..)",
            Self::File(_) => "File(..)",
        })
    }
}

/// What a host joins, and how.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LatticeConfig {
    /// The lattice. Hosts of different lattices do not know of each other.
    pub lattice: HostName,
    /// This host. No other that is in the lattice has its name.
    pub host: HostName,
    /// Servers, `nats://127.0.0.1:4222` or `tls://nats.example.org:4222`. Those that are not on loopback must speak TLS.
    pub servers: Vec<String>,
    /// How this host shows them who it is.
    pub credentials: Credentials,
    /// Certificates of who signs for the servers, in PEM, beside those of the operating system.
    pub certificates: Vec<PathBuf>,
    /// What is known of the host: `zone = "eu"`. Where something is placed may depend on it.
    pub labels: BTreeMap<String, String>,
    /// How long a host holds what it has leased without having renewed it. It stops by itself after 0.7 of that; others may
    /// take its place a second after it. Hosts have the same; where they do not, others wait for the longest. 1 s to 1 h. Default: 10 s.
    pub lease: Duration,
    /// How often a host says that it is there. One that has not been heard of for three times as long is lost, so all hosts have the
    /// same. At least 100 ms. Default: 1 s.
    pub heartbeat: Duration,
    /// How long the servers may be away before what is on its way is lost. Default: 5 s.
    pub grace: Duration,
    /// Messages on their way to another host, at least 4. A sender, or a receiver, has a quarter of them at the most. Default: 8,192.
    pub window: usize,
    /// Bytes of them. Default: 32 MiB.
    pub window_bytes: usize,
    /// On how many servers the lattice's records are kept, where this host is the first to join: 1, 3 or 5. Default: 1.
    pub replicas: usize,
    /// Messages of a subscription that wait in this process. Beyond that they are dropped: fewer, for tests.
    #[doc(hidden)]
    pub waiting: usize,
    /// The latest version of the wire that it speaks, of those that this crate speaks: an older host, for tests.
    #[doc(hidden)]
    pub latest_version: u8,
}

impl LatticeConfig {
    /// A host of a lattice over a server on this machine, `nats://127.0.0.1:4222`.
    pub fn new(lattice: HostName, host: HostName) -> Self {
        Self {
            lattice,
            host,
            servers: vec!["nats://127.0.0.1:4222".to_owned()],
            credentials: Credentials::None,
            certificates: Vec::new(),
            labels: BTreeMap::new(),
            lease: Duration::from_secs(10),
            heartbeat: Duration::from_secs(1),
            grace: Duration::from_secs(5),
            window: 8_192,
            window_bytes: 32 << 20,
            replicas: 1,
            waiting: 1 << 16,
            latest_version: VERSIONS.1,
        }
    }

    /// The versions of the wire that this host speaks.
    pub(crate) fn versions(&self) -> Versions {
        Versions(VERSIONS.0, self.latest_version.clamp(VERSIONS.0, VERSIONS.1))
    }

    /// Over these servers.
    #[must_use]
    pub fn with_servers<S: Into<String>>(mut self, servers: impl IntoIterator<Item = S>) -> Self {
        self.servers = servers.into_iter().map(Into::into).collect();
        self
    }

    /// With these credentials.
    #[must_use]
    pub fn with_credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = credentials;
        self
    }

    /// With this lease.
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// With this heartbeat.
    #[must_use]
    pub fn with_heartbeat(mut self, heartbeat: Duration) -> Self {
        self.heartbeat = heartbeat;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tokens_of_subjects() {
        for text in ["a", "host-1", "H_2", &"x".repeat(64)] {
            assert_eq!(HostName::new(text).unwrap().as_str(), text);
        }
        for text in ["", "a.b", "a b", "*", ">", "ä", "a/b", &"x".repeat(65)] {
            assert!(HostName::new(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_seed_is_not_shown() {
        let config = LatticeConfig::new("l".parse().unwrap(), "h".parse().unwrap());
        let config = config.with_credentials(Credentials::NKey("SUSECRET".to_owned()));
        assert!(!format!("{config:?}").contains("SECRET"));
    }
}

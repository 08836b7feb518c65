//! What a component may request of others: nothing, unless it is named here.

use std::{net::IpAddr, time::Duration};

use airssys_wasm_limits::ByteSize;
use http::Method;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::addresses::{is_in, is_public};
use crate::pattern::HostPattern;

/// Outgoing requests that are granted: an entry of `allow` in the `[http]` table of a `Component.toml`.
///
/// ```toml
/// [http]
/// allow = [
///     { host = "api.example.com" },
///     { host = "*.internal", scheme = "http", port = 8080, methods = ["GET"], addresses = ["10.0.0.0/8"] },
/// ]
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    /// The host, as the guest names it.
    pub host: HostPattern,
    /// `http` or `https`. Default: `https`.
    #[serde(default)]
    pub scheme: OutgoingScheme,
    /// The port. Default: that of the scheme.
    #[serde(default)]
    pub port: Option<u16>,
    /// The methods. Default: all but `CONNECT`, which no guest may use.
    #[serde(default)]
    pub methods: Option<Vec<AllowedMethod>>,
    /// Ranges of addresses that the host may have beside those of the public internet: private ones, loopback, metadata
    /// services. Default: none.
    #[serde(default)]
    pub addresses: Vec<IpNet>,
}

/// The scheme of an outgoing request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutgoingScheme {
    /// `http`: anybody on the way can read and change it.
    Http,
    /// `https`.
    #[default]
    Https,
}

impl OutgoingScheme {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port that it has where none is named.
    pub fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// A method in [`Allow::methods`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedMethod(pub Method);

impl Serialize for AllowedMethod {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_str())
    }
}

impl<'de> Deserialize<'de> for AllowedMethod {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Method::from_bytes(name.as_bytes()).map(Self).map_err(de::Error::custom)
    }
}

impl Allow {
    /// All methods, by https, at the scheme's port.
    pub fn https(host: HostPattern) -> Self {
        Self { host, scheme: OutgoingScheme::Https, port: None, methods: None, addresses: Vec::new() }
    }

    fn permits(&self, to: &Destination<'_>) -> bool {
        self.host.matches(to.host)
            && self.scheme == to.scheme
            && self.port.unwrap_or(self.scheme.port()) == to.port
            && self.methods.as_ref().is_none_or(|methods| methods.iter().any(|method| method.0 == *to.method))
    }
}

/// What outgoing requests may take: `outgoing` in the `[http]` table of a `Component.toml`. It holds for all sandboxes of
/// a component together, or for each request where that is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutgoingLimits {
    /// Connections at a time. One more request fails as `connection-limit-reached`. Default: 16.
    pub connections: u32,
    /// Bytes of the body of each request. Default: 16 MiB.
    pub request_body: ByteSize,
    /// Bytes of the body of each response. Default: 16 MiB.
    pub response_body: ByteSize,
    /// Time to find the addresses and to connect. A guest may ask for less. Default: five seconds.
    #[serde(with = "humantime_serde")]
    pub connect: Duration,
    /// Time that each request may take until the end of its response. Default: 30 seconds.
    #[serde(with = "humantime_serde")]
    pub time: Duration,
}

impl Default for OutgoingLimits {
    fn default() -> Self {
        Self {
            connections: 16,
            request_body: ByteSize::mib(16),
            response_body: ByteSize::mib(16),
            connect: Duration::from_secs(5),
            time: Duration::from_secs(30),
        }
    }
}

/// Where a request is to go.
pub(super) struct Destination<'a> {
    pub(super) host: &'a str,
    pub(super) scheme: OutgoingScheme,
    pub(super) port: u16,
    pub(super) method: &'a Method,
}

/// The grants that permit a request.
pub(super) struct Permitted<'a>(Vec<&'a Allow>);

impl<'a> Permitted<'a> {
    /// `None` where nothing permits it.
    pub(super) fn by(grants: &'a [Allow], to: &Destination<'_>) -> Option<Self> {
        if to.method == Method::CONNECT {
            return None;
        }
        let permitting: Vec<_> = grants.iter().filter(|grant| grant.permits(to)).collect();
        (!permitting.is_empty()).then_some(Self(permitting))
    }

    pub(super) fn may_reach(&self, address: IpAddr) -> bool {
        is_public(address) || self.0.iter().any(|grant| is_in(&grant.addresses, address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(toml: &str) -> Vec<Allow> {
        #[derive(Deserialize)]
        struct Table {
            allow: Vec<Allow>,
        }
        toml::from_str::<Table>(toml).unwrap().allow
    }

    fn permitted(grants: &[Allow], scheme: OutgoingScheme, host: &str, port: u16, method: Method) -> bool {
        Permitted::by(grants, &Destination { host, scheme, port, method: &method }).is_some()
    }

    #[test]
    fn host_scheme_port_and_method_all_count() {
        use OutgoingScheme::{Http, Https};
        let grants =
            grants(r#"allow = [{ host = "api.test", methods = ["GET"] }, { host = "*.x.test", scheme = "http" }]"#);
        assert!(permitted(&grants, Https, "api.test", 443, Method::GET));
        assert!(!permitted(&grants, Https, "api.test", 443, Method::POST));
        assert!(!permitted(&grants, Https, "api.test", 8443, Method::GET));
        assert!(!permitted(&grants, Http, "api.test", 80, Method::GET));
        assert!(!permitted(&grants, Http, "api.test", 443, Method::GET));
        assert!(permitted(&grants, Http, "a.x.test", 80, Method::DELETE));
        assert!(!permitted(&grants, Http, "a.x.test", 80, Method::CONNECT));
        assert!(!permitted(&[], Https, "api.test", 443, Method::GET));
    }

    #[test]
    fn private_addresses_are_granted_by_range() {
        let grants = grants(r#"allow = [{ host = "db.test", addresses = ["10.0.0.0/8"] }, { host = "other.test" }]"#);
        let may = |host, address: &str| {
            let to = Destination { host, scheme: OutgoingScheme::Https, port: 443, method: &Method::GET };
            Permitted::by(&grants, &to).unwrap().may_reach(address.parse().unwrap())
        };
        assert!(may("db.test", "10.1.1.1"));
        assert!(may("db.test", "1.1.1.1"));
        assert!(!may("db.test", "127.0.0.1"));
        assert!(!may("other.test", "10.1.1.1"));
    }
}

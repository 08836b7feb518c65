//! Which requests are served, by their heads alone.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version, header, request::Parts, uri::Authority};
use http_body::Body;
use http_body_util::BodyExt;
use wasmtime_wasi_http::{Error, WasiBody};

use crate::{answer::Refused, bounded::nothing};

/// What the head of a request may have, whoever serves the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes of the target: path and query, and the authority where it is part of it. More is 414. Default: 8 KiB.
    pub uri: usize,
    /// Bytes of names and values of all headers. More is 431. Default: 16 KiB.
    pub bytes: usize,
    /// Headers. More is 431. Default: 100.
    pub count: usize,
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self { uri: 8 << 10, bytes: 16 << 10, count: 100 }
    }
}

/// Bytes of a method. The guest gets it, and so do logs.
pub(crate) const LONGEST_METHOD: usize = 32;

/// A request whose head was checked.
pub(crate) struct Checked {
    pub(crate) parts: Parts,
    /// The host that it is to, and its port. The one `Host` among its headers.
    pub(crate) authority: Authority,
    /// What its head says of its body.
    pub(crate) length: Option<u64>,
    pub(crate) body: WasiBody,
    /// Whether it came by TLS.
    pub(crate) https: bool,
}

/// In the extensions of a request that came by TLS.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ByTls;

/// In the extensions of a request of HTTP/1.0 whose connection is broken off where its answer is: such a client takes the end of
/// the connection for that of the body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CanCut;

impl Checked {
    /// Refuses what could mean one thing to us and another to somebody on the way, and what is not served.
    pub(crate) fn new<B>(request: Request<B>, limits: &HeadLimits) -> Result<Self, Refused>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        let (mut parts, body) = request.into_parts();
        let Headers { bytes, host, lengths, has_coding } = Headers::of(&parts.headers);
        if parts.headers.len() > limits.count || bytes > limits.bytes {
            return Err(Refused::HeadersTooLarge);
        }
        if length_of(&parts.uri) > limits.uri {
            return Err(Refused::UriTooLong);
        }
        if parts.method == Method::CONNECT
            || parts.method.as_str().len() > LONGEST_METHOD
            || !parts.uri.path().starts_with('/')
        {
            return Err(Refused::Malformed);
        }
        let length = match lengths {
            Found::None => None,
            Found::One(_) if has_coding => return Err(Refused::Malformed),
            Found::One(length) => {
                let digits = length.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
                Some(digits.and_then(|text| text.parse().ok()).ok_or(Refused::Malformed)?)
            }
            Found::More => return Err(Refused::Malformed),
        };
        let authority = authority_of(&parts, host)?;
        // It is what the guest learns it by.
        if !matches!(host, Found::One(host) if host.as_bytes() == authority.as_str().as_bytes()) {
            let value = HeaderValue::from_str(authority.as_str()).map_err(|_| Refused::Malformed)?;
            parts.headers.insert(header::HOST, value);
        }
        // As a path, whichever way the client wrote it; the guest learns the authority by itself.
        if parts.uri.authority().is_some()
            && let Some(path) = parts.uri.path_and_query().cloned()
        {
            parts.uri = Uri::from(path);
        }
        let body =
            if body.is_end_stream() { nothing() } else { body.map_err(|_| Error::ConnectionTerminated).boxed_unsync() };
        // What a client says of the scheme is not asked.
        let https = parts.extensions.get::<ByTls>().is_some();
        Ok(Self { parts, authority, length, body, https })
    }
}

/// Headers of which there may be one.
#[derive(Clone, Copy)]
enum Found<'a> {
    None,
    One(&'a HeaderValue),
    More,
}

impl<'a> Found<'a> {
    fn add(&mut self, value: &'a HeaderValue) {
        *self = match self {
            Self::None => Self::One(value),
            _ => Self::More,
        };
    }
}

/// What a look at each header finds, which takes less time than to look each of these up.
struct Headers<'a> {
    /// Of names and values.
    bytes: usize,
    host: Found<'a>,
    lengths: Found<'a>,
    has_coding: bool,
}

impl<'a> Headers<'a> {
    fn of(headers: &'a HeaderMap) -> Self {
        let mut found = Self { bytes: 0, host: Found::None, lengths: Found::None, has_coding: false };
        for (name, value) in headers {
            found.bytes += name.as_str().len() + value.len();
            if name == header::HOST {
                found.host.add(value);
            } else if name == header::CONTENT_LENGTH {
                found.lengths.add(value);
            } else if name == header::TRANSFER_ENCODING {
                found.has_coding = true;
            }
        }
        found
    }
}

fn length_of(uri: &Uri) -> usize {
    uri.authority().map_or(0, |authority| authority.as_str().len())
        + uri.path_and_query().map_or(0, |path| path.as_str().len())
}

/// The one authority that a request names.
fn authority_of(parts: &Parts, host: Found<'_>) -> Result<Authority, Refused> {
    let host = match host {
        Found::More => return Err(Refused::Malformed),
        Found::None => None,
        Found::One(host) => Some(Authority::try_from(host.as_bytes()).map_err(|_| Refused::Malformed)?),
    };
    if host.is_none() && parts.version == Version::HTTP_11 {
        return Err(Refused::Malformed);
    }
    let authority = match (parts.uri.authority(), host) {
        (Some(target), Some(host)) if *target != host => return Err(Refused::Malformed),
        (Some(target), _) => target.clone(),
        (None, Some(host)) => host,
        (None, None) => return Err(Refused::Malformed),
    };
    let text = authority.as_str();
    let is_whole = match authority.port() {
        Some(port) => text.len() == authority.host().len() + 1 + port.as_str().len(),
        None => text == authority.host(),
    };
    if !is_whole || authority.host().is_empty() {
        return Err(Refused::Malformed);
    }
    Ok(authority)
}

#[cfg(test)]
mod tests {
    use http_body_util::Empty;

    use super::*;

    fn checked(uri: &str, headers: &[(&str, &str)]) -> Result<(String, String), Refused> {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let checked = Checked::new(request, &HeadLimits::default())?;
        Ok((checked.authority.host().to_owned(), checked.parts.uri.to_string()))
    }

    #[test]
    fn a_request_to_one_host_is_served() {
        let host = ("host", "a.test:80");
        assert_eq!(checked("/x?y", &[host]).unwrap(), ("a.test".into(), "/x?y".into()));
        assert_eq!(checked("http://a.test:80/x", &[host]).unwrap(), ("a.test".into(), "/x".into()));
        assert_eq!(checked("http://A.TEST:80", &[host]).unwrap(), ("A.TEST".into(), "/".into()));
        assert_eq!(checked("/", &[("host", "[::1]:8080")]).unwrap().0, "[::1]");
    }

    #[test]
    fn a_request_to_no_host_or_to_two_is_not() {
        let host = ("host", "a.test");
        for (uri, headers) in [
            ("/", &[][..]),
            ("/", &[host, host]),
            ("/", &[("host", "")]),
            ("/", &[("host", "user@a.test")]),
            ("/", &[("host", "a.test:")]),
            ("/", &[("host", "a.test/x")]),
            ("http://b.test/", &[host]),
            ("http://a.test:81/", &[host]),
            ("*", &[host]),
        ] {
            assert_eq!(checked(uri, headers), Err(Refused::Malformed), "{uri} {headers:?}");
        }
    }

    #[test]
    fn a_body_has_one_length() {
        let host = ("host", "a.test");
        assert!(checked("/", &[host, ("content-length", "5")]).is_ok());
        for headers in [
            [("content-length", "5"), ("content-length", "5")],
            [("content-length", "5"), ("transfer-encoding", "chunked")],
            [("content-length", "+5"), ("x", "")],
            [("content-length", "99999999999999999999"), ("x", "")],
        ] {
            assert_eq!(checked("/", &[&[host], &headers[..]].concat()), Err(Refused::Malformed), "{headers:?}");
        }
    }

    #[test]
    fn heads_have_bounds() {
        let host = ("host", "a.test");
        let long = "x".repeat(16 << 10);
        assert_eq!(checked("/", &[host, ("x", &long)]), Err(Refused::HeadersTooLarge));
        assert!(checked("/", &[host, ("x", &long[..16_000])]).is_ok());
        assert_eq!(checked("/", &[[host].to_vec(), vec![("x", ""); 100]].concat()), Err(Refused::HeadersTooLarge));
        assert!(checked("/", &[[host].to_vec(), vec![("x", ""); 99]].concat()).is_ok());
        assert_eq!(checked(&format!("/{}", &long[..8 << 10]), &[host]), Err(Refused::UriTooLong));
        assert!(checked(&format!("/{}", &long[..8_000]), &[host]).is_ok());
    }
}

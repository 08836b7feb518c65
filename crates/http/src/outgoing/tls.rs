//! TLS to other hosts, where the feature `tls` is on.

#[cfg(feature = "tls")]
pub(super) use self::on::Tls;
#[cfg(not(feature = "tls"))]
pub(super) use off::Tls;

#[cfg(feature = "tls")]
mod on {
    use std::sync::{Arc, OnceLock};

    use tokio::net::TcpStream;
    use tokio_rustls::{
        TlsConnector,
        client::TlsStream,
        rustls::{ClientConfig, Error as RustlsError, RootCertStore, crypto::ring, pki_types::ServerName},
    };
    use wasmtime_wasi_http::Error;

    /// How to speak TLS with other hosts.
    #[derive(Debug, Clone, Default)]
    pub(in crate::outgoing) struct Tls(Option<Arc<ClientConfig>>);

    impl Tls {
        pub(in crate::outgoing) fn by(config: Arc<ClientConfig>) -> Self {
            Self(Some(config))
        }

        /// With the certificate of the host that was checked, which is `[::1]` for an address of IPv6.
        pub(in crate::outgoing) async fn connect(
            &self,
            host: &str,
            stream: TcpStream,
        ) -> Result<TlsStream<TcpStream>, Error> {
            let name = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            let name = ServerName::try_from(name.to_owned()).map_err(|_| Error::HttpRequestUriInvalid)?;
            let config = match &self.0 {
                Some(config) => Arc::clone(config),
                None => roots_of_mozilla().ok_or(Error::ConfigurationError)?,
            };
            TlsConnector::from(config).connect(name, stream).await.map_err(|error| {
                let rustls = error.get_ref().and_then(|error| error.downcast_ref::<RustlsError>());
                match rustls {
                    Some(RustlsError::InvalidCertificate(_)) => Error::TlsCertificateError,
                    _ => Error::Tls(error),
                }
            })
        }
    }

    /// Made when it is first needed, once for the process.
    fn roots_of_mozilla() -> Option<Arc<ClientConfig>> {
        static CONFIG: OnceLock<Option<Arc<ClientConfig>>> = OnceLock::new();
        let make = || {
            let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.into() };
            let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
            let builder = builder.with_safe_default_protocol_versions().ok()?;
            Some(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
        };
        CONFIG.get_or_init(make).clone()
    }
}

#[cfg(not(feature = "tls"))]
mod off {
    use tokio::net::TcpStream;
    use wasmtime_wasi_http::Error;

    /// No TLS.
    #[derive(Debug, Clone, Default)]
    pub(in crate::outgoing) struct Tls(());

    impl Tls {
        pub(in crate::outgoing) async fn connect(&self, _: &str, _: TcpStream) -> Result<TcpStream, Error> {
            Err(Error::TlsProtocolError)
        }
    }
}

//! TLS for clients, where the feature `tls` is on.

#[cfg(feature = "tls")]
pub(super) use self::on::Tls;
#[cfg(not(feature = "tls"))]
pub(super) use off::Tls;

#[cfg(feature = "tls")]
mod on {
    use std::{io, sync::Arc};

    use tokio::net::TcpStream;
    use tokio_rustls::{TlsAcceptor, rustls::ServerConfig, server::TlsStream};

    use crate::server::io::{Abort, Protocol};

    impl Abort for TlsStream<TcpStream> {
        fn abort(&self) {
            self.get_ref().0.abort();
        }
    }

    /// Whether and how to speak TLS.
    #[derive(Clone, Default)]
    pub(in crate::server) struct Tls(Option<TlsAcceptor>);

    impl std::fmt::Debug for Tls {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(if self.is_off() { "off" } else { "on" })
        }
    }

    impl Tls {
        pub(in crate::server) fn by(config: &ServerConfig) -> Self {
            let mut config = config.clone();
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            Self(Some(TlsAcceptor::from(Arc::new(config))))
        }

        pub(in crate::server) fn is_off(&self) -> bool {
            self.0.is_none()
        }

        pub(in crate::server) async fn accept(
            &self,
            stream: TcpStream,
        ) -> io::Result<(TlsStream<TcpStream>, Protocol)> {
            let acceptor = self.0.as_ref().ok_or(io::ErrorKind::Unsupported)?;
            let stream = acceptor.accept(stream).await?;
            // A client that names none speaks HTTP/1.
            let protocol = match stream.get_ref().1.alpn_protocol() {
                Some(b"h2") => Protocol::Http2,
                _ => Protocol::Http1,
            };
            Ok((stream, protocol))
        }
    }
}

#[cfg(not(feature = "tls"))]
mod off {
    use std::io;

    use tokio::net::TcpStream;

    use crate::server::io::Protocol;

    /// No TLS.
    #[derive(Debug, Clone, Default)]
    pub(in crate::server) struct Tls(());

    impl Tls {
        pub(in crate::server) fn is_off(&self) -> bool {
            true
        }

        pub(in crate::server) async fn accept(&self, _: TcpStream) -> io::Result<(TcpStream, Protocol)> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }
}

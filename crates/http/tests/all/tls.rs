//! TLS on both sides, where the feature is on.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use airssys_wasm_http::{
    Allow, HttpServer, Outgoing, OutgoingLimits, Resolve, ServerLimits,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};
use http::Request;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::support::{Answer, Server, empty, service, shared, spec};

const CERTIFICATE: &[u8] = include_bytes!("../tls/certificate.pem");
/// Of no other use than here.
const KEY: &[u8] = include_bytes!("../tls/key.pem");

fn certificate() -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(CERTIFICATE).unwrap()
}

fn server_config() -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    shared(builder.with_single_cert(vec![certificate()], PrivateKeyDer::from_pem_slice(KEY).unwrap()).unwrap())
}

fn client_config(protocols: &[&str]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    shared(config)
}

async fn tls_connection(address: SocketAddr, protocols: &[&str]) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("web.test").unwrap();
    TlsConnector::from(client_config(protocols)).connect(name, stream).await.unwrap()
}

#[tokio::test]
async fn a_client_that_agrees_and_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let limits = ServerLimits { head: Duration::from_millis(300), ..ServerLimits::default() };
    let server = HttpServer::new(service(spec().build().unwrap())).with_limits(limits).with_tls(&server_config());
    tokio::spawn(server.serve(listener, std::future::pending()));
    let ended = async |mut stream: TlsStream<TcpStream>| {
        let reading = async { _ = stream.read_to_end(&mut Vec::new()).await };
        tokio::time::timeout(Duration::from_secs(10), reading).await.unwrap();
    };
    for protocols in [&["h2"][..], &["http/1.1"], &[]] {
        ended(tls_connection(address, protocols).await).await;
    }
    // One that speaks another protocol than was agreed.
    let mut stream = tls_connection(address, &["h2"]).await;
    stream.write_all(b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    ended(stream).await;
}

#[tokio::test]
async fn a_client_that_agrees_and_says_nothing_does_not_keep_the_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = HttpServer::new(service(spec().build().unwrap())).with_tls(&server_config());
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(server.serve(listener, async { _ = stopped.await }));
    let mut silent = tls_connection(address, &["h2"]).await;
    // Long enough for the server to have agreed as well; it is the client's turn.
    assert!(tokio::time::timeout(Duration::from_millis(200), silent.read(&mut [0; 1])).await.is_err());
    drop(stop);
    let report = tokio::time::timeout(Duration::from_secs(10), running).await.unwrap().unwrap();
    assert_eq!((report.accepted, report.broken_off), (1, 0));
    drop(silent);
}

async fn tls_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = HttpServer::new(service(spec().build().unwrap())).with_tls(&server_config());
    tokio::spawn(server.serve(listener, std::future::pending()));
    address
}

#[tokio::test]
async fn a_server_speaks_tls_and_both_versions_of_http() {
    let address = tls_server().await;
    let connect = async |protocols: &[&str]| TokioIo::new(tls_connection(address, protocols).await);
    let (mut sender, connection) = http1::handshake(connect(&[]).await).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/request").header("host", "web.test").body(empty()).unwrap();
    Answer::of(sender.send_request(request).await.unwrap()).await.is(200, "GET\nhttps\nweb.test\n/request\n");
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), connect(&["h2"]).await).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("https://web.test/request").body(empty()).unwrap();
    Answer::of(sender.send_request(request).await.unwrap()).await.is(200, "GET\nhttps\nweb.test\n/request\n");
    // The control: without TLS there is no answer.
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/request").header("host", "web.test").body(empty()).unwrap();
    assert!(sender.send_request(request).await.is_err());
}

/// Every name is this machine.
#[derive(Debug)]
struct Here;

impl Resolve for Here {
    fn resolve(&self, _: &str) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        Box::pin(async { Ok(vec![IpAddr::from([127, 0, 0, 1])]) })
    }
}

#[tokio::test]
async fn a_guest_sends_by_https_to_who_has_the_certificate() {
    let port = tls_server().await.port();
    let allow = |host: &str| Allow {
        port: Some(port),
        addresses: vec!["127.0.0.1/32".parse().unwrap()],
        ..Allow::https(host.parse().unwrap())
    };
    let granted = || vec![allow("other.test"), allow("false.test")];
    let fetch = async |outgoing: Outgoing, host: &str| {
        let server = Server::of(spec().with_outgoing(outgoing).build().unwrap()).await;
        let request = Request::post("/fetch").header("x-url", format!("https://{host}:{port}/hello"));
        server.request(request.body(empty()).unwrap()).await
    };
    let trusting =
        || Outgoing::with_resolver(granted(), OutgoingLimits::default(), shared(Here)).with_tls(client_config(&[]));
    fetch(trusting(), "other.test").await.is(200, "hello");
    fetch(trusting(), "false.test").await.is(200, "ErrorCode::TlsCertificateError");
    // The roots of Mozilla do not have it.
    let strict = Outgoing::with_resolver(granted(), OutgoingLimits::default(), shared(Here));
    fetch(strict, "other.test").await.is(200, "ErrorCode::TlsCertificateError");
}

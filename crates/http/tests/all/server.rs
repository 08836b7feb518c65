//! Connections: how many, how long, and how they end.

use std::time::Duration;

use airssys_wasm_http::ServerLimits;
use http::Request;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{Answer, PATIENCE, Server, empty, read_all, service, spec, until_room};

#[tokio::test]
async fn a_server_that_stops_answers_what_it_has() {
    let component = spec().build().unwrap();
    let mut server = Server::of(component.clone()).await;
    let response = server.response(Request::get("/drip/20/10").body(empty()).unwrap()).await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    idle.write_all(b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut some = [0; 12];
    idle.read_exact(&mut some).await.unwrap();
    server.stop();
    // An idle connection is closed; nobody is accepted.
    read_all(&mut idle).await;
    Answer::of(response).await.is(200, &"drop".repeat(10));
    let address = server.address;
    let report = server.ended().await;
    assert_eq!((report.accepted, report.broken_off), (2, 0));
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn what_does_not_end_in_time_is_broken_off() {
    let component = spec().build().unwrap();
    let limits = ServerLimits { drain: Duration::from_millis(100), ..ServerLimits::default() };
    let server = Server::with(service(component.clone()), limits).await;
    let response = server.response(Request::get("/drip/1/1000000").body(empty()).unwrap()).await;
    let report = server.ended().await;
    // Its own time is over at the same moment as the server's.
    assert!(report.broken_off <= 1);
    assert!(!Answer::of(response).await.is_whole);
    until_room(&component, 64).await;
}

#[tokio::test]
async fn an_old_connection_takes_no_more_requests() {
    let limits = ServerLimits { age: Duration::from_millis(200), ..ServerLimits::default() };
    let server = Server::with(service(spec().build().unwrap()), limits).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /wait/400 HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let answer = read_all(&mut stream).await;
    assert!(answer.contains("connection: close") && answer.contains("waited"), "{answer}");
}

#[tokio::test]
async fn an_address_has_so_many_connections() {
    let limits = ServerLimits { connections_per_address: 2, ..ServerLimits::default() };
    let server = Server::with(service(spec().build().unwrap()), limits).await;
    let hello = b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(hello).await.unwrap();
        stream.read_exact(&mut [0; 12]).await.unwrap();
        held.push(stream);
    }
    assert_eq!(server.raw(hello).await, "");
    held.clear();
    let again = async {
        loop {
            if server.raw(b"GET /hello HTTP/1.0\r\nhost: a\r\n\r\n").await.starts_with("HTTP/1.0 200") {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, again).await.unwrap();
    assert!(server.ended().await.refused >= 1);
}

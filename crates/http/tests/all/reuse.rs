//! Sandboxes that are used for more than one request.

use std::time::Duration;

use airssys_wasm_http::{Reuse, RouteLimits};
use airssys_wasm_limits::ByteSize;

use http::Request;

use crate::support::{Answer, Server, empty, spec, until_room};

async fn reusing(reuse: Reuse) -> Server {
    let limits = RouteLimits { reuse: Some(reuse), ..RouteLimits::default() };
    Server::of(spec().with_limits(limits).build().unwrap()).await
}

#[tokio::test]
async fn a_sandbox_is_used_so_many_times() {
    let server = reusing(Reuse::requests(3)).await;
    for expected in ["1", "2", "3", "1", "2"] {
        server.get("/count").await.is(200, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_is_not_used_for_longer_than_its_age() {
    let server = reusing(Reuse { age: Duration::from_secs(10), ..Reuse::requests(100) }).await;
    server.get("/count").await.is(200, "1");
    tokio::time::sleep(Duration::from_secs(6)).await;
    server.get("/count").await.is(200, "2");
    tokio::time::sleep(Duration::from_secs(6)).await;
    server.get("/count").await.is(200, "1");
}

#[tokio::test]
async fn a_guest_whose_answer_has_a_length_of_zero_goes_on() {
    let limits = RouteLimits { reuse: Some(Reuse::requests(100)), concurrency: 1, ..RouteLimits::default() };
    let component = spec().with_limits(limits).build().unwrap();
    let server = Server::of(component.clone()).await;
    server.get("/bare/50").await.is(200, "");
    until_room(&component, 1).await;
    // It came to its end, so its sandbox is used again.
    server.get("/count").await.is(200, "2");
    until_room(&component, 1).await;
    let bare = Request::get("http://web.test/bare/50").body(empty()).unwrap();
    Answer::of(server.http2().await.send_request(bare).await.unwrap()).await.is(200, "");
    until_room(&component, 1).await;
    server.get("/count").await.is(200, "4");
}

#[tokio::test]
async fn a_sandbox_with_too_much_memory_is_not_used_again() {
    let server = reusing(Reuse { memory: Some(ByteSize::mib(6)), ..Reuse::requests(100) }).await;
    server.get("/grow/4").await.is(200, "4");
    server.get("/grow/4").await.is(200, "8");
    server.get("/grow/4").await.is(200, "4");
}

#[tokio::test]
async fn a_sandbox_is_not_used_after_a_crash() {
    let server = reusing(Reuse::requests(100)).await;
    server.get("/count").await.is(200, "1");
    server.get("/count").await.is(200, "2");
    assert_eq!(server.get("/trap").await.status, 500);
    server.get("/count").await.is(200, "1");
    assert!(!server.get("/trap-after").await.is_whole);
    server.get("/count").await.is(200, "1");
}

#[tokio::test]
async fn a_sandbox_that_keeps_a_request_is_not_used_again() {
    let server = reusing(Reuse::requests(100)).await;
    server.get("/keep").await.is(200, "1");
    server.get("/keep").await.is(200, "1");
}

#[tokio::test]
async fn a_sandbox_that_keeps_its_answer_is_not_used_again() {
    let server = reusing(Reuse::requests(100)).await;
    for _ in 0..3 {
        assert!(server.is_broken_off(Request::get("/keep-answer").body(empty()).unwrap()).await);
        server.get("/count").await.is(200, "1");
        // That one is used again.
        server.get("/count").await.is(200, "2");
        assert_eq!(server.get("/trap").await.status, 500);
    }
}

#[tokio::test]
async fn a_sandbox_that_keeps_many_handles_is_not_used_again() {
    let server = reusing(Reuse::requests(100)).await;
    for expected in ["1", "2", "3"] {
        server.get("/leave/20").await.is(200, expected);
    }
    for _ in 0..3 {
        server.get("/leave/600").await;
        server.get("/count").await.is(200, "1");
    }
}

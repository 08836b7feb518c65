//! Requests over connections that are kept open.

use std::net::SocketAddr;

use airssys_wasm_harness::Suite;
use airssys_wasm_http::Reuse;
use airssys_wasm_twins::web::{self, Question, Sandboxes, WEB, requests};

use super::ours::{component, limits, serve};

/// Clients that ask for `hello` at the same time: enough to keep both workers busy.
const CLIENTS: usize = 4;

pub(super) fn describe(suite: &mut Suite) {
    for (name, sandboxes) in [("fresh", Sandboxes::Fresh), ("reused", Sandboxes::Reused)] {
        let id = format!("http/hello/{name}/two_workers");
        let [raw, native] = ["raw", "native"].map(|whose| format!("{whose}/{id}"));
        let [ours, bare] = ["", "raw/"].map(|whose| format!("{whose}http/hello/{name}/beyond_hyper"));
        suite
            .bench(&id, move || requests(ours_of(sandboxes), Question::hello(), CLIENTS))
            .twin("raw", Some(1.15), move || requests(web::guest(sandboxes), Question::hello(), CLIENTS))
            .and(&native, || requests(web::native(), Question::hello(), CLIENTS))
            .difference(&ours, &id, &native, None)
            .difference(&bare, &raw, &native, None)
            .ratio(&ours, &bare, None);
    }
    suite.bench("http/echo/1mb", || requests(ours_of(Sandboxes::Fresh), Question::echo(1 << 20), 1)).twin(
        "raw",
        Some(1.1),
        || requests(web::guest(Sandboxes::Fresh), Question::echo(1 << 20), 1),
    );
}

async fn ours_of(sandboxes: Sandboxes) -> SocketAddr {
    let reuse = (sandboxes == Sandboxes::Reused).then(|| Reuse::requests(u32::MAX));
    serve([("web.test", component("web", &WEB, limits(), reuse))]).await
}

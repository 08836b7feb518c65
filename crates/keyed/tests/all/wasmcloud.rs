//! Keyed actors that answer by publishing.

use std::pin::pin;

use airssys_wasm_actor::AskError;
use airssys_wasm_engine::Profile;
use airssys_wasm_keyed::{KeyedOptions, SaveWhen};
use airssys_wasm_registry::WhenFull;

use crate::support::{Faulty, carts, settle, system};

/// Counts messages, keeps the count, publishes it to `news`, and answers it, if it is asked, before its handler returns.
const COUNTS: &str = r#"(component
    (import "wasmcloud:messaging/types@0.2.0" (instance $types
        (type $record (record (field "subject" string) (field "body" (list u8)) (field "reply-to" (option string))))
        (export "broker-message" (type (eq $record)))))
    (alias export $types "broker-message" (type $message))
    (import "wasmcloud:messaging/consumer@0.2.0" (instance $consumer
        (alias outer 1 $message (type $there))
        (export "broker-message" (type $message (eq $there)))
        (export "publish" (func (param "msg" $message) (result (result (error string)))))))
    (core module $mem
        (memory (export "memory") 1)
        (data (i32.const 64) "news")
        (global $next (mut i32) (i32.const 4096))
        (func (export "realloc") (param i32 i32 i32) (param $size i32) (result i32)
            (local $at i32)
            (local.set $at (global.get $next))
            (global.set $next (i32.add (global.get $next) (local.get $size)))
            (local.get $at)))
    (core instance $mem (instantiate $mem))
    (alias core export $mem "memory" (core memory $memory))
    (alias core export $mem "realloc" (core func $realloc))
    (core func $publish (canon lower (func $consumer "publish") (memory $memory) (realloc $realloc)))
    (core module $m
        (import "" "memory" (memory 1))
        (import "" "publish" (func $publish (param i32 i32 i32 i32 i32 i32 i32 i32)))
        (func (export "handle") (param i32 i32 i32 i32) (param $asks i32) (param $to i32) (param $len i32) (result i32)
            (i32.store8 (i32.const 512) (i32.add (i32.load8_u (i32.const 512)) (i32.const 1)))
            (call $publish (i32.const 64) (i32.const 4) (i32.const 512) (i32.const 1)
                (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 32))
            (if (local.get $asks) (then
                (call $publish (local.get $to) (local.get $len) (i32.const 512) (i32.const 1)
                    (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 32))))
            (i32.const 0))
        (func (export "snapshot") (result i32)
            (i32.store (i32.const 4) (i32.const 512))
            (i32.store (i32.const 8) (i32.const 1))
            (i32.const 0))
        (func (export "restore") (param $state i32) (param i32) (result i32)
            (i32.store8 (i32.const 512) (i32.load8_u (local.get $state)))
            (i32.const 0)))
    (core instance $i (instantiate $m (with "" (instance
        (export "memory" (memory $memory)) (export "publish" (func $publish))))))
    (func $handle (param "msg" $message) (result (result (error string)))
        (canon lift (core func $i "handle") (memory $memory) (realloc $realloc)))
    (instance $handler (export "handle-message" (func $handle)))
    (export "wasmcloud:messaging/handler@0.2.0" (instance $handler))
    (func $snapshot (result (result (list u8) (error string))) (canon lift (core func $i "snapshot") (memory $memory)))
    (func $restore (param "state" (list u8)) (result (result (error string)))
        (canon lift (core func $i "restore") (memory $memory) (realloc $realloc)))
    (instance $state (export "snapshot" (func $snapshot)) (export "restore" (func $restore)))
    (export "airssys:actor/state@0.1.0" (instance $state)))"#;

#[tokio::test]
async fn an_answer_that_is_published_waits_for_the_save_and_other_messages_do_not() {
    let (system, store) = (system(), Faulty::new());
    let guest = system.engine().load_wat_blocking(COUNTS, Profile::Plain).unwrap();
    let options = KeyedOptions { save: SaveWhen::EachMessage, ..KeyedOptions::default() };
    let carts = carts(&system, &guest, options, &store).await;
    let mut news = system.subscribe(&"news".parse().unwrap(), 10, WhenFull::DropNew);
    let cart = carts.actor("1").unwrap();
    store.writes.forget_permits(usize::MAX);
    let mut asked = pin!(cart.ask("x"));
    tokio::select! {
        biased;
        answer = &mut asked => panic!("{answer:?} before it was saved"),
        message = news.recv() => assert_eq!(message.unwrap().payload(), "\x01"),
    }
    tokio::select! {
        biased;
        answer = &mut asked => panic!("{answer:?} before it was saved"),
        () = settle() => {}
    }
    assert_eq!(store.row("1").await, None);
    store.writes.add_permits(1);
    assert_eq!(asked.await.unwrap(), "\x01");
    assert_eq!(store.row("1").await.unwrap(), "\x01");

    store.writes.add_permits(10);
    store.set_full(true);
    assert!(matches!(cart.ask("x").await, Err(AskError::NotSaved)));
    assert_eq!(news.recv().await.unwrap().payload(), "\x02");
    store.set_full(false);
    assert_eq!(cart.ask("x").await.unwrap(), "\x03");
}

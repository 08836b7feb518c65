//! `wasi:keyvalue` and `wasi:config` for actors: granted by their manifest, kept over restarts and upgrades.

use std::sync::Arc;

use airssys_wasm_actor::{ActorManifest, ActorRef, ActorSystem, CallError, SystemConfig, UpgradeOptions};
use airssys_wasm_engine::wasmtime::component::Val;
use airssys_wasm_isolation::MemoryStore;

use crate::support::system;

/// `bump` adds one to `n` in the bucket `""`: the sum, or 0 without a bucket and -1 as a whole number where that failed.
/// `crash` does it and traps. `greeting` is how long that entry of its configuration is.
const GUEST: &str = r#"(component
  (import "wasi:keyvalue/store@0.2.0-draft" (instance $store
    (export "bucket" (type $bucket (sub resource)))
    (type $e (variant (case "no-such-store") (case "access-denied") (case "other" string)))
    (export "error" (type $error (eq $e)))
    (export "open" (func (param "identifier" string) (result (result (own $bucket) (error $error)))))))
  (alias export $store "bucket" (type $bucket))
  (alias export $store "error" (type $error))
  (import "wasi:keyvalue/atomics@0.2.0-draft" (instance $atomics
    (alias outer 1 $bucket (type $b)) (export "bucket" (type $bucket (eq $b)))
    (alias outer 1 $error (type $e)) (export "error" (type $error (eq $e)))
    (export "increment" (func (param "bucket" (borrow $bucket)) (param "key" string) (param "delta" u64)
      (result (result u64 (error $error)))))))
  (import "wasi:config/store@0.2.0-rc.1" (instance $config
    (type $e (variant (case "upstream" string) (case "io" string))) (export "error" (type $error (eq $e)))
    (export "get" (func (param "key" string) (result (result (option string) (error $error)))))))
  (core module $Libc
    (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    (data (i32.const 8) "n") (data (i32.const 100) "greeting"))
  (core instance $libc (instantiate $Libc))
  (alias core export $libc "memory" (core memory $memory))
  (alias core export $libc "realloc" (core func $realloc))
  (core func $open (canon lower (func $store "open") (memory $memory) (realloc $realloc)))
  (core func $increment (canon lower (func $atomics "increment") (memory $memory) (realloc $realloc)))
  (core func $get (canon lower (func $config "get") (memory $memory) (realloc $realloc)))
  (core module $Main
    (import "host" "memory" (memory 1))
    (import "host" "open" (func $open (param i32 i32 i32)))
    (import "host" "increment" (func $increment (param i32 i32 i32 i64 i32)))
    (import "host" "get" (func $get (param i32 i32 i32)))
    (func $bump (export "bump") (result i64)
      (call $open (i32.const 0) (i32.const 0) (i32.const 16))
      (if (i32.load8_u (i32.const 16)) (then (return (i64.const 0))))
      (call $increment (i32.load (i32.const 20)) (i32.const 8) (i32.const 1) (i64.const 1) (i32.const 64))
      (if (i32.load8_u (i32.const 64)) (then (return (i64.const -1))))
      (i64.load (i32.const 72)))
    (func (export "crash") (drop (call $bump)) unreachable)
    (func (export "greeting") (result i64)
      (call $get (i32.const 100) (i32.const 8) (i32.const 32))
      (i64.extend_i32_u (i32.load (i32.const 44)))))
  (core instance $main (instantiate $Main (with "host" (instance
    (export "memory" (memory $memory)) (export "open" (func $open)) (export "increment" (func $increment))
    (export "get" (func $get))))))
  (func (export "bump") (result u64) (canon lift (core func $main "bump")))
  (func (export "crash") (canon lift (core func $main "crash")))
  (func (export "greeting") (result u64) (canon lift (core func $main "greeting"))))"#;

fn manifest(name: &str, tables: &str) -> ActorManifest {
    let text =
        format!("[component]\nname = \"{name}\"\ncontract = \"exports\"\n[resources]\nmemory = \"1MiB\"\n{tables}");
    ActorManifest::from_toml(&text).unwrap()
}

fn guest() -> Vec<u8> {
    wat::parse_str(GUEST).unwrap()
}

fn with_store() -> ActorSystem {
    let config = SystemConfig { keyvalue: Some(Arc::new(MemoryStore::new())), ..SystemConfig::default() };
    ActorSystem::new(system().engine().clone(), config)
}

async fn spawn(system: &ActorSystem, name: &str, tables: &str) -> ActorRef {
    system.spawn(system.load_bytes(manifest(name, tables), guest()).await.unwrap()).await.unwrap()
}

async fn number(actor: &ActorRef, function: &str) -> u64 {
    match actor.call(function, []).await.unwrap()[..] {
        [Val::U64(number)] => number,
        ref other => panic!("{other:?}"),
    }
}

const CARTS: &str = "[keyvalue]\nbuckets = { \"\" = \"carts\" }\n";

#[tokio::test]
async fn what_an_actor_stores_outlives_its_incarnations() {
    let system = with_store();
    let actor = spawn(&system, "one", CARTS).await;
    assert_eq!(number(&actor, "bump").await, 1);
    assert!(matches!(actor.call("crash", []).await, Err(CallError::Crashed(_))));
    assert_eq!(number(&actor, "bump").await, 3);
    assert_eq!(actor.info().incarnation, 2);
}

#[tokio::test]
async fn only_granted_buckets_of_the_systems_store_are_there() {
    let system = with_store();
    let (one, other) = (spawn(&system, "one", CARTS).await, spawn(&system, "other", CARTS).await);
    assert_eq!((number(&one, "bump").await, number(&other, "bump").await), (1, 2));
    let private = spawn(&system, "private", "[keyvalue]\nbuckets = { \"\" = \"private\" }").await;
    assert_eq!(number(&private, "bump").await, 1);
    for tables in ["", "[keyvalue]\nbuckets = { carts = \"carts\" }"] {
        let without = spawn(&system, &format!("without-{}", tables.len()), tables).await;
        assert_eq!(number(&without, "bump").await, 0);
    }
    let without_store = ActorSystem::new(system.engine().clone(), SystemConfig::default());
    assert_eq!(number(&spawn(&without_store, "one", CARTS).await, "bump").await, 0);
}

#[tokio::test]
async fn a_new_version_goes_on_with_what_the_old_one_has_used() {
    let system = with_store();
    let two = "[keyvalue]\nbuckets = { \"\" = \"carts\" }\nkeys = 1";
    let spec = system.load_bytes(manifest("one", two), guest()).await.unwrap();
    let used = |spec: &airssys_wasm_actor::ActorSpec| spec.sandbox().keyvalue_account().unwrap().keys_used();
    let actor = system.spawn(spec.clone()).await.unwrap();
    assert_eq!(number(&actor, "bump").await, 1);
    assert_eq!(used(&spec), 1);
    let elsewhere = two.replace("carts", "elsewhere");
    let version = system.load_bytes(manifest("one", &elsewhere), guest()).await.unwrap();
    assert_eq!(used(&version), 0);
    system.upgrade(actor.address(), version.sandbox().clone(), UpgradeOptions::default()).await.unwrap();
    assert_eq!(number(&actor, "bump").await, u64::MAX, "it has a second key");
    // The control: an actor of its own.
    let other = system.load_bytes(manifest("other", &elsewhere), guest()).await.unwrap();
    assert_eq!(number(&system.spawn(other).await.unwrap(), "bump").await, 1);
}

#[tokio::test]
async fn a_version_that_stores_nothing_does_not_lose_the_count() {
    let system = with_store();
    let one_key = |bucket| format!("[keyvalue]\nbuckets = {{ \"\" = \"{bucket}\" }}\nkeys = 1");
    let actor = spawn(&system, "one", &one_key("carts")).await;
    assert_eq!(number(&actor, "bump").await, 1);
    let empty = wat::parse_str("(component)").unwrap();
    for (binary, bucket) in [(empty.clone(), "carts"), (empty, "carts"), (guest(), "elsewhere")] {
        let version = system.load_bytes(manifest("one", &one_key(bucket)), binary).await.unwrap();
        system.upgrade(actor.address(), version.sandbox().clone(), UpgradeOptions::default()).await.unwrap();
    }
    assert_eq!(number(&actor, "bump").await, u64::MAX, "it has a second key");
}

#[tokio::test]
async fn the_config_table_is_what_wasi_config_gives() {
    let system = with_store();
    let actor = spawn(&system, "one", "[config]\ngreeting = \"hello\"").await;
    assert_eq!(number(&actor, "greeting").await, 5);
    let spec = system.load_bytes(manifest("other", ""), guest()).await.unwrap().with_config([("greeting", "hi")]);
    assert_eq!(number(&system.spawn(spec).await.unwrap(), "greeting").await, 2);
    // It stays over an upgrade.
    let version = system.load_bytes(manifest("one", ""), guest()).await.unwrap();
    system.upgrade(actor.address(), version.sandbox().clone(), UpgradeOptions::default()).await.unwrap();
    assert_eq!(number(&actor, "greeting").await, 5);
}

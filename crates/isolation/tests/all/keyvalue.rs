//! `wasi:keyvalue` and `wasi:config`, by a guest that passes each of their functions on.

use std::{collections::BTreeMap, sync::Arc};

use airssys_wasm_engine::{
    Profile, WasmEngine,
    wasmtime::{
        self,
        component::{ComponentNamedList, ComponentType, Lift, Lower},
    },
};
use airssys_wasm_isolation::{
    Account, Bucket, CrashKind, ENTRY_COST, KeyPage, KeyValueError, KeyValueGrants, KeyValueStore, MemoryStore,
    Sandbox, SandboxManifest, SandboxSpec, StoreFuture, add_config, add_keyvalue,
};
use airssys_wasm_limits::{ByteSize, ManifestError, ResourceLimits};
use bytes::Bytes;
use tokio::sync::Notify;

use crate::{engine, limits};

#[derive(ComponentType, Lift, Lower, Clone, Debug, PartialEq)]
#[component(variant)]
enum Error {
    #[component(name = "no-such-store")]
    NoSuchStore,
    #[component(name = "access-denied")]
    AccessDenied,
    #[component(name = "other")]
    Other(String),
}

#[derive(ComponentType, Lift, Lower, Clone, Debug, PartialEq)]
#[component(variant)]
enum ConfigError {
    #[component(name = "upstream")]
    Upstream(String),
    #[component(name = "io")]
    Io(String),
}

#[derive(ComponentType, Lift, Lower, Clone, Debug, PartialEq)]
#[component(record)]
struct KeyResponse {
    keys: Vec<String>,
    cursor: Option<u64>,
}

type Outcome<T> = (Result<T, Error>,);

const BUCKET_AND_ERROR: &str = r#"
    (alias outer 1 $bucket (type $b)) (export "bucket" (type $bucket (eq $b)))
    (alias outer 1 $error (type $e)) (export "error" (type $error (eq $e)))"#;

/// The package's types, as each interface has them.
const INTERFACES: [(&str, &str, &str); 4] = [
    (
        "store",
        "wasi:keyvalue/store@0.2.0-draft",
        r#"
        (export "bucket" (type $bucket (sub resource)))
        (type $e (variant (case "no-such-store") (case "access-denied") (case "other" string)))
        (export "error" (type $error (eq $e)))
        (type $k (record (field "keys" (list string)) (field "cursor" (option u64))))
        (export "key-response" (type $key-response (eq $k)))"#,
    ),
    ("atomics", "wasi:keyvalue/atomics@0.2.0-draft", BUCKET_AND_ERROR),
    ("batch", "wasi:keyvalue/batch@0.2.0-draft", BUCKET_AND_ERROR),
    (
        "config",
        "wasi:config/store@0.2.0-rc.1",
        r#"(type $e (variant (case "upstream" string) (case "io" string))) (export "error" (type $error (eq $e)))"#,
    ),
];

/// Interface, function, its type, and its parameters in core WebAssembly.
const FUNCTIONS: [(&str, &str, &str, &str); 12] = [
    ("store", "open", r#"(param "identifier" string) (result (result (own $bucket) (error $error)))"#, "i32 i32"),
    (
        "store",
        "[method]bucket.get",
        r#"(param "self" (borrow $bucket)) (param "key" string) (result (result (option (list u8)) (error $error)))"#,
        "i32 i32 i32",
    ),
    (
        "store",
        "[method]bucket.set",
        r#"(param "self" (borrow $bucket)) (param "key" string) (param "value" (list u8)) (result (result (error $error)))"#,
        "i32 i32 i32 i32 i32",
    ),
    (
        "store",
        "[method]bucket.delete",
        r#"(param "self" (borrow $bucket)) (param "key" string) (result (result (error $error)))"#,
        "i32 i32 i32",
    ),
    (
        "store",
        "[method]bucket.exists",
        r#"(param "self" (borrow $bucket)) (param "key" string) (result (result bool (error $error)))"#,
        "i32 i32 i32",
    ),
    (
        "store",
        "[method]bucket.list-keys",
        r#"(param "self" (borrow $bucket)) (param "cursor" (option u64)) (result (result $key-response (error $error)))"#,
        "i32 i32 i64",
    ),
    (
        "atomics",
        "increment",
        r#"(param "bucket" (borrow $bucket)) (param "key" string) (param "delta" u64) (result (result u64 (error $error)))"#,
        "i32 i32 i32 i64",
    ),
    (
        "batch",
        "get-many",
        r#"(param "bucket" (borrow $bucket)) (param "keys" (list string))
           (result (result (list (option (tuple string (list u8)))) (error $error)))"#,
        "i32 i32 i32",
    ),
    (
        "batch",
        "set-many",
        r#"(param "bucket" (borrow $bucket)) (param "key-values" (list (tuple string (list u8))))
           (result (result (error $error)))"#,
        "i32 i32 i32",
    ),
    (
        "batch",
        "delete-many",
        r#"(param "bucket" (borrow $bucket)) (param "keys" (list string)) (result (result (error $error)))"#,
        "i32 i32 i32",
    ),
    ("config", "get", r#"(param "key" string) (result (result (option string) (error $error)))"#, "i32 i32"),
    ("config", "get-all", r#"(result (result (list (tuple string string)) (error $error)))"#, ""),
];

/// What the guest calls it: the name without what is not allowed there.
fn exported(interface: &str, function: &str) -> String {
    format!("{interface}-{}", function.trim_start_matches("[method]bucket."))
}

/// A component that exports these interfaces' functions under names of its own, with handles as numbers. It also has
/// `drop`, for a handle, and `trap`.
fn guest(interfaces: &[&str]) -> String {
    let has = |interface: &str| interfaces.contains(&interface);
    let (mut imports, mut core_imports, mut core, mut lowered, mut with, mut exports) =
        (String::new(), String::new(), String::new(), String::new(), String::new(), String::new());
    for (interface, name, types) in INTERFACES.iter().filter(|(interface, ..)| has(interface)) {
        let functions = FUNCTIONS.iter().filter(|function| function.0 == *interface);
        let functions: String =
            functions.map(|(_, function, ty, _)| format!("(export \"{function}\" (func {ty}))")).collect();
        imports += &format!("(import \"{name}\" (instance ${interface} {types} {functions}))\n");
        if *interface == "store" {
            imports += r#"(alias export $store "bucket" (type $bucket))
                (alias export $store "error" (type $error)) (alias export $store "key-response" (type $key-response))"#;
        }
        if *interface == "config" {
            imports += r#"(alias export $config "error" (type $config-error))"#;
        }
    }
    for (interface, function, ty, params) in FUNCTIONS.iter().filter(|function| has(function.0)) {
        let export = exported(interface, function);
        let ty = ty.replace("(borrow $bucket)", "u32").replace("(own $bucket)", "u32");
        let ty = if *interface == "config" { ty.replace("$error", "$config-error") } else { ty };
        let gets: String = (0..params.split_whitespace().count()).map(|i| format!("(local.get {i}) ")).collect();
        core_imports += &format!("(import \"host\" \"{export}\" (func ${export} (param {params} i32)))\n");
        core += &format!(
            "(func (export \"{export}\") (param {params}) (result i32) (call ${export} {gets} (i32.const 16)) (i32.const 16))"
        );
        lowered += &format!(
            "(core func ${export} (canon lower (func ${interface} \"{function}\") (memory $memory) (realloc $realloc)))\n"
        );
        with += &format!("(export \"{export}\" (func ${export}))");
        exports += &format!(
            "(func (export \"{export}\") {ty} (canon lift (core func $main \"{export}\") (memory $memory)
                (realloc $realloc) (post-return (core func $libc \"reset\"))))\n"
        );
    }
    if has("store") {
        core_imports += r#"(import "host" "drop" (func $drop (param i32)))"#;
        core += r#"(func (export "drop") (param i32) (call $drop (local.get 0)))"#;
        lowered += "(core func $drop (canon resource.drop $bucket))";
        with += r#"(export "drop" (func $drop))"#;
        exports += r#"(func (export "drop") (param "bucket" u32) (canon lift (core func $main "drop")))"#;
    }
    format!(
        r#"(component
            {imports}
            (core module $Libc
                (memory (export "memory") 2)
                (global $next (mut i32) (i32.const 1024))
                (func (export "reset") (param i32) (global.set $next (i32.const 1024)))
                (func (export "realloc") (param i32 i32 i32 i32) (result i32) (local $at i32)
                    (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
                    (global.set $next (i32.add (local.get $at) (local.get 3)))
                    (if (i32.gt_u (global.get $next) (i32.mul (memory.size) (i32.const 65536)))
                        (then (drop (memory.grow (i32.add (i32.shr_u (local.get 3) (i32.const 16)) (i32.const 1))))))
                    (local.get $at)))
            (core instance $libc (instantiate $Libc))
            (alias core export $libc "memory" (core memory $memory))
            (alias core export $libc "realloc" (core func $realloc))
            {lowered}
            (core module $Main {core_imports} {core} (func (export "trap") unreachable))
            (core instance $main (instantiate $Main (with "host" (instance {with}))))
            {exports}
            (func (export "trap") (canon lift (core func $main "trap"))))"#
    )
}

fn spec_in(engine: &WasmEngine, interfaces: &[&str], limits: ResourceLimits) -> SandboxSpec<()> {
    let component = engine.load_wat_blocking(&guest(interfaces), Profile::Plain).unwrap();
    let mut linker = component.linker();
    add_config(&mut linker).unwrap();
    add_keyvalue(&mut linker).unwrap();
    SandboxSpec::new(component.link(&linker).unwrap(), limits).unwrap()
}

const KEYVALUE: &[&str] = &["store", "atomics", "batch"];

fn spec(limits: ResourceLimits) -> SandboxSpec<()> {
    spec_in(&engine(), KEYVALUE, limits)
}

fn grants<const N: usize>(buckets: [(&str, &str); N]) -> KeyValueGrants {
    let buckets = buckets.map(|(guest, host)| (guest.to_owned(), host.to_owned()));
    KeyValueGrants { buckets: BTreeMap::from(buckets), ..KeyValueGrants::default() }
}

fn store() -> Arc<dyn KeyValueStore> {
    Arc::new(MemoryStore::new())
}

/// A guest with all of `wasi:keyvalue` and one bucket, `""`.
async fn with_bucket() -> (Guest, u32) {
    let mut guest = Guest::new(&spec(limits()).with_keyvalue(store(), grants([("", "carts")]))).await;
    let bucket = guest.open("").await.unwrap();
    (guest, bucket)
}

/// A sandbox that does not crash.
struct Guest {
    spec: SandboxSpec<()>,
    sandbox: Option<Sandbox<()>>,
}

impl Guest {
    async fn new(spec: &SandboxSpec<()>) -> Self {
        Self { spec: spec.clone(), sandbox: Some(spec.instantiate(()).await.unwrap()) }
    }

    async fn call<P, R>(&mut self, name: &str, params: P) -> R
    where
        P: ComponentNamedList + Lower + Send + Sync + 'static,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        let mut sandbox = self.sandbox.take().unwrap();
        let export = sandbox.typed(&self.spec.export(name).unwrap()).unwrap();
        let (result, sandbox) = sandbox.call(&export, params).await.unwrap();
        self.sandbox = Some(sandbox);
        result
    }

    async fn open(&mut self, identifier: &str) -> Result<u32, Error> {
        self.call::<_, Outcome<u32>>("store-open", (identifier.to_owned(),)).await.0
    }

    async fn get(&mut self, bucket: u32, key: &str) -> Result<Option<Vec<u8>>, Error> {
        self.call::<_, Outcome<Option<Vec<u8>>>>("store-get", (bucket, key.to_owned())).await.0
    }

    async fn set(&mut self, bucket: u32, key: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
        let value = value.as_ref().to_vec();
        self.call::<_, Outcome<()>>("store-set", (bucket, key.to_owned(), value)).await.0
    }

    async fn delete(&mut self, bucket: u32, key: &str) -> Result<(), Error> {
        self.call::<_, Outcome<()>>("store-delete", (bucket, key.to_owned())).await.0
    }

    async fn exists(&mut self, bucket: u32, key: &str) -> Result<bool, Error> {
        self.call::<_, Outcome<bool>>("store-exists", (bucket, key.to_owned())).await.0
    }

    async fn list(&mut self, bucket: u32, cursor: Option<u64>) -> KeyResponse {
        self.call::<_, Outcome<KeyResponse>>("store-list-keys", (bucket, cursor)).await.0.unwrap()
    }

    async fn increment(&mut self, bucket: u32, key: &str, delta: u64) -> Result<u64, Error> {
        self.call::<_, Outcome<u64>>("atomics-increment", (bucket, key.to_owned(), delta)).await.0
    }

    async fn get_many(&mut self, bucket: u32, keys: &[&str]) -> Result<Vec<Option<(String, Vec<u8>)>>, Error> {
        self.call::<_, Outcome<_>>("batch-get-many", (bucket, owned(keys))).await.0
    }

    async fn set_many(&mut self, bucket: u32, entries: Vec<(String, Vec<u8>)>) -> Result<(), Error> {
        self.call::<_, Outcome<()>>("batch-set-many", (bucket, entries)).await.0
    }

    async fn delete_many(&mut self, bucket: u32, keys: &[&str]) -> Result<(), Error> {
        self.call::<_, Outcome<()>>("batch-delete-many", (bucket, owned(keys))).await.0
    }
}

fn owned(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

fn numbered(count: usize, value: &[u8]) -> Vec<(String, Vec<u8>)> {
    (0..count).map(|i| (format!("key-{i:05}"), value.to_vec())).collect()
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, Error>, why: &str) {
    match result {
        Err(Error::Other(text)) => assert!(text.contains(why), "{text}"),
        other => panic!("{other:?}, not an error with {why:?}"),
    }
}

#[tokio::test]
async fn a_value_is_set_read_replaced_and_deleted() {
    let (mut guest, bucket) = with_bucket().await;
    assert_eq!(guest.get(bucket, "k").await, Ok(None));
    assert_eq!(guest.exists(bucket, "k").await, Ok(false));
    guest.set(bucket, "k", "one").await.unwrap();
    assert_eq!(guest.get(bucket, "k").await, Ok(Some(b"one".to_vec())));
    assert_eq!(guest.exists(bucket, "k").await, Ok(true));
    guest.set(bucket, "k", "").await.unwrap();
    assert_eq!(guest.get(bucket, "k").await, Ok(Some(Vec::new())));
    guest.delete(bucket, "k").await.unwrap();
    guest.delete(bucket, "k").await.unwrap();
    assert_eq!(guest.get(bucket, "k").await, Ok(None));
    assert_eq!(guest.list(bucket, None).await, KeyResponse { keys: Vec::new(), cursor: None });
}

#[tokio::test]
async fn two_handles_share_a_bucket_and_outlive_each_other() {
    let (mut guest, bucket) = with_bucket().await;
    let other = guest.open("").await.unwrap();
    guest.set(bucket, "k", "v").await.unwrap();
    guest.call::<_, ()>("drop", (bucket,)).await;
    assert_eq!(guest.get(other, "k").await, Ok(Some(b"v".to_vec())));
}

#[tokio::test]
async fn open_buckets_are_handles() {
    let limits = ResourceLimits { handles: 3, ..limits() };
    let spec = spec(limits).with_keyvalue(store(), grants([("", "carts")]));
    let mut guest = Guest::new(&spec).await;
    for _ in 0..10 {
        let bucket = guest.open("").await.unwrap();
        guest.call::<_, ()>("drop", (bucket,)).await;
    }
    let mut sandbox = guest.sandbox.unwrap();
    let open = sandbox.typed::<(String,), Outcome<u32>>(&spec.export("store-open").unwrap()).unwrap();
    for _ in 0..3 {
        sandbox = sandbox.call(&open, (String::new(),)).await.unwrap().1;
    }
    let crash = sandbox.call(&open, (String::new(),)).await.unwrap_err();
    assert!(matches!(crash.kind(), CrashKind::Handles { allowed: 3 } | CrashKind::HostCall { .. }), "{crash}");
}

#[tokio::test]
async fn what_is_not_granted_is_no_store_whether_it_is_there_or_not() {
    let (store, spec) = (store(), spec(limits()));
    drop(store.open("secrets").await.unwrap());
    let mut guest = Guest::new(&spec.clone().with_keyvalue(store, grants([("mine", "carts")]))).await;
    for identifier in ["secrets", "nowhere", "carts", "", "Mine"] {
        assert_eq!(guest.open(identifier).await, Err(Error::NoSuchStore), "{identifier:?}");
    }
    guest.open("mine").await.unwrap();
    // The default, with and without a store.
    let none = spec.clone().with_keyvalue(self::store(), KeyValueGrants::default());
    for spec in [spec, none] {
        assert_eq!(Guest::new(&spec).await.open("").await, Err(Error::NoSuchStore));
    }
}

#[tokio::test]
async fn components_share_a_bucket_only_if_both_are_granted_it() {
    let (store, spec) = (store(), spec(limits()));
    let of = |buckets| spec.clone().with_keyvalue(Arc::clone(&store), buckets);
    let mut one = Guest::new(&of(grants([("", "one"), ("both", "shared")]))).await;
    let mut other = Guest::new(&of(grants([("", "other"), ("common", "shared")]))).await;
    let (a, b) = (one.open("").await.unwrap(), other.open("").await.unwrap());
    one.set(a, "k", "private").await.unwrap();
    assert_eq!(other.get(b, "k").await, Ok(None));
    let (a, b) = (one.open("both").await.unwrap(), other.open("common").await.unwrap());
    one.set(a, "k", "public").await.unwrap();
    assert_eq!(other.get(b, "k").await, Ok(Some(b"public".to_vec())));
}

#[tokio::test]
async fn a_quota_of_bytes_counts_keys_and_values_and_what_an_entry_costs() {
    let bytes = ByteSize(2 * ENTRY_COST + 12);
    let grants = KeyValueGrants { bytes, ..grants([("", "carts"), ("2", "more")]) };
    let spec = spec(limits()).with_keyvalue(store(), grants);
    let mut guest = Guest::new(&spec).await;
    let (bucket, more) = (guest.open("").await.unwrap(), guest.open("2").await.unwrap());
    guest.set(bucket, "a", "12345").await.unwrap();
    assert_refused(guest.set(more, "b", "123456").await, "quota exceeded");
    guest.set(more, "b", "12345").await.unwrap();
    assert_eq!(spec.keyvalue_account().unwrap().bytes_used(), bytes.as_u64());
    // An empty entry is not free, and what is replaced is not counted.
    assert_refused(guest.set(bucket, "", "").await, "quota exceeded");
    guest.set(bucket, "a", "54321").await.unwrap();
    assert_refused(guest.set(bucket, "a", "123456").await, "quota exceeded");
    assert_eq!(guest.get(bucket, "a").await, Ok(Some(b"54321".to_vec())));
    assert_refused(guest.increment(bucket, "n", 1).await, "quota exceeded");
    guest.delete(more, "b").await.unwrap();
    guest.increment(bucket, "n", 1).await.unwrap();
}

#[tokio::test]
async fn a_quota_of_keys_is_that_of_all_sandboxes_of_a_component_together() {
    let grants = KeyValueGrants { keys: 3, ..grants([("", "carts")]) };
    let (store, spec) = (store(), spec(limits()));
    let component = spec.clone().with_keyvalue(Arc::clone(&store), grants.clone());
    let (mut one, mut other) = (Guest::new(&component).await, Guest::new(&component).await);
    let (a, b) = (one.open("").await.unwrap(), other.open("").await.unwrap());
    assert_refused(one.set_many(a, numbered(4, b"")).await, "3");
    assert_eq!(one.list(a, None).await.keys.len(), 3);
    assert_refused(other.set(b, "k", "").await, "quota exceeded");
    other.set(b, "key-00000", "replaced").await.unwrap();
    // Another component has its own quota, and who replaces an entry pays for it.
    let another = spec.clone().with_keyvalue(store, grants.clone());
    let mut third = Guest::new(&another).await;
    let c = third.open("").await.unwrap();
    third.set(c, "key-00001", "").await.unwrap();
    assert_eq!(component.keyvalue_account().unwrap().keys_used(), 2);
    assert_eq!(another.keyvalue_account().unwrap().keys_used(), 1);
    one.set(a, "k", "").await.unwrap();
    // A new version goes on with the count of the old one.
    let upgraded =
        spec.with_keyvalue(self::store(), grants).with_keyvalue_account(component.keyvalue_account().unwrap());
    let mut fourth = Guest::new(&upgraded).await;
    let d = fourth.open("").await.unwrap();
    assert_refused(fourth.set(d, "l", "").await, "quota exceeded");
}

#[tokio::test]
async fn a_number_is_incremented_as_decimal_text() {
    let (mut guest, bucket) = with_bucket().await;
    assert_eq!(guest.increment(bucket, "n", 5).await, Ok(5));
    assert_eq!(guest.increment(bucket, "n", 37).await, Ok(42));
    assert_eq!(guest.get(bucket, "n").await, Ok(Some(b"42".to_vec())));
    assert_refused(guest.increment(bucket, "n", u64::MAX).await, "larger than");
    assert_eq!(guest.increment(bucket, "n", 0).await, Ok(42));
    for value in [&b"text"[..], b"", b"\xff", b"-1", b"18446744073709551616"] {
        guest.set(bucket, "t", value).await.unwrap();
        assert_refused(guest.increment(bucket, "t", 1).await, "no decimal number");
        assert_eq!(guest.get(bucket, "t").await, Ok(Some(value.to_vec())));
    }
}

#[tokio::test]
async fn a_batch_is_what_its_single_operations_are() {
    let (mut guest, bucket) = with_bucket().await;
    guest.set_many(bucket, numbered(200, b"v")).await.unwrap();
    let found = guest.get_many(bucket, &["key-00199", "no", "key-00000", "key-00199"]).await.unwrap();
    let pair = |key: &str| Some((key.to_owned(), b"v".to_vec()));
    assert_eq!(found, [pair("key-00199"), None, pair("key-00000"), pair("key-00199")]);
    guest.delete_many(bucket, &["key-00199", "no", "key-00000"]).await.unwrap();
    assert_eq!(guest.list(bucket, None).await.keys.len(), 198);
    assert_eq!(guest.get_many(bucket, &[]).await, Ok(Vec::new()));
    guest.set_many(bucket, Vec::new()).await.unwrap();
}

#[tokio::test]
async fn a_batch_gives_way_to_other_tasks() {
    let (mut guest, bucket) = with_bucket().await;
    let turns = std::cell::Cell::new(0);
    let others = async {
        loop {
            turns.set(turns.get() + 1);
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        set = guest.set_many(bucket, numbered(640, b"v")) => set.unwrap(),
        () = others => unreachable!(),
    }
    assert!(turns.get() >= 9, "{}", turns.get());
}

#[tokio::test]
async fn get_many_of_one_key_is_no_amplifier() {
    let limits = ResourceLimits { host_call_bytes: ByteSize::kib(64), ..limits() };
    let mut guest = Guest::new(&spec(limits).with_keyvalue(store(), grants([("", "carts")]))).await;
    let bucket = guest.open("").await.unwrap();
    guest.set(bucket, "k", vec![1; 30 << 10]).await.unwrap();
    assert_eq!(guest.get_many(bucket, &["k"; 2]).await.unwrap().len(), 2);
    assert_refused(guest.get_many(bucket, &["k"; 3]).await, "65536 bytes");
    assert_refused(guest.get_many(bucket, &["k"; 500]).await, "65536 bytes");
    // Over several slices, and of small values.
    guest.set(bucket, "s", vec![1; 500]).await.unwrap();
    assert_eq!(guest.get_many(bucket, &["s"; 100]).await.unwrap().len(), 100);
    assert_refused(guest.get_many(bucket, &["s"; 130]).await, "65536 bytes");
}

#[tokio::test]
async fn a_value_that_is_too_large_for_its_reader_is_an_error() {
    let store = store();
    let bucket = store.open("carts").await.unwrap();
    bucket.set("k", Bytes::from(vec![0; 2_000]), &Account::unlimited()).await.unwrap();
    bucket.set("l", Bytes::from(vec![0; 1_000]), &Account::unlimited()).await.unwrap();
    let limits = ResourceLimits { host_call_bytes: ByteSize(1_999), ..limits() };
    let mut guest = Guest::new(&spec(limits).with_keyvalue(store, grants([("", "carts")]))).await;
    let bucket = guest.open("").await.unwrap();
    assert_refused(guest.get(bucket, "k").await, "1999 bytes");
    assert_eq!(guest.get(bucket, "l").await.unwrap().unwrap().len(), 1_000);
}

#[tokio::test]
async fn a_value_beyond_host_call_bytes_is_not_taken() {
    let limits = ResourceLimits { host_call_bytes: ByteSize(2_000), ..limits() };
    let spec = spec(limits).with_keyvalue(store(), grants([("", "carts")]));
    let mut guest = Guest::new(&spec).await;
    let bucket = guest.open("").await.unwrap();
    guest.set(bucket, "k", [0; 1_999]).await.unwrap();
    let mut sandbox = guest.sandbox.unwrap();
    let set = sandbox.typed::<_, Outcome<()>>(&spec.export("store-set").unwrap()).unwrap();
    let crash = sandbox.call(&set, (bucket, "k".to_owned(), vec![0_u8; 2_000])).await.unwrap_err();
    assert!(matches!(crash.kind(), CrashKind::HostCall { .. }), "{crash}");
}

#[tokio::test]
async fn keys_have_a_kibibyte_at_the_most() {
    let (mut guest, bucket) = with_bucket().await;
    let (longest, longer) = ("k".repeat(1 << 10), "k".repeat((1 << 10) + 1));
    guest.set(bucket, &longest, "").await.unwrap();
    assert_eq!(guest.increment(bucket, &longest[1..], 1).await, Ok(1));
    guest.set_many(bucket, vec![(longest.clone(), Vec::new())]).await.unwrap();
    assert_refused(guest.set(bucket, &longer, "").await, "too long");
    assert_refused(guest.get(bucket, &longer).await, "too long");
    assert_refused(guest.exists(bucket, &longer).await, "too long");
    assert_refused(guest.delete(bucket, &longer).await, "too long");
    assert_refused(guest.increment(bucket, &longer, 1).await, "too long");
    assert_refused(guest.get_many(bucket, &[&longer]).await, "too long");
    assert_refused(guest.set_many(bucket, vec![(longer.clone(), Vec::new())]).await, "too long");
    assert_refused(guest.delete_many(bucket, &[&longer]).await, "too long");
}

#[tokio::test]
async fn pages_are_bounded_and_stable_while_the_bucket_changes() {
    let (mut guest, bucket) = with_bucket().await;
    guest.set_many(bucket, numbered(2_500, b"v")).await.unwrap();
    let mut listed = Vec::new();
    let mut page = guest.list(bucket, None).await;
    let mut pages = 0;
    loop {
        pages += 1;
        assert!(page.keys.len() <= 1_000);
        listed.append(&mut page.keys);
        // What was listed is deleted or replaced, and new keys are made.
        guest.delete(bucket, &format!("key-{:05}", pages * 10)).await.unwrap();
        guest.set(bucket, "key-00000", "replaced").await.unwrap();
        guest.set(bucket, &format!("new-{pages}"), "").await.unwrap();
        match page.cursor {
            Some(cursor) => page = guest.list(bucket, Some(cursor)).await,
            None => break,
        }
    }
    assert_eq!(pages, 3);
    let old: Vec<_> = listed.iter().filter(|key| key.starts_with("key-")).cloned().collect();
    assert_eq!(old, numbered(2_500, b"").into_iter().map(|(key, _)| key).collect::<Vec<_>>());
    // Numbers that a guest makes up.
    assert_eq!(guest.list(bucket, Some(u64::MAX)).await, KeyResponse { keys: Vec::new(), cursor: None });
    assert_eq!(guest.list(bucket, Some(0)).await, guest.list(bucket, None).await);
}

#[tokio::test]
async fn pages_of_long_keys_are_bounded_by_bytes() {
    let (mut guest, bucket) = with_bucket().await;
    let entries: Vec<_> = (0..100).map(|i| (format!("{i:01024}"), Vec::new())).collect();
    guest.set_many(bucket, entries).await.unwrap();
    let page = guest.list(bucket, None).await;
    assert_eq!(page.keys.len(), 64);
    let rest = guest.list(bucket, page.cursor).await;
    assert_eq!((rest.keys.len(), rest.cursor), (36, None));
}

#[tokio::test]
async fn keys_that_are_longer_than_a_host_call_carries_are_listed() {
    let (store, granted) = (store(), grants([("", "shared")]));
    let mut writer = Guest::new(&spec(limits()).with_keyvalue(Arc::clone(&store), granted.clone())).await;
    let bucket = writer.open("").await.unwrap();
    let keys = ["short".to_owned(), "x".repeat(1 << 10), "last".to_owned()];
    for key in &keys {
        writer.set(bucket, key, "").await.unwrap();
    }
    let limits = ResourceLimits { host_call_bytes: ByteSize(100), ..limits() };
    let mut reader = Guest::new(&spec(limits).with_keyvalue(store, granted)).await;
    let bucket = reader.open("").await.unwrap();
    assert_eq!(reader.list(bucket, None).await, KeyResponse { keys: keys.to_vec(), cursor: None });
}

#[tokio::test]
async fn what_is_stored_survives_a_crash() {
    let spec = spec(limits()).with_keyvalue(store(), grants([("", "carts")]));
    let mut guest = Guest::new(&spec).await;
    let bucket = guest.open("").await.unwrap();
    guest.set(bucket, "k", "v").await.unwrap();
    let mut sandbox = guest.sandbox.unwrap();
    let trap = sandbox.typed::<(), ()>(&spec.export("trap").unwrap()).unwrap();
    sandbox.call(&trap, ()).await.unwrap_err();
    let mut next = Guest::new(&spec).await;
    let bucket = next.open("").await.unwrap();
    assert_eq!(next.get(bucket, "k").await, Ok(Some(b"v".to_vec())));
    assert_eq!(spec.keyvalue_account().unwrap().keys_used(), 1);
}

/// A store with one bucket that waits for permission, and then fails or panics.
#[derive(Debug, Default)]
struct Slow {
    waiting: Arc<Notify>,
    go_on: Arc<Notify>,
    panics: bool,
}

impl KeyValueStore for Slow {
    fn open<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Arc<dyn Bucket>> {
        Box::pin(async move {
            match name {
                "denied" => Err(KeyValueError::AccessDenied),
                _ => Ok(Arc::new(Self { waiting: self.waiting.clone(), go_on: self.go_on.clone(), ..*self }) as _),
            }
        })
    }
}

impl Slow {
    fn fails<T>(&self) -> StoreFuture<'_, T> {
        Box::pin(async {
            self.waiting.notify_one();
            self.go_on.notified().await;
            assert!(!self.panics, "the store is out of order");
            Err(KeyValueError::failed("connection to db.internal refused"))
        })
    }
}

impl Bucket for Slow {
    fn get<'a>(&'a self, _: &'a str) -> StoreFuture<'a, Option<Bytes>> {
        self.fails()
    }

    fn set<'a>(&'a self, _: &'a str, _: Bytes, _: &'a Account) -> StoreFuture<'a, ()> {
        self.fails()
    }

    fn delete<'a>(&'a self, _: &'a str) -> StoreFuture<'a, ()> {
        self.fails()
    }

    fn exists<'a>(&'a self, _: &'a str) -> StoreFuture<'a, bool> {
        self.fails()
    }

    fn list(&self, _: Option<u64>, _: usize, _: usize) -> StoreFuture<'_, KeyPage> {
        self.fails()
    }

    fn increment<'a>(&'a self, _: &'a str, _: u64, _: &'a Account) -> StoreFuture<'a, u64> {
        self.fails()
    }
}

#[tokio::test]
async fn waiting_for_a_slow_store_is_not_charged_and_its_failure_is_told() {
    let engine = engine();
    let slow = Slow::default();
    let (waiting, go_on) = (Arc::clone(&slow.waiting), Arc::clone(&slow.go_on));
    let spec = spec_in(&engine, KEYVALUE, limits());
    let spec = spec.with_keyvalue(Arc::new(slow), grants([("", "slow"), ("denied", "denied")]));
    let mut guest = Guest::new(&spec).await;
    assert_eq!(guest.open("denied").await, Err(Error::AccessDenied));
    let bucket = guest.open("").await.unwrap();
    let tick = async {
        waiting.notified().await;
        (0..100_000).for_each(|_| engine.tick());
        go_on.notify_one();
    };
    let (got, ()) = tokio::join!(guest.get(bucket, "k"), tick);
    // The cause is for the host.
    assert_eq!(got, Err(Error::Other("the store failed".to_owned())));
    assert_eq!(guest.sandbox.as_ref().unwrap().usage().cpu_ticks, 0);
}

#[tokio::test]
async fn a_store_that_panics_ends_the_sandbox_alone() {
    let slow = Slow { panics: true, ..Slow::default() };
    slow.go_on.notify_one();
    let spec = spec(limits()).with_keyvalue(Arc::new(slow), grants([("", "slow")]));
    let mut guest = Guest::new(&spec).await;
    let bucket = guest.open("").await.unwrap();
    let mut sandbox = guest.sandbox.unwrap();
    let exists = sandbox.typed::<_, Outcome<bool>>(&spec.export("store-exists").unwrap()).unwrap();
    let crash = sandbox.call(&exists, (bucket, "k".to_owned())).await.unwrap_err();
    assert!(matches!(crash.kind(), CrashKind::HostPanic { .. }), "{crash}");
    Guest::new(&spec).await.open("").await.unwrap();
}

type Entries = Vec<(String, String)>;

#[tokio::test]
async fn config_is_given_sorted_and_by_key() {
    let spec = spec_in(&engine(), &["config"], limits());
    let mut without = Guest::new(&spec).await;
    let (got,) = without.call::<_, (Result<Option<String>, ConfigError>,)>("config-get", ("k".to_owned(),)).await;
    assert_eq!(got, Ok(None));
    let (all,) = without.call::<_, (Result<Entries, ConfigError>,)>("config-get-all", ()).await;
    assert_eq!(all, Ok(Vec::new()));

    let spec = spec.with_config([("b", "2"), ("c", "3")]).with_config([("a", "1"), ("c", "4")]);
    let mut guest = Guest::new(&spec).await;
    for (key, value) in [("a", Some("1")), ("c", Some("4")), ("d", None), ("", None)] {
        let (got,) = guest.call::<_, (Result<Option<String>, ConfigError>,)>("config-get", (key.to_owned(),)).await;
        assert_eq!(got.unwrap().as_deref(), value);
    }
    let (all,) = guest.call::<_, (Result<Entries, ConfigError>,)>("config-get-all", ()).await;
    let expected = [("a", "1"), ("b", "2"), ("c", "4")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(all.unwrap(), expected);
}

#[tokio::test]
async fn config_beyond_host_call_bytes_is_an_error() {
    let limits = ResourceLimits { host_call_bytes: ByteSize(10), ..limits() };
    let spec = spec_in(&engine(), &["config"], limits);
    let mut fits = Guest::new(&spec.clone().with_config([("k", "123456789")])).await;
    let (all,) = fits.call::<_, (Result<Entries, ConfigError>,)>("config-get-all", ()).await;
    assert_eq!(all.unwrap().len(), 1);
    let mut over = Guest::new(&spec.with_config([("k", "1234567890"), ("long", "12345678901")])).await;
    let (all,) = over.call::<_, (Result<Entries, ConfigError>,)>("config-get-all", ()).await;
    assert!(matches!(&all, Err(ConfigError::Upstream(text)) if text.contains("host_call_bytes")), "{all:?}");
    for (key, is_given) in [("k", true), ("long", false)] {
        let (got,) = over.call::<_, (Result<Option<String>, ConfigError>,)>("config-get", (key.to_owned(),)).await;
        assert_eq!(got.is_ok(), is_given, "{got:?}");
    }
}

#[test]
fn the_tables_are_read_and_what_nobody_knows_is_refused() {
    const RESOURCES: &str = "[resources]\nmemory = \"1MiB\"\n";
    let read = |text: &str| SandboxManifest::from_toml(&format!("{RESOURCES}{text}"));
    let manifest = read(
        r#"
        [keyvalue]
        buckets = { "" = "carts", sessions = "shop-sessions" }
        bytes = "1MiB"
        keys = 7
        [config]
        greeting = "hello"
        retries = 3
        "#,
    )
    .unwrap();
    let expected =
        KeyValueGrants { bytes: ByteSize::mib(1), keys: 7, ..grants([("", "carts"), ("sessions", "shop-sessions")]) };
    assert_eq!(manifest.keyvalue, expected);
    assert_eq!(manifest.config.into_iter().collect::<Vec<_>>().join(), "greeting=hello,retries=3");
    let written = KeyValueGrants { bytes: ByteSize((3 << 20) + 1), ..manifest.keyvalue };
    let text = serde_json::to_string(&written).unwrap();
    assert_eq!(serde_json::from_str::<KeyValueGrants>(&text).unwrap(), written);
    let default = read("").unwrap();
    assert!(default.keyvalue.buckets.is_empty() && default.config.is_empty());
    let unknown = read("[keyvalue]\nbucket = \"carts\"").unwrap_err();
    assert!(matches!(&unknown, ManifestError::UnknownKey { table, .. } if table == "keyvalue"), "{unknown}");
    for text in ["[keyvalue]\nbuckets = [\"carts\"]", "[keyvalue]\nkeys = -1", "[config]\nk = [1]"] {
        assert!(matches!(read(text), Err(ManifestError::Toml(_))), "{text}");
    }
}

trait Join {
    fn join(self) -> String;
}

impl Join for Vec<(String, String)> {
    fn join(self) -> String {
        self.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
    }
}

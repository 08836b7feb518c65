//! What has gone wrong in wasmtime before, seen to go well here: a test for each class of its advisories that a guest
//! could reach. Those about sockets and folders are in the files of these, those about loading with the engine.

use airssys_wasm_engine::{
    Allocation, EngineConfig, PoolConfig, Profile, WasmEngine,
    wasmtime::{Trap, component::Val},
};
use airssys_wasm_fixtures::{RANDOM, WASI_PROBE};
use airssys_wasm_isolation::{Crash, CrashKind, DynamicCallError, SandboxSpec, Stdio, TrapCode, WasiGrants};
use airssys_wasm_limits::{ByteSize, ResourceLimits};

use crate::{Host, engine, limits, probe::Probe, spec, spec_in};

/// Calls an export of a fresh sandbox and gives the number that it returns; 0 if it returns none.
async fn outcome(spec: &SandboxSpec<Host>, name: &str, arguments: &[u32]) -> Result<u32, Crash> {
    let mut sandbox = spec.instantiate(Host::default()).await.unwrap();
    let export = sandbox.dynamic(&spec.export(name).unwrap()).unwrap();
    let arguments: Vec<_> = arguments.iter().copied().map(Val::U32).collect();
    match sandbox.call_dynamic(&export, &arguments).await {
        Ok((results, _)) => Ok(match results[..] {
            [Val::U32(result)] => result,
            _ => 0,
        }),
        Err(DynamicCallError::Crash(crash)) => Err(crash),
        Err(other) => panic!("{other}"),
    }
}

fn trap(trap: Trap) -> CrashKind {
    CrashKind::Trap { trap: TrapCode(trap) }
}

/// GHSA-gqmc: the host made as many zeroes as it was asked for, before it looked whether the stream takes them.
#[tokio::test]
async fn zeroes_are_written_only_as_far_as_the_output_takes_them() {
    for stdout in [Stdio::Discard, Stdio::Tracing, Stdio::writer(std::io::sink())] {
        let grants = WasiGrants { stdout, ..WasiGrants::default() };
        let spec = spec(WASI_PROBE, limits()).with_wasi(grants.clone());
        for len in [1 << 17, 1 << 40, u64::MAX] {
            let mut probe = Probe::of(spec.clone()).await;
            let crash = probe.crash_or_run(&format!("zeroes {len}")).await.unwrap_err();
            assert!(matches!(crash.kind(), CrashKind::HostCall { .. }), "{grants:?}: {len}: {crash}");
        }
        let mut probe = Probe::of(spec).await;
        for _ in 0..3 {
            assert_eq!(probe.run("zeroes 4096").await, "done", "{grants:?}");
        }
    }
}

/// A component with so much memory and such a table. It fills both, or says how much of them somebody has filled.
fn with_room(pages: u32, elements: u32, data: &str) -> String {
    format!(
        r#"(component
          (core module $m
            (memory {pages} 16)
            (table $t {elements} 1000 funcref)
            {data}
            (elem declare func $f)
            (func $f)
            (func $fill (export "fill")
              (drop (memory.grow (i32.sub (i32.const 16) (memory.size))))
              (memory.fill (i32.const 0) (i32.const 0xaa) (i32.const 0x10_0000))
              (drop (table.grow $t (ref.func $f) (i32.sub (i32.const 1000) (table.size $t))))
              (table.fill $t (i32.const 0) (ref.func $f) (i32.const 1000)))
            (func (export "fill-and-trap") (call $fill) (unreachable))
            (func (export "byte") (param i32) (result i32) (i32.load8_u (local.get 0)))
            (func (export "element") (param i32) (result i32) (ref.is_null (table.get $t (local.get 0))))
            ;; The number of words that are not zero, and of elements that are not null.
            (func $count (export "count") (result i32) (local $at i32) (local $found i32)
              (loop $next
                (if (i64.ne (i64.load (local.get $at)) (i64.const 0))
                  (then (local.set $found (i32.add (local.get $found) (i32.const 1)))))
                (local.set $at (i32.add (local.get $at) (i32.const 8)))
                (br_if $next (i32.lt_u (local.get $at) (i32.mul (memory.size) (i32.const 0x1_0000)))))
              (local.set $at (i32.const 0))
              (loop $next
                (if (i32.eqz (ref.is_null (table.get $t (local.get $at))))
                  (then (local.set $found (i32.add (local.get $found) (i32.const 1)))))
                (local.set $at (i32.add (local.get $at) (i32.const 1)))
                (br_if $next (i32.lt_u (local.get $at) (table.size $t))))
              (local.get $found))
            (func (export "grow-and-count") (result i32)
              (drop (memory.grow (i32.sub (i32.const 16) (memory.size))))
              (drop (table.grow $t (ref.null func) (i32.sub (i32.const 1000) (table.size $t))))
              (call $count))
            (func (export "fill-and-count") (result i32) (call $fill) (call $count)))
          (core instance $i (instantiate $m))
          (func (export "fill") (canon lift (core func $i "fill")))
          (func (export "fill-and-trap") (canon lift (core func $i "fill-and-trap")))
          (func (export "byte") (param "at" u32) (result u32) (canon lift (core func $i "byte")))
          (func (export "element") (param "at" u32) (result u32) (canon lift (core func $i "element")))
          (func (export "count") (result u32) (canon lift (core func $i "count")))
          (func (export "fill-and-count") (result u32) (canon lift (core func $i "fill-and-count")))
          (func (export "grow-and-count") (result u32) (canon lift (core func $i "grow-and-count"))))"#
    )
}

/// GHSA-6wgr and its like: a slot of the pool held what the guest before had left, or was larger than its guest's.
#[tokio::test]
async fn a_slot_of_the_pool_holds_nothing_of_the_guest_before() {
    for (copy_on_write, signals_based_traps, keep_resident) in [
        (true, true, 64 << 10),
        (true, false, 64 << 10),
        (false, true, 64 << 10),
        (false, false, 64 << 10),
        (true, true, 0),
        (false, true, 2 << 20),
        (true, false, 2 << 20),
    ] {
        let case = format!("{copy_on_write} {signals_based_traps} {keep_resident}");
        let pool = PoolConfig {
            core_instances: 1,
            core_instances_per_component: 1,
            memories_per_component: 1,
            tables_per_component: 1,
            copy_on_write,
            keep_resident,
            ..PoolConfig::for_components(1)
        };
        let config = EngineConfig { pool: Some(pool), signals_based_traps, ..EngineConfig::small() };
        let engine = WasmEngine::new(config.compile_in_process().with_manual_ticks()).unwrap();
        let load = |text: &str| {
            let spec = spec_in(&engine, text.as_bytes(), Profile::Plain, limits());
            assert_eq!(spec.template().loaded().allocation(), Allocation::Pooled, "{case}");
            spec
        };
        let first = load(&with_room(1, 10, r#"(data (i32.const 0x8000) "of the first")"#));
        let small = load(&with_room(1, 10, ""));
        let large = load(&with_room(16, 1000, ""));
        // Twelve bytes of data are two words of eight.
        assert_eq!(outcome(&first, "count", &[]).await.unwrap(), 2, "{case}");
        assert_eq!(outcome(&first, "fill-and-count", &[]).await.unwrap(), (1 << 17) + 1000, "{case}");
        for end in ["fill", "fill-and-trap"] {
            let fill = async || assert_eq!(outcome(&first, end, &[]).await.is_ok(), end == "fill", "{case}");
            for next in [&small, &large] {
                for count in ["count", "grow-and-count"] {
                    fill().await;
                    assert_eq!(outcome(next, count, &[]).await.unwrap(), 0, "{case}: {end}, {count}");
                }
            }
            fill().await;
            assert_eq!(outcome(&first, "grow-and-count", &[]).await.unwrap(), 2, "{case}: {end}, with its own data");

            fill().await;
            let crash = outcome(&small, "byte", &[0x1_0000]).await.unwrap_err();
            assert_eq!(*crash.kind(), trap(Trap::MemoryOutOfBounds), "{case}: {end}");
            fill().await;
            let crash = outcome(&small, "element", &[10]).await.unwrap_err();
            assert_eq!(*crash.kind(), trap(Trap::TableOutOfBounds), "{case}: {end}");
            assert_eq!(outcome(&small, "byte", &[0xffff]).await.unwrap(), 0, "{case}: {end}");
            assert_eq!(outcome(&small, "element", &[9]).await.unwrap(), 1, "{case}: {end}");
        }
    }
}

/// One component lends another as many times the same resource as it is told to. The other one gives them back.
const LENDER: &str = r#"(component
  (component $owner
    (type $rep (resource (rep i32)))
    (export $r "r" (type $rep))
    (core func $new (canon resource.new $rep))
    (core module $m
      (import "r" "new" (func $new (param i32) (result i32)))
      (func (export "make") (result i32) (call $new (i32.const 7))))
    (core instance $i (instantiate $m (with "r" (instance (export "new" (func $new))))))
    (func (export "make") (result (own $r)) (canon lift (core func $i "make"))))
  (component $borrower
    (import "r" (type $r (sub resource)))
    (core func $drop (canon resource.drop $r))
    (core module $m
      (import "r" "drop" (func $drop (param i32)))
      (memory (export "memory") 16)
      (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 0))
      (func (export "take") (param $at i32) (param $len i32)
        (block $done
          (loop $next
            (br_if $done (i32.eqz (local.get $len)))
            (call $drop (i32.load (local.get $at)))
            (local.set $at (i32.add (local.get $at) (i32.const 4)))
            (local.set $len (i32.sub (local.get $len) (i32.const 1)))
            (br $next)))))
    (core instance $i (instantiate $m (with "r" (instance (export "drop" (func $drop))))))
    (func (export "take") (param "those" (list (borrow $r)))
      (canon lift (core func $i "take") (memory (core memory $i "memory")) (realloc (core func $i "realloc")))))
  (component $lender
    (import "r" (type $r (sub resource)))
    (import "make" (func $make (result (own $r))))
    (import "take" (func $take (param "those" (list (borrow $r)))))
    (core module $memory (memory (export "memory") 16))
    (core instance $memory (instantiate $memory))
    (core func $make (canon lower (func $make)))
    (core func $take (canon lower (func $take) (memory (core memory $memory "memory"))))
    (core module $m
      (import "" "memory" (memory 16))
      (import "" "make" (func $make (result i32)))
      (import "" "take" (func $take (param i32 i32)))
      (func (export "lend") (param $n i32) (local $handle i32) (local $at i32)
        (local.set $handle (call $make))
        (loop $next
          (i32.store (local.get $at) (local.get $handle))
          (local.set $at (i32.add (local.get $at) (i32.const 4)))
          (br_if $next (i32.lt_u (local.get $at) (i32.mul (local.get $n) (i32.const 4)))))
        (call $take (i32.const 0) (local.get $n))))
    (core instance $i (instantiate $m (with "" (instance
      (export "memory" (memory $memory "memory"))
      (export "make" (func $make))
      (export "take" (func $take))))))
    (func (export "lend") (param "n" u32) (canon lift (core func $i "lend"))))
  (instance $o (instantiate $owner))
  (alias export $o "r" (type $r))
  (instance $b (instantiate $borrower (with "r" (type $r))))
  (instance $l (instantiate $lender
    (with "r" (type $r)) (with "make" (func $o "make")) (with "take" (func $b "take"))))
  (func (export "lend") (alias export $l "lend")))"#;

/// Lends the host as many times the same resource as it is told to.
const POLLER: &str = r#"(component
  (import "wasi:io/poll@0.2.0" (instance $poll
    (export "pollable" (type $pollable (sub resource)))
    (export "poll" (func (param "in" (list (borrow $pollable))) (result (list u32))))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
    (alias outer 1 $pollable (type $outer))
    (export "pollable" (type $pollable (eq $outer)))
    (export "subscribe-duration" (func (param "when" u64) (result (own $pollable))))))
  (core module $memory
    (memory (export "memory") 32)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 0x10_0000)))
  (core instance $memory (instantiate $memory))
  (core func $subscribe (canon lower (func $clock "subscribe-duration")))
  (core func $poll (canon lower (func $poll "poll")
    (memory (core memory $memory "memory")) (realloc (core func $memory "realloc"))))
  (core module $m
    (import "" "memory" (memory 32))
    (import "" "subscribe" (func $subscribe (param i64) (result i32)))
    (import "" "poll" (func $poll (param i32 i32 i32)))
    (func (export "lend") (param $n i32) (local $handle i32) (local $at i32)
      (local.set $handle (call $subscribe (i64.const 0)))
      (local.set $at (i32.const 16))
      (loop $next
        (i32.store (local.get $at) (local.get $handle))
        (local.set $at (i32.add (local.get $at) (i32.const 4)))
        (br_if $next (i32.lt_u (local.get $at) (i32.add (i32.const 16) (i32.mul (local.get $n) (i32.const 4))))))
      (call $poll (i32.const 16) (local.get $n) (i32.const 0))))
  (core instance $i (instantiate $m (with "" (instance
    (export "memory" (memory $memory "memory"))
    (export "subscribe" (func $subscribe))
    (export "poll" (func $poll))))))
  (func (export "lend") (param "n" u32) (canon lift (core func $i "lend"))))"#;

/// GHSA-6fr9: what is lent took room in the host without being counted.
#[tokio::test]
async fn what_is_lent_counts_as_a_handle() {
    // One handle is the owner's. To another component it counts where it is lent and where it is held.
    for (guest, most) in [(LENDER, 49), (POLLER, 99)] {
        let spec = spec(guest, ResourceLimits { handles: 100, ..limits() });
        outcome(&spec, "lend", &[most]).await.unwrap();
        for n in [most + 1, 200_000] {
            let crash = outcome(&spec, "lend", &[n]).await.unwrap_err();
            assert!(matches!(crash.kind(), CrashKind::HostCall { .. }), "{n}: {crash}");
        }
    }
}

/// GHSA-m63x: what was called by a reference cost no fuel.
#[tokio::test]
async fn a_call_by_reference_costs_the_fuel_of_a_call() {
    let guest = r#"(component
      (core module $m
        (type $step (func (param i32) (result i32)))
        (type $forever (func (param i32)))
        (table 1 funcref)
        (elem (i32.const 0) $step)
        (elem declare func $step $forever)
        (func $step (type $step)
          (i32.add (i32.add (local.get 0) (i32.const 1)) (i32.mul (i32.const 0) (local.get 0))))
        (func (export "call") (param $n i32) (local $x i32)
          (loop $next
            (local.set $x (call $step (local.get $x)))
            (br_if $next (i32.lt_u (local.get $x) (local.get $n)))))
        (func (export "call-indirect") (param $n i32) (local $x i32)
          (loop $next
            (local.set $x (call_indirect (type $step) (local.get $x) (i32.const 0)))
            (br_if $next (i32.lt_u (local.get $x) (local.get $n)))))
        (func (export "call-ref") (param $n i32) (local $x i32)
          (loop $next
            (local.set $x (call_ref $step (local.get $x) (ref.func $step)))
            (br_if $next (i32.lt_u (local.get $x) (local.get $n)))))
        (func $forever (export "forever") (type $forever)
          (return_call_ref $forever (local.get 0) (ref.func $forever))))
      (core instance $i (instantiate $m))
      (func (export "call") (param "n" u32) (canon lift (core func $i "call")))
      (func (export "call-indirect") (param "n" u32) (canon lift (core func $i "call-indirect")))
      (func (export "call-ref") (param "n" u32) (canon lift (core func $i "call-ref")))
      (func (export "forever") (param "n" u32) (canon lift (core func $i "forever"))))"#;
    let engine = engine();
    let spec = spec_in(&engine, guest.as_bytes(), Profile::Metered, ResourceLimits { fuel: Some(100_000), ..limits() });
    let used = async |name: &'static str, n| {
        let sandbox = spec.instantiate(Host::default()).await.unwrap();
        crate::call(&spec, sandbox, name, Some(n)).await.unwrap().usage().fuel.unwrap()
    };
    let each = async |name| used(name, 1_001).await - used(name, 1).await;
    let call = each("call").await;
    assert!(call >= 1_000 * 10, "{call}");
    for name in ["call-ref", "call-indirect"] {
        let by_reference = each(name).await;
        assert!(by_reference >= call, "{name}: {by_reference} is less than {call}");
        let crash = outcome(&spec, name, &[100_000]).await.unwrap_err();
        assert_eq!(*crash.kind(), CrashKind::OutOfFuel { allowed: 100_000 }, "{name}");
    }
    let crash = outcome(&spec, "forever", &[0]).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::OutOfFuel { allowed: 100_000 });
}

/// GHSA-jqpg: names of fields, which each value of a record has of its own in the host, were not counted.
#[tokio::test]
async fn the_names_in_values_count_as_what_a_call_returns() {
    let limits = ResourceLimits { message_size: ByteSize::mib(1), ..limits() };
    for (length, fits) in [(10, true), (10_000, false)] {
        let name = "a".repeat(length);
        for ty in [
            format!(r#"(record (field "{name}" u8))"#),
            format!(r#"(variant (case "{name}" u8))"#),
            format!(r#"(enum "{name}")"#),
        ] {
            let guest = format!(
                r#"(component
                  (type $t {ty})
                  (export $u "t" (type $t))
                  (core module $m
                    (memory (export "memory") 1)
                    (data (i32.const 0) "\10\00\00\00\e8\03\00\00")
                    (func (export "all") (result i32) (i32.const 0)))
                  (core instance $i (instantiate $m))
                  (func (export "all") (result (list $u))
                    (canon lift (core func $i "all") (memory (core memory $i "memory")))))"#
            );
            let spec = spec(guest, limits.clone());
            match outcome(&spec, "all", &[]).await {
                Ok(_) => assert!(fits, "{length}: {}", &ty[..12]),
                Err(crash) => {
                    assert!(!fits && matches!(crash.kind(), CrashKind::BadValue { .. }), "{length}: {crash}");
                }
            }
        }
    }
}

/// One component hands another a string of its memory, of so many units. The other one says where it is to go: at
/// first, or only once the host has found that the first place is too small or too large.
fn strings(from: &str, to: &str) -> String {
    format!(
        r#"(component
          (component $taker
            (core module $m
              (memory (export "memory") 1)
              (global $room (mut i32) (i32.const 0))
              (global $later (mut i32) (i32.const 0))
              (func (export "place") (param i32 i32)
                (global.set $room (local.get 0))
                (global.set $later (local.get 1)))
              (func (export "realloc") (param $old i32) (param $old-size i32) (param $align i32) (param $size i32)
                (result i32)
                (if (result i32) (i32.and (global.get $later) (i32.eqz (local.get $old-size)))
                  (then (i32.const 0))
                  (else (global.get $room))))
              (func (export "take") (param i32 i32)))
            (core instance $i (instantiate $m))
            (func (export "place") (param "at" u32) (param "later" bool) (canon lift (core func $i "place")))
            (func (export "take") (param "text" string) (canon lift (core func $i "take")
              (memory (core memory $i "memory")) (realloc (core func $i "realloc")) string-encoding={to})))
          (component $giver
            (import "place" (func $place (param "at" u32) (param "later" bool)))
            (import "take" (func $take (param "text" string)))
            (core module $memory
              (memory (export "memory") 1)
              ;; Full of what is text in each encoding: `é`, `Ã©` or `꧃`.
              (func $fill (local $at i32)
                (loop $next
                  (i32.store (local.get $at) (i32.const 0xa9c3_a9c3))
                  (local.set $at (i32.add (local.get $at) (i32.const 4)))
                  (br_if $next (i32.lt_u (local.get $at) (i32.const 0x1_0000)))))
              (start $fill))
            (core instance $memory (instantiate $memory))
            (core func $place (canon lower (func $place)))
            (core func $take (canon lower (func $take) (memory (core memory $memory "memory")) string-encoding={from}))
            (core module $m
              (import "" "place" (func $place (param i32 i32)))
              (import "" "take" (func $take (param i32 i32)))
              (func (export "give") (param $at i32) (param $len i32) (param $room i32) (param $later i32)
                (call $place (local.get $room) (local.get $later))
                (call $take (local.get $at) (local.get $len))))
            (core instance $i (instantiate $m (with "" (instance
              (export "place" (func $place)) (export "take" (func $take))))))
            (func (export "give") (param "at" u32) (param "len" u32) (param "room" u32) (param "later" u32)
              (canon lift (core func $i "give"))))
          (instance $t (instantiate $taker))
          (instance $g (instantiate $giver (with "place" (func $t "place")) (with "take" (func $t "take"))))
          (func (export "give") (alias export $g "give")))"#
    )
}

/// GHSA-394w, GHSA-jxhv and GHSA-hx6p: lengths and addresses that the host did not check when it made one kind of
/// string of another.
#[tokio::test]
async fn strings_between_components_are_checked_at_both_ends() {
    /// The bit of a length in `latin1+utf16` that says which one it is.
    const UTF16: u32 = 1 << 31;
    let engine = engine();
    let encodings = ["utf8", "utf16", "latin1+utf16"];
    // From and to what, where the first place is not the last.
    let mut moved = Vec::new();
    for (from, to) in encodings.iter().flat_map(|from| encodings.iter().map(move |to| (*from, *to))) {
        let spec = spec_in(&engine, strings(from, to).as_bytes(), Profile::Plain, limits());
        let give = async |at, len, room, later| outcome(&spec, "give", &[at, len, room, later]).await;
        let traps = async |at, len, room, trap: Trap| {
            let case = format!("{from} to {to}: {len} units at {at}, to {room}");
            match give(at, len, room, 0).await {
                Ok(_) => panic!("{case}: went well"),
                Err(crash) => assert_eq!(*crash.kind(), self::trap(trap), "{case}: {crash}"),
            }
        };
        // A page of units, as many as fit, and the address of the last one.
        let (most, last) = if from == "utf16" { (0x8000, 0xfffe) } else { (0x1_0000, 0xfffe) };
        let mut beyond = vec![(0, most + 1), (last, most), (last, 3), (0, UTF16 - 1), (0, u32::MAX - 1), (0, u32::MAX)];
        if from == "latin1+utf16" {
            beyond.extend([(0, UTF16 | 0x8001), (last, UTF16 | 2), (2, u32::MAX)]);
        } else {
            beyond.extend([(0, UTF16), (0, UTF16 + 1), (last, UTF16), (2, u32::MAX)]);
        }
        for (at, len) in beyond {
            traps(at, len, 0, Trap::StringOutOfBounds).await;
        }
        for room in [0xfffe, 0x1_0000, UTF16, UTF16 - 2, u32::MAX - 1] {
            for len in [8, 0x1000] {
                traps(0, len, room, Trap::StringOutOfBounds).await;
            }
        }
        let misaligned = if to == "utf8" { Trap::StringOutOfBounds } else { Trap::UnalignedPointer };
        traps(0, 8, u32::MAX, misaligned).await;
        if to != "utf8" {
            traps(0, 8, 1, misaligned).await;
        }
        for room in [0x1_0000, UTF16, u32::MAX - 1] {
            match give(0, 0x1000, room, 1).await {
                Ok(_) => {}
                Err(crash) => {
                    assert_eq!(*crash.kind(), trap(Trap::StringOutOfBounds), "{from} to {to}: later {room}: {crash}");
                    if !moved.contains(&(from, to)) {
                        moved.push((from, to));
                    }
                }
            }
        }
        for (len, room, later) in [(0, 0, 0), (8, 0, 0), (0x1000, 0x100, 0), (0x1000, 0, 1)] {
            give(0, len, room, later).await.unwrap();
        }
    }
    let (utf8, utf16, either) = (encodings[0], encodings[1], encodings[2]);
    assert_eq!(moved, [(utf8, utf16), (utf8, either), (utf16, utf8), (utf16, either), (either, utf8)]);
}

/// GHSA-7v24: what a component calls to make room for a result could call the host again.
#[tokio::test]
async fn making_room_for_a_result_of_the_host_does_not_call_it_again() {
    let step = r#"(component
        (import "step" (func $step (result u32)))
        (core func $step (canon lower (func $step)))
        "#;
    let with_step = r#"(instantiate $mem (with "host" (instance (export "step" (func $step)))))"#;
    let calls_host = RANDOM
        .replace("(component\n", step)
        .replace("(core module $mem", "(core module $mem (import \"host\" \"step\" (func $step (result i32)))")
        .replace("(i32.const 0x10000))", "(drop (call $step)) (i32.const 0x10000))")
        .replace("(instantiate $mem)", with_step);
    for (guest, ends_well) in [(RANDOM, true), (&calls_host, false)] {
        let spec = spec(guest, limits());
        let mut sandbox = spec.instantiate(Host::default()).await.unwrap();
        let get = sandbox.typed::<(u64,), ()>(&spec.export("get").unwrap()).unwrap();
        match sandbox.call(&get, (100,)).await {
            Ok(_) => assert!(ends_well),
            Err(crash) => assert!(!ends_well && *crash.kind() == trap(Trap::CannotLeaveComponent), "{crash}"),
        }
    }
}

//! Every way to crash, what is known afterwards, and that nobody else notices.

use airssys_wasm_engine::{Profile, wasmtime::Trap};
use airssys_wasm_fixtures::{C, HOST_CALLS, RUST, SPIN, TRAPS, VALUES};
use airssys_wasm_isolation::{Crash, CrashKind, TrapCode, WasiGrants};

use crate::{Host, HostRefuses, call, engine, limits, sandbox, spec, spec_in, wasi::RUN};

async fn crash_of(component: impl AsRef<[u8]>, export: &str, argument: Option<u32>) -> Crash {
    let (spec, sandbox) = sandbox(component, limits()).await;
    call(&spec, sandbox, export, argument).await.unwrap_err()
}

#[tokio::test]
async fn each_trap_is_known_by_its_variant() {
    let traps = [
        ("unreachable", Trap::UnreachableCodeReached),
        ("divide-by-zero", Trap::IntegerDivisionByZero),
        ("integer-overflow", Trap::IntegerOverflow),
        ("bad-conversion", Trap::BadConversionToInteger),
        ("memory-out-of-bounds", Trap::MemoryOutOfBounds),
        ("table-out-of-bounds", Trap::TableOutOfBounds),
        ("null-call", Trap::IndirectCallToNull),
        ("bad-signature", Trap::BadSignature),
    ];
    let engine = engine();
    let spec = spec_in(&engine, TRAPS.as_bytes(), Profile::Plain, limits());
    let mut neighbour = spec.instantiate(Host::default()).await.unwrap();
    for (export, trap) in traps {
        let sandbox = spec.instantiate(Host::default()).await.unwrap();
        let crash = call(&spec, sandbox, export, None).await.unwrap_err();
        assert_eq!(*crash.kind(), CrashKind::Trap { trap: TrapCode(trap) });
        assert_eq!(crash.export(), Some(export));
        assert_eq!(crash.usage().memory, 65_536);
        assert_eq!(crash.backtrace().len(), 1, "{crash}");
        assert!(crash.backtrace()[0].offset.is_some());
        neighbour = call(&spec, neighbour, "ok", None).await.unwrap();
    }
}

#[tokio::test]
async fn a_stack_overflow_keeps_as_many_frames_as_the_engine_says() {
    let crash = crash_of(TRAPS, "recurse", None).await;
    assert_eq!(*crash.kind(), CrashKind::StackOverflow);
    assert_eq!(crash.backtrace().len(), 16);
    assert_eq!(crash.backtrace()[0].name.as_deref(), Some("recurse"));
    assert!(crash.to_string().starts_with("`recurse` crashed: the wasm stack is exhausted"), "{crash}");
}

#[tokio::test]
async fn a_compiled_guest_crashes_with_the_names_of_its_functions() {
    let (spec, mut sandbox) = sandbox(RUST, limits()).await;
    let fail = spec.export("fixture:guest/api@1.0.0#fail").unwrap();
    let fail = sandbox.typed::<(String,), ()>(&fail).unwrap();
    let crash = sandbox.call(&fail, ("on purpose".into(),)).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Trap { trap: TrapCode(Trap::UnreachableCodeReached) });
    assert!(crash.backtrace().iter().any(|frame| frame.name.as_ref().is_some_and(|name| name.contains("fail"))));
}

#[tokio::test]
async fn the_frames_of_a_crash_are_shown_demangled_and_kept_as_they_are() {
    let (spec, mut sandbox) = sandbox(RUST, limits()).await;
    let fail = spec.export("fixture:guest/api@1.0.0#fail").unwrap();
    let fail = sandbox.typed::<(String,), ()>(&fail).unwrap();
    let crash = sandbox.call(&fail, ("on purpose".into(),)).await.unwrap_err();
    let mangled = |name: &&str| name.starts_with("_R") || name.starts_with("_ZN");
    assert!(crash.backtrace().iter().filter_map(|frame| frame.name.as_deref()).any(|name| mangled(&name)), "{crash:?}");
    let shown = crash.to_string();
    assert!(!shown.contains("at _R") && !shown.contains("at _ZN") && shown.contains("std::panicking"), "{shown}");
    assert_eq!(crash.stderr(), "", "it has none");
}

#[tokio::test]
async fn what_a_guest_last_wrote_to_its_standard_error_is_in_its_crash() {
    let grants = WasiGrants { args: vec!["guest".into(), "exit".into()], ..WasiGrants::default() };
    let spec = spec(C, limits()).with_wasi(grants);
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    let crash = call(&spec, sandbox, RUN, None).await.unwrap_err();
    assert_eq!((crash.kind(), crash.stderr()), (&CrashKind::Exit { code: 1 }, "to stderr"));
    assert!(crash.to_string().contains("\n    stderr: to stderr"), "{crash}");
    let read: Crash = serde_json::from_str(&serde_json::to_string(&crash).unwrap()).unwrap();
    assert_eq!(read.stderr(), "to stderr");
}

#[tokio::test]
async fn a_host_functions_error_is_kept_with_its_type() {
    let crash = crash_of(HOST_CALLS, "fail", None).await;
    assert_eq!(*crash.kind(), CrashKind::HostCall { message: "the host function refuses".into() });
    assert_eq!(crash.host_error().unwrap().downcast_ref(), Some(&HostRefuses));
    assert_eq!(crash.backtrace().len(), 1);
}

#[tokio::test]
async fn malformed_arguments_of_a_host_call_are_a_failed_host_call() {
    let crash = crash_of(HOST_CALLS, "take-out-of-bounds", None).await;
    assert!(matches!(crash.kind(), CrashKind::HostCall { .. }), "{crash}");
}

#[tokio::test]
async fn a_host_functions_panic_stops_the_guest_and_not_the_host() {
    let engine = engine();
    let spec = spec_in(&engine, HOST_CALLS.as_bytes(), Profile::Plain, limits());
    let neighbour = spec.instantiate(Host::default()).await.unwrap();
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    let crash = call(&spec, sandbox, "panic", None).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::HostPanic { message: "host function out of order".into() });
    call(&spec, neighbour, "steps", Some(3)).await.unwrap();
}

#[tokio::test]
async fn malformed_values_are_refused_at_the_border() {
    for export in ["out-of-bounds", "lying-length", "not-utf8"] {
        let crash = crash_of(VALUES, export, None).await;
        assert!(matches!(crash.kind(), CrashKind::BadValue { .. }), "{export}: {crash}");
        assert!(crash.backtrace().is_empty());
    }
}

#[tokio::test]
async fn an_exit_is_known_with_its_code() {
    for (arguments, code) in [(&["guest", "exit"][..], 3), (&["guest", "exit", "0"], 0), (&["guest", "exit", "77"], 77)]
    {
        let args = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let grants = WasiGrants { args, ..WasiGrants::default() };
        let spec = crate::spec(C, limits()).with_wasi(grants);
        let sandbox = spec.instantiate(Host::default()).await.unwrap();
        let crash = call(&spec, sandbox, crate::wasi::RUN, None).await.unwrap_err();
        // WASI 0.2's `exit` says only whether all went well.
        let expected = i32::from(code != 0);
        assert_eq!(*crash.kind(), CrashKind::Exit { code: expected });
    }
}

#[tokio::test]
async fn a_crash_is_written_and_read_back() {
    let crashes = [
        crash_of(TRAPS, "divide-by-zero", None).await,
        crash_of(TRAPS, "recurse", None).await,
        crash_of(HOST_CALLS, "fail", None).await,
        crash_of(VALUES, "not-utf8", None).await,
    ];
    for crash in crashes {
        let json = serde_json::to_string(&crash).unwrap();
        let back: Crash = serde_json::from_str(&json).unwrap();
        assert_eq!((back.kind(), back.export(), back.backtrace()), (crash.kind(), crash.export(), crash.backtrace()));
        assert_eq!(back.usage(), crash.usage());
        assert_eq!(serde_json::to_string(&back).unwrap(), json);
    }
    let unknown = r#"{"kind":"trap","trap":"Imagined"}"#;
    assert!(serde_json::from_str::<CrashKind>(unknown).is_err());
}

#[tokio::test]
async fn what_a_guest_writes_is_escaped_where_people_read_it() {
    let kind = CrashKind::HostCall { message: "\u{1b}[2Jgone\nforged".into() };
    assert_eq!(kind.to_string(), "a host call failed: \\u{1b}[2Jgone\\nforged");
    let evil = TRAPS.replace("$recurse (export \"recurse\")", "(@name \"\\1b[31mred\\0a\") (export \"recurse\")");
    let evil = evil.replace("(call $recurse)", "(call 9)");
    let binary = wat::parse_str(&evil).unwrap();
    let crash = crash_of(binary, "recurse", None).await;
    assert_eq!(crash.backtrace()[0].name.as_deref(), Some("\u{1b}[31mred\n"));
    assert!(!crash.to_string().contains('\u{1b}') && crash.to_string().contains("\\u{1b}[31mred\\n"));
}

#[tokio::test]
async fn a_call_that_goes_well_is_no_crash() {
    for (component, export) in [(TRAPS, "ok"), (SPIN, "ok")] {
        let (spec, sandbox) = sandbox(component, limits()).await;
        call(&spec, sandbox, export, None).await.unwrap();
    }
}

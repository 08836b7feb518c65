//! Components that are compiled in a process of its own: by the program of this crate, and by programs that behave as no
//! compiler should.

use std::{
    fs,
    io::{Read, Write},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

use airssys_wasm_engine::{
    CompileLimits, Compiler, CompilerEnd, CompilerProcess, CompilerProgram, EngineConfig, EngineError, Feature,
    Features, LoadError, Origin, Profile, WasmEngine, wasmtime::Store,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::OwnedFd,
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::binary;

const ADD: &str = r#"(component
    (core module $m (memory 1) (data (i32.const 8) "data")
        (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))
    (core instance $i (instantiate $m))
    (func (export "add") (param "a" s32) (param "b" s32) (result s32) (canon lift (core func $i "add"))))"#;

fn config(process: CompilerProcess) -> EngineConfig {
    EngineConfig { compiler: Compiler::Process(process), ..EngineConfig::small() }
}

fn process(program: impl Into<PathBuf>) -> CompilerProcess {
    CompilerProcess { program: CompilerProgram::Path(program.into()), ..CompilerProcess::default() }
}

fn compiler() -> CompilerProcess {
    process(env!("CARGO_BIN_EXE_airssys-wasm-compiler"))
}

fn end_of(config: EngineConfig, bytes: &[u8]) -> CompilerEnd {
    match WasmEngine::new(config).unwrap().load_blocking(bytes, Profile::Plain) {
        Err(LoadError::Compiler { end }) => end,
        other => panic!("{other:?}"),
    }
}

/// A function that takes a while.
fn slow(statements: usize) -> Vec<u8> {
    let body = "(i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (local.get 0)))".repeat(statements);
    binary(&format!("(component (core module (memory 1) (func (param i32) {body})))"))
}

#[test]
fn a_component_comes_back_from_its_compiler() {
    for profile in [Profile::Plain, Profile::Metered] {
        let engine = WasmEngine::new(config(compiler())).unwrap();
        let component = engine.load_wat_blocking(ADD, profile).unwrap();
        assert_eq!((component.origin(), component.profile()), (Origin::Compiled, profile));
        let template = component.link(&component.linker::<()>()).unwrap();
        let mut store = Store::new(component.wasmtime(), ());
        store.set_epoch_deadline(1_000);
        if profile == Profile::Metered {
            store.set_fuel(1_000).unwrap();
        }
        let instance = template.pre().instantiate(&mut store).unwrap();
        let add = instance.get_typed_func::<(i32, i32), (i32,)>(&mut store, "add").unwrap();
        assert_eq!(add.call(&mut store, (40, 2)).unwrap(), (42,));
    }
}

#[test]
#[expect(unsafe_code, reason = "precompiled code is trusted; these bytes were compiled here")]
fn both_ways_make_the_same_code() {
    for copy_on_write in [true, false] {
        let mut pool = airssys_wasm_engine::PoolConfig::for_components(16);
        pool.copy_on_write = copy_on_write;
        let config = EngineConfig { pool: Some(pool), ..config(compiler()) };
        let code = |config| WasmEngine::new(config).unwrap().precompile_blocking(&binary(ADD), Profile::Plain).unwrap();
        let there = code(config.clone());
        assert!(there == code(config.clone().compile_in_process()));
        // SAFETY: compiled above.
        unsafe { WasmEngine::new(config).unwrap().load_precompiled(&there, Profile::Plain) }.unwrap();
    }
}

#[tokio::test]
async fn what_is_refused_is_refused_for_the_same_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("damaged.wat");
    fs::write(&file, "(component \"\x1b[31m\")").unwrap();
    let compile_limits = CompileLimits { functions: 0, ..CompileLimits::default() };
    let there = WasmEngine::new(EngineConfig { compile_limits, ..config(compiler()) }).unwrap();
    let here = WasmEngine::new(there.config().clone().compile_in_process()).unwrap();
    let truncated = &binary(ADD)[..40];
    for bytes in [b"#!/bin/sh".as_slice(), &binary("(module)"), truncated, &binary(ADD)] {
        let error = there.load(bytes.to_vec(), Profile::Plain).await.unwrap_err();
        let same = here.load(bytes.to_vec(), Profile::Plain).await.unwrap_err();
        assert_eq!(error.to_string(), same.to_string());
        assert_eq!(std::mem::discriminant(&error), std::mem::discriminant(&same));
    }
    let text = there.load_file(file.clone(), Profile::Plain).await.unwrap_err();
    assert!(matches!(text, LoadError::Text { .. }) && text.to_string().contains("damaged.wat"), "{text}");
    assert_eq!(text.to_string(), here.load_file(file, Profile::Plain).await.unwrap_err().to_string());
}

#[test]
fn a_compiler_has_so_much_time() {
    let folder = tempfile::tempdir().unwrap();
    let short = Duration::from_millis(200);
    // One that never has the code, and one that is never ready.
    for text in ["printf r >&0; exec sleep 1000", "exec sleep 1000"] {
        let config = config(CompilerProcess { deadline: short, ..process(script(folder.path(), text)) });
        assert_eq!(end_of(config, &binary(ADD)), CompilerEnd::Deadline(short), "{text}");
    }
    let enough = CompilerProcess { deadline: Duration::from_secs(60), ..compiler() };
    WasmEngine::new(config(enough)).unwrap().load_blocking(&slow(10_000), Profile::Plain).unwrap();
}

#[test]
fn a_compiler_has_so_much_memory() {
    let within = |memory| config(CompilerProcess { memory, ..compiler() });
    let little = 32 << 20;
    assert_eq!(end_of(within(little), &slow(40_000)), CompilerEnd::Aborted { memory: little });
    // It serves what it can.
    WasmEngine::new(within(little)).unwrap().load_wat_blocking(ADD, Profile::Plain).unwrap();
}

#[test]
fn code_has_so_many_bytes_however_it_is_made() {
    for config in [config(compiler()), config(compiler()).compile_in_process()] {
        let load = |code_bytes, bytes: &[u8]| {
            let compile_limits = CompileLimits { code_bytes, ..CompileLimits::default() };
            let folder = tempfile::tempdir().unwrap();
            for code_cache in [None, Some(folder.path().to_owned())] {
                let config = EngineConfig { compile_limits, code_cache, ..config.clone() };
                WasmEngine::new(config).unwrap().load_blocking(bytes, Profile::Plain)?;
            }
            Ok::<_, LoadError>(())
        };
        let error = load(40_000, &slow(10_000)).unwrap_err();
        assert!(matches!(error, LoadError::TooComplex { what: "code_bytes", allowed: 40_000, .. }), "{error:?}");
        load(40_000, &binary("(component)")).unwrap();
    }
}

#[test]
fn what_a_component_needs_comes_back_from_its_compiler() {
    let stream = binary("(component (type (stream u8)))");
    let load = |config: EngineConfig| WasmEngine::new(config).unwrap().load_blocking(&stream, Profile::Plain);
    let component = load(config(compiler()).with_component_async()).unwrap();
    assert!(component.features().component_async);
    let refused = |result| match result {
        Err(LoadError::Unsupported { feature }) => feature,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(load(config(compiler()))), Feature::ComponentAsync);
    let memory = binary("(component (core module (memory i64 1)))");
    let engine = WasmEngine::new(config(compiler())).unwrap();
    assert_eq!(refused(engine.load_blocking(&memory, Profile::Plain)), Feature::Memory64);
}

#[test]
fn what_was_compiled_is_mapped_from_the_code_cache_the_next_time() {
    let folder = tempfile::tempdir().unwrap();
    let load = || {
        let config = EngineConfig { code_cache: Some(folder.path().to_owned()), ..config(compiler()) };
        WasmEngine::new(config).unwrap().load_wat_blocking(ADD, Profile::Plain).unwrap().origin()
    };
    assert_eq!([load(), load()], [Origin::Compiled, Origin::CodeCache]);
}

#[test]
fn nobody_can_write_to_code_any_more() {
    let engine = WasmEngine::new(config(compiler())).unwrap();
    let _component = engine.load_wat_blocking(ADD, Profile::Plain).unwrap();
    let is_code = |path: &PathBuf| {
        fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:airssys-wasm-code"))
    };
    let files = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path()).filter(is_code);
    let mut sealed = 0;
    for file in files {
        let mut file = match fs::File::options().write(true).open(file) {
            Ok(file) => file,
            // Another test's, which is gone.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => panic!("{error}"),
        };
        let seals = rustix::fs::fcntl_get_seals(&file).unwrap();
        // Others are open for compilers that wait.
        if seals.contains(rustix::fs::SealFlags::SEAL) {
            assert_eq!(file.write_all(b"x").unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
            file.set_len(0).unwrap_err();
            sealed += 1;
        }
    }
    assert!(sealed > 0);
}

#[test]
fn a_program_that_was_not_prepared_is_not_started() {
    let error = WasmEngine::new(EngineConfig::default()).unwrap_err();
    assert!(matches!(error, EngineError::NoCompilerHook), "{error:?}");
    assert!(error.to_string().contains("compiler_hook"), "{error}");
}

/// A program for `/bin/sh`. Its standard input is the socket to its parent.
fn script(folder: &Path, text: &str) -> PathBuf {
    let path = tempfile::Builder::new().tempfile_in(folder).unwrap().into_temp_path().keep().unwrap();
    // Written by another process: this one may start a program of another test meanwhile, which would inherit a file that
    // is open for writing, and so cannot be started.
    let mut shell = std::process::Command::new("/bin/sh")
        .args(["-c", "rm $0; cat > $0; chmod 755 $0"])
        .arg(&path)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    write!(shell.stdin.take().unwrap(), "#!/bin/sh\n{text}\n").unwrap();
    assert!(shell.wait().unwrap().success());
    path
}

/// The reply that says so, and then nothing for a while.
fn code_of_nine_bytes(features: Features) -> String {
    let Features { component_async, exceptions, garbage_collection } = features;
    let reply = format!(
        r#"{{"Code":{{"bytes":9,"features":{{"component_async":{component_async},"exceptions":{exceptions},"garbage_collection":{garbage_collection}}}}}}}"#
    );
    format!(r"printf 'r\{:03o}\000\000\000{reply}' >&0; exec sleep 1000", reply.len())
}

#[test]
fn what_is_no_compiler_is_an_error_that_says_how_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let component = binary(ADD);
    for (text, end) in [
        ("exit 3", CompilerEnd::Exit(3)),
        ("printf r >&0; exit 4", CompilerEnd::Exit(4)),
        ("printf r >&0; kill -SEGV $$", CompilerEnd::Signal(11)),
        ("printf r >&0; kill -ABRT $$", CompilerEnd::Aborted { memory: CompilerProcess::default().memory }),
        ("printf r >&0; kill -XCPU $$", CompilerEnd::Deadline(CompilerProcess::default().deadline)),
        // A frame that claims to have four gigabytes, one that is no message, and code that is not there.
        (r"printf 'r\377\377\377\377' >&0; exec sleep 1000", CompilerEnd::Nonsense),
        (r"printf 'r\002\000\000\000{}' >&0; exec sleep 1000", CompilerEnd::Nonsense),
        (&code_of_nine_bytes(Features::NONE), CompilerEnd::Nonsense),
        // Code that needs what nobody has asked for.
        (&format!("printf 123456789; {}", code_of_nine_bytes(Features::ALL)), CompilerEnd::Nonsense),
    ] {
        let program = script(folder.path(), text);
        assert_eq!(end_of(config(process(program)), &component), end, "{text}");
    }
    let missing = WasmEngine::new(config(process("/nonexistent"))).unwrap();
    let error = missing.load_blocking(&component, Profile::Plain).unwrap_err();
    assert!(matches!(error, LoadError::CompilerStart { .. }), "{error:?}");
    // Code that is there and is none.
    let program = script(folder.path(), &format!("printf 123456789; {}", code_of_nine_bytes(Features::NONE)));
    let error =
        WasmEngine::new(config(process(program))).unwrap().load_blocking(&component, Profile::Plain).unwrap_err();
    assert!(matches!(error, LoadError::Invalid { .. }), "{error:?}");
}

#[test]
fn those_that_ended_while_they_waited_cost_no_load() {
    let compiler = env!("CARGO_BIN_EXE_airssys-wasm-compiler");
    for waiting in [1, 3] {
        let folder = tempfile::tempdir().unwrap();
        // Whoever makes one of the files ends, as if it were killed.
        let first = |n| format!("(set -C; : > {}/{n}) && kill -KILL $$", folder.path().display());
        let text: Vec<_> = (0..waiting).map(first).collect();
        let text = format!("exec 2>/dev/null; {}; exec {compiler} \"$@\"", text.join("; "));
        let waiting = NonZeroUsize::new(waiting).unwrap();
        let process = CompilerProcess { waiting, ..process(script(folder.path(), &text)) };
        let engine = WasmEngine::new(config(process)).unwrap();
        engine.load_wat_blocking(ADD, Profile::Plain).unwrap();
    }
}

#[test]
fn a_compiler_of_another_build_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let compiler = env!("CARGO_BIN_EXE_airssys-wasm-compiler");
    // As if it were one that does not know of copying on write.
    let text =
        format!(r#"exec {compiler} "$1" "$(printf %s "$2" | sed 's/"copy_on_write":true/"copy_on_write":false/')""#);
    let error = WasmEngine::new(EngineConfig { ..config(process(script(folder.path(), &text))) })
        .unwrap()
        .load_wat_blocking(ADD, Profile::Plain)
        .unwrap_err();
    assert!(matches!(error, LoadError::OtherCompiler), "{error:?}");
}

/// A compiler that never comes back, and the pipe in which it says its process's number once it has its job.
fn stuck(folder: &Path) -> (CompilerProcess, PathBuf) {
    let pipe = folder.join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    let text = format!("printf r >&0; head -c 8 >/dev/null; echo $$ > {}; exec sleep 1000", pipe.display());
    (process(script(folder, &text)), pipe)
}

fn read_pid(pipe: &Path) -> OwnedFd {
    let pid = fs::read_to_string(pipe).unwrap();
    pidfd_open(Pid::from_raw(pid.trim().parse().unwrap()).unwrap(), PidfdFlags::empty()).unwrap()
}

fn has_ended(process: &OwnedFd, within: Duration) -> bool {
    let within = Timespec::try_from(within).unwrap();
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&within)).unwrap() > 0
}

#[tokio::test]
async fn a_compiler_dies_with_the_last_who_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let (stuck, pipe) = stuck(folder.path());
    let engine = WasmEngine::new(config(stuck)).unwrap();
    let load = || {
        let engine = engine.clone();
        tokio::spawn(async move { engine.load(binary(ADD), Profile::Plain).await })
    };
    let (first, second) = (load(), load());
    let process = tokio::task::spawn_blocking(move || read_pid(&pipe)).await.unwrap();
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert!(!has_ended(&process, Duration::ZERO));
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
    assert!(tokio::task::spawn_blocking(move || has_ended(&process, Duration::from_secs(60))).await.unwrap());
}

#[test]
fn one_that_waits_dies_with_the_engine() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    let program = script(folder.path(), &format!("echo $$ > {}; exec sleep 1000", pipe.display()));
    let engine = WasmEngine::new(config(process(program))).unwrap();
    let process = read_pid(&pipe);
    assert!(!has_ended(&process, Duration::ZERO));
    drop(engine);
    assert!(has_ended(&process, Duration::from_secs(60)));
}

#[test]
fn a_compiler_is_told_nothing_of_its_parents_environment() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    let program = script(folder.path(), &format!("(pwd; /usr/bin/env) > {}; exec sleep 1000", pipe.display()));
    let _engine = WasmEngine::new(config(process(program))).unwrap();
    let mut told = String::new();
    fs::File::open(pipe).unwrap().read_to_string(&mut told).unwrap();
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some() && !told.contains("CARGO_MANIFEST_DIR"), "{told}");
    assert_eq!(told.lines().next(), Some("/"));
}

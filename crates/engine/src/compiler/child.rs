//! The compiler process: it sets itself up, warms up, sandboxes itself, and does one job.

use std::{
    convert::Infallible,
    env, io,
    process::exit,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::stdio;
use wasmtime::Engine;

use super::{
    admit,
    protocol::{self, Job, Reply, Settings},
    sandbox,
};
use crate::{
    CompileLimits, EngineConfig, Features, LoadError, Profile, complexity::Form, config::Kind, digest::code_digest,
};

static IS_HOOKED: AtomicBool = AtomicBool::new(false);

/// Whether `main` has called the hook, so that this program can be started as a compiler.
pub(super) fn is_hooked() -> bool {
    IS_HOOKED.load(Ordering::Relaxed)
}

pub(super) fn hook() {
    IS_HOOKED.store(true, Ordering::Relaxed);
    let mut args = env::args_os().skip(1);
    if args.next().is_none_or(|first| first != protocol::MARK) {
        return;
    }
    let settings = args.next().and_then(|settings| serde_json::from_slice(settings.as_encoded_bytes()).ok());
    let Some(settings) = settings else {
        eprintln!("this is started by airssys-wasm-engine, with settings that only the same version understands");
        exit(2);
    };
    // The parent has read all of the code by the time it is gone.
    exit(if serve(&settings).is_err_and(|error| error.kind() != io::ErrorKind::UnexpectedEof) { 1 } else { 0 })
}

/// What each later compilation needs is made by this one, and its pages touched.
const WARM_UP: &[u8] = br#"(component
    (core module $m
        (memory (export "memory") 1) (table 2 funcref) (elem (i32.const 0) $f) (data (i32.const 8) "data")
        (func $f (export "f") (param i32 i32) (result i32) (local i64)
            (loop (br_if 0 (i32.eqz (i32.load (local.get 0)))))
            (call_indirect (param i32 i32) (result i32)
                (i32.add (local.get 0) (i32.const 1)) (local.get 1) (i32.const 0)))
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (unreachable)))
    (core instance $i (instantiate $m))
    (func (export "f") (param "s" string) (result u32) (canon lift (core func $i "f")
        (memory (core memory $i "memory")) (realloc (core func $i "realloc")))))"#;

fn serve(settings: &Settings) -> io::Result<Infallible> {
    // Panics go to the parent over the socket, not to standard error.
    std::panic::set_hook(Box::new(|_| {}));
    let config = settings.engine();
    let plain = engine(&config, Profile::Plain.into()).map_err(io::Error::other)?;
    warm_up(&plain).map_err(io::Error::other)?;
    let ready = if sandbox::enter(settings)? { protocol::READY } else { protocol::READY_UNFILTERED };

    let mut parent = Fd(stdio::stdin());
    io::Write::write_all(&mut parent, &[ready])?;
    let job: Job = protocol::read_frame(&mut parent)?;
    let mut bytes = vec![0; job.bytes as usize];
    io::Read::read_exact(&mut parent, &mut bytes)?;
    let without_features = match job.profile {
        Profile::Plain => plain,
        Profile::Metered => engine(&config, job.profile.into()).map_err(io::Error::other)?,
    };
    let reply = if code_digest(&without_features, job.profile) == job.code_digest {
        match run(&config, without_features, &bytes, &job) {
            Ok((code, features)) => {
                drop(bytes);
                io::Write::write_all(&mut Fd(stdio::stdout()), &code)?;
                Reply::Code { bytes: code.len() as u64, features }
            }
            Err(error) => Reply::Refused(error.into()),
        }
    } else {
        Reply::OtherCode
    };
    protocol::write_frame(&mut parent, &reply)?;
    // The parent kills this process once it has read the reply, so no exit handler runs.
    loop {
        io::Read::read_exact(&mut parent, &mut [0])?;
    }
}

/// Compiles a component of our own, without limits.
fn warm_up(engine: &Engine) -> Result<Vec<u8>, LoadError> {
    admit(WARM_UP, Form::Text, &CompileLimits::NONE, Features::NONE)?.compile(engine)
}

fn engine(config: &EngineConfig, kind: Kind) -> wasmtime::Result<Engine> {
    Engine::new(&config.wasmtime(kind, None))
}

/// The code, and what it needs.
fn run(
    config: &EngineConfig,
    without_features: Engine,
    bytes: &[u8],
    job: &Job,
) -> Result<(Vec<u8>, Features), LoadError> {
    let admitted = admit(bytes, job.form, &config.compile_limits, config.features)?;
    let features = admitted.features;
    let engine = match features {
        Features::NONE => without_features,
        _ => engine(config, Kind { profile: job.profile, features }).map_err(|error| LoadError::Invalid { error })?,
    };
    Ok((admitted.compile(&engine)?, features))
}

/// A standard stream without std's buffer.
struct Fd(rustix::fd::BorrowedFd<'static>);

impl io::Read for Fd {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.0, buffer)?)
    }
}

impl io::Write for Fd {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_warms_a_compiler_up_is_compiled() {
        let engine = engine(&EngineConfig::on_demand(), Profile::Plain.into()).unwrap();
        assert!(!warm_up(&engine).unwrap().is_empty());
    }
}

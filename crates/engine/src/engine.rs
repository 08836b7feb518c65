//! The handle that everything shares: which wasmtime engines there are, and how bytes become a component.

use std::{
    fmt, fs,
    hash::{Hash, Hasher},
    io::Read,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, OnceLock, Weak},
};

use dashmap::DashMap;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Semaphore;
use wasmtime::{Engine, component::Component};

use crate::{
    Allocation, CodeCache, CompileLimits, Complexity, EngineConfig, EngineError, EpochClock, LoadError,
    LoadedComponent, Origin, Profile,
    component::Loaded,
    error::{Escaped, panic_message},
};

/// A 256-bit BLAKE3 digest.
pub(crate) type Digest = [u8; blake3::OUT_LEN];

/// What identifies a component in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CacheKey {
    digest: Digest,
    profile: Profile,
}

/// Bytes up to which hashing and a look-up are done where `load` is called, instead of on a blocking thread. Hashing
/// this many takes some 20 µs.
const HASH_INLINE: usize = 64 << 10;

/// Bytes up to which a component is compiled straight into its engine. It saves a tenth of a small component's time; one
/// that then does not fit the pool is compiled twice, which a large one shall not be.
const COMPILE_IN_PLACE: usize = 256 << 10;

/// The engine: compiles, caches and links components. Cheap to clone and safe to share; one is enough for a process.
///
/// It owns up to four wasmtime engines, for [plain and metered](Profile) code, [pooled and on demand](Allocation).
/// All but the plain pooled one are made when first needed. One thread advances the epoch of them all.
#[derive(Clone)]
pub struct WasmEngine(Arc<Inner>);

struct Inner {
    config: EngineConfig,
    clock: EpochClock,
    plain: Backend,
    metered: Backend,
    code_cache: Option<CodeCache>,
    /// Held weakly, so that a component's code goes with its last user.
    known: DashMap<CacheKey, Slot>,
    compile_jobs: Arc<Semaphore>,
}

/// Where a component is to be found while it lives. Locked by whoever makes it.
type Slot = Arc<Mutex<Weak<Loaded>>>;

/// The wasmtime engines of one profile.
#[derive(Default)]
struct Backend {
    pooled: OnceLock<Engine>,
    on_demand: OnceLock<Engine>,
}

impl fmt::Debug for WasmEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WasmEngine").field("config", &self.0.config).finish_non_exhaustive()
    }
}

impl WasmEngine {
    /// Makes an engine, its pool and its epoch thread.
    ///
    /// The time goes into the pool's stacks: some 3 ms for the default of 1,000 components, 30 ms for 10,000.
    ///
    /// # Errors
    ///
    /// When wasmtime refuses the configuration or the system the address space, or when the code cache's folder is
    /// not private.
    pub fn new(config: EngineConfig) -> Result<Self, EngineError> {
        let (clock, _) = EpochClock::start(config.ticking).map_err(EngineError::Ticker)?;
        let engine = Self(Arc::new(Inner {
            clock,
            plain: Backend::default(),
            metered: Backend::default(),
            code_cache: config.code_cache.as_ref().map(CodeCache::open).transpose()?,
            known: DashMap::new(),
            compile_jobs: Arc::new(Semaphore::new(config.compile_jobs.get())),
            config,
        }));
        engine.main(Profile::Plain)?;
        Ok(engine)
    }

    /// The settings it was made with.
    pub fn config(&self) -> &EngineConfig {
        &self.0.config
    }

    /// What keeps the epoch advancing.
    pub fn clock(&self) -> &EpochClock {
        &self.0.clock
    }

    /// Advances the epoch by one, as the thread does. For tests with [`Ticking::Manual`](crate::Ticking::Manual).
    pub fn tick(&self) {
        self.0.clock.tick();
    }

    /// The bare wasmtime engine for a profile: the pooled one, or the on-demand one where there is no pool.
    ///
    /// # Errors
    ///
    /// When it had to be made and could not.
    pub fn wasmtime(&self, profile: Profile) -> Result<&Engine, EngineError> {
        self.main(profile)
    }

    fn backend(&self, profile: Profile) -> &Backend {
        match profile {
            Profile::Plain => &self.0.plain,
            Profile::Metered => &self.0.metered,
        }
    }

    fn main(&self, profile: Profile) -> Result<&Engine, EngineError> {
        match self.0.config.pool {
            Some(_) => self.engine(profile, Allocation::Pooled),
            None => self.engine(profile, Allocation::OnDemand),
        }
    }

    fn engine(&self, profile: Profile, allocation: Allocation) -> Result<&Engine, EngineError> {
        let backend = self.backend(profile);
        let (slot, pool) = match allocation {
            Allocation::Pooled => (&backend.pooled, self.0.config.pool.as_ref()),
            Allocation::OnDemand => (&backend.on_demand, None),
        };
        if let Some(engine) = slot.get() {
            return Ok(engine);
        }
        let engine =
            Engine::new(&self.0.config.wasmtime(profile, pool)).map_err(|source| EngineError::Wasmtime { source })?;
        let mut is_new = false;
        let engine = slot.get_or_init(|| {
            is_new = true;
            engine
        });
        if is_new {
            self.0.clock.add(engine);
        }
        Ok(engine)
    }

    /// Loads a component from its binary form: from memory if these bytes are loaded already, else from the code cache,
    /// else compiled. Does not block an async worker; at most [`EngineConfig::compile_jobs`] compile at a time.
    ///
    /// A load that is dropped while it waits for its turn is gone. One that is dropped while it compiles goes on in the
    /// background, counts as one that compiles, and its result is discarded: nobody can stop the compiler. For how long
    /// that can be at the most, see [`CompileLimits`](crate::CompileLimits).
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub async fn load(
        &self,
        bytes: impl AsRef<[u8]> + Send + 'static,
        profile: Profile,
    ) -> Result<LoadedComponent, LoadError> {
        self.0.config.compile_limits.check_bytes(bytes.as_ref().len() as u64)?;
        let (bytes, digest) = if bytes.as_ref().len() <= HASH_INLINE {
            let digest = digest(bytes.as_ref());
            (bytes, digest)
        } else {
            off_the_workers(move || {
                let digest = digest(bytes.as_ref());
                Ok((bytes, digest))
            })
            .await?
        };
        let key = CacheKey { digest, profile };
        if let Some(known) = self.known(&key) {
            return Ok(known);
        }
        if self.0.code_cache.is_some() {
            // Does not have to wait for its turn to compile.
            let engine = self.clone();
            if let Some(cached) = off_the_workers(move || Ok(engine.load_cached(key))).await? {
                return Ok(cached);
            }
        }
        self.as_compile_job(move |engine| engine.load_keyed(bytes.as_ref(), key)).await
    }

    /// [`load`](Self::load) on the calling thread.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    pub fn load_blocking(&self, bytes: &[u8], profile: Profile) -> Result<LoadedComponent, LoadError> {
        self.0.config.compile_limits.check_bytes(bytes.len() as u64)?;
        self.load_keyed(bytes, CacheKey { digest: digest(bytes), profile })
    }

    /// Loads a component from a file: text if its name ends in `.wat`, else binary.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub async fn load_file(
        &self,
        path: impl AsRef<Path> + Send + 'static,
        profile: Profile,
    ) -> Result<LoadedComponent, LoadError> {
        let limits = self.0.config.compile_limits;
        let bytes = off_the_workers(move || read(path.as_ref(), &limits)).await?;
        self.load(bytes, profile).await
    }

    /// [`load_file`](Self::load_file) on the calling thread.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    pub fn load_file_blocking(&self, path: impl AsRef<Path>, profile: Profile) -> Result<LoadedComponent, LoadError> {
        self.load_blocking(&read(path.as_ref(), &self.0.config.compile_limits)?, profile)
    }

    /// Loads a component from its text form.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    pub fn load_wat_blocking(&self, text: &str, profile: Profile) -> Result<LoadedComponent, LoadError> {
        self.0.config.compile_limits.check_text(text.len() as u64)?;
        let binary = contained(|| wat::parse_str(text).map_err(|error| LoadError::Text { error }))?;
        self.load_blocking(&binary, profile)
    }

    /// Compiles a component into native code for [`load_precompiled`](Self::load_precompiled), here or in another
    /// process with an engine of the same version and settings on the same kind of processor.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    pub fn precompile_blocking(&self, bytes: &[u8], profile: Profile) -> Result<Vec<u8>, LoadError> {
        self.check(bytes)?;
        let engine = self.main(profile)?;
        compiler(|| engine.precompile_component(bytes))
    }

    /// What must hold before the compiler may see it.
    fn check(&self, bytes: &[u8]) -> Result<(), LoadError> {
        check_header(bytes)?;
        contained(|| Complexity::of(bytes, &self.0.config.compile_limits)).map(|_| ())
    }

    /// Loads native code made by [`precompile_blocking`](Self::precompile_blocking). It is copied; for large components
    /// prefer [`load_precompiled_file`](Self::load_precompiled_file), which maps.
    ///
    /// The same bytes again give the component that is loaded already.
    ///
    /// # Errors
    ///
    /// [`LoadError::Incompatible`] for code of another engine, and for anything that is not such code.
    ///
    /// # Safety
    ///
    /// The bytes must come unchanged from `precompile_blocking`: they are machine code and run with the rights of this
    /// process. The checks find honest mistakes, not malice.
    #[expect(unsafe_code, reason = "loading native code is a matter of trust, which only the caller can answer for")]
    pub unsafe fn load_precompiled(&self, code: &[u8], profile: Profile) -> Result<LoadedComponent, LoadError> {
        let key = CacheKey { digest: digest(code), profile };
        self.single_flight(key, || {
            // SAFETY: promised by the caller.
            self.adopt(profile, |engine| unsafe { Component::deserialize(engine, code) })
                .map_err(|source| LoadError::Incompatible { profile, source })
                .map(|(component, allocation)| (component, allocation, Origin::Precompiled))
        })
    }

    /// Loads native code from a file, by mapping it. Nothing is hashed, so the same file again is mapped again: keep
    /// the result.
    ///
    /// # Errors
    ///
    /// [`LoadError::Incompatible`] for code of another engine and for a file that cannot be read or is not such code.
    ///
    /// # Safety
    ///
    /// As for [`load_precompiled`](Self::load_precompiled), and the file must not change while the component lives.
    #[expect(unsafe_code, reason = "loading native code is a matter of trust, which only the caller can answer for")]
    pub unsafe fn load_precompiled_file(
        &self,
        path: impl AsRef<Path>,
        profile: Profile,
    ) -> Result<LoadedComponent, LoadError> {
        let path = path.as_ref();
        if let Err(source) = fs::metadata(path) {
            return Err(LoadError::File { path: path.to_owned(), source });
        }
        // SAFETY: promised by the caller.
        let (component, allocation) = self
            .adopt(profile, |engine| unsafe { Component::deserialize_file(engine, path) })
            .map_err(|source| LoadError::Incompatible { profile, source })?;
        let loaded = Loaded {
            engine: self.clone(),
            component,
            profile,
            allocation,
            origin: Origin::Precompiled,
            key: None,
            memo: OnceLock::new(),
        };
        Ok(LoadedComponent::new(Arc::new(loaded)))
    }

    /// Runs work off the workers once it is its turn. The closure holds the permit, so that a load that is dropped
    /// still counts until its compilation ends.
    async fn as_compile_job<R: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<R, LoadError> + Send + 'static,
    ) -> Result<R, LoadError> {
        let engine = self.clone();
        let permit = self.0.compile_jobs.clone().acquire_owned().await.map_err(|_| LoadError::Shutdown)?;
        off_the_workers(move || {
            let _permit = permit;
            work(&engine)
        })
        .await
    }

    fn load_keyed(&self, bytes: &[u8], key: CacheKey) -> Result<LoadedComponent, LoadError> {
        self.single_flight(key, || self.find_in_code_cache(key).map_or_else(|| self.compile(bytes, key), Ok))
    }

    fn load_cached(&self, key: CacheKey) -> Option<LoadedComponent> {
        let shared = self.slot(key);
        // Whoever compiles it holds the lock for long, and each who waited here would hold a thread.
        let slot = shared.try_lock()?;
        self.fill(key, &shared, slot, || self.find_in_code_cache(key).ok_or(())).ok()
    }

    fn known(&self, key: &CacheKey) -> Option<LoadedComponent> {
        let slot = self.0.known.get(key)?.clone();
        // A slot that is locked is being filled.
        let loaded = slot.try_lock()?.upgrade()?;
        Some(LoadedComponent::new(loaded))
    }

    /// Makes a component unless it is known, once however many ask for it at a time.
    fn single_flight<E>(
        &self,
        key: CacheKey,
        make: impl FnOnce() -> Result<(Component, Allocation, Origin), E>,
    ) -> Result<LoadedComponent, E> {
        let shared = self.slot(key);
        self.fill(key, &shared, shared.lock(), make)
    }

    fn slot(&self, key: CacheKey) -> Slot {
        self.0.known.entry(key).or_default().clone()
    }

    fn fill<E>(
        &self,
        key: CacheKey,
        shared: &Slot,
        mut slot: MutexGuard<'_, Weak<Loaded>>,
        make: impl FnOnce() -> Result<(Component, Allocation, Origin), E>,
    ) -> Result<LoadedComponent, E> {
        if let Some(loaded) = slot.upgrade() {
            return Ok(LoadedComponent::new(loaded));
        }
        match make() {
            Ok((component, allocation, origin)) => {
                let engine = self.clone();
                let profile = key.profile;
                let loaded =
                    Loaded { engine, component, profile, allocation, origin, key: Some(key), memo: OnceLock::new() };
                let loaded = LoadedComponent::new(Arc::new(loaded));
                *slot = loaded.downgrade();
                // It may have been forgotten between being found and being locked.
                self.0.known.insert(key, Arc::clone(shared));
                Ok(loaded)
            }
            Err(error) => {
                drop(slot);
                self.forget(&key);
                Err(error)
            }
        }
    }

    /// Drops the entry of a component that is gone, unless it was loaded anew or is being so.
    pub(crate) fn forget(&self, key: &CacheKey) {
        self.0.known.remove_if(key, |_, slot| slot.try_lock().is_some_and(|slot| slot.strong_count() == 0));
    }

    #[expect(unsafe_code, reason = "code in a private folder is trusted")]
    fn find_in_code_cache(&self, key: CacheKey) -> Option<(Component, Allocation, Origin)> {
        let cache = self.0.code_cache.as_ref()?;
        let path = cache.find(&self.entry_name(&key).ok()?)?;
        // SAFETY: the folder and the file belong to this user and nobody else can write to them, and the file's name and
        // length are those it was written with; see `CodeCache` for what is trusted beyond that.
        match self.adopt(key.profile, |engine| unsafe { Component::deserialize_file(engine, &path) }) {
            Ok((component, allocation)) => Some((component, allocation, Origin::CodeCache)),
            Err(error) => {
                let error = format_args!("{error:#}");
                tracing::warn!(path = %path.display(), %error, "code cache entry refused: compiling again");
                None
            }
        }
    }

    #[expect(unsafe_code, reason = "wasmtime hands out compiled code as bytes and takes it back as trusted")]
    fn compile(&self, bytes: &[u8], key: CacheKey) -> Result<(Component, Allocation, Origin), LoadError> {
        self.check(bytes)?;
        let profile = key.profile;
        let main = self.main(profile)?;
        let cache = self.0.code_cache.as_ref();
        if cache.is_none() && bytes.len() <= COMPILE_IN_PLACE {
            let (component, allocation) =
                compiler(|| self.adopt(profile, |engine| Component::from_binary(engine, bytes)))?;
            return Ok((component, allocation, Origin::Compiled));
        }
        let code = compiler(|| main.precompile_component(bytes))?;
        if let Some(cache) = cache
            && let Err(error) = cache.store(&self.entry_name(&key)?, &code)
        {
            tracing::warn!(folder = %cache.folder().display(), %error, "cannot write to the code cache");
        }
        // SAFETY: wasmtime made these bytes a moment ago, for these settings.
        let (component, allocation) = self
            .adopt(profile, |engine| unsafe { Component::deserialize(engine, &code) })
            .map_err(|error| LoadError::Invalid { error })?;
        Ok((component, allocation, Origin::Compiled))
    }

    /// Gives code to the pool, or to the on-demand engine if it does not fit there.
    fn adopt(
        &self,
        profile: Profile,
        make: impl Fn(&Engine) -> wasmtime::Result<Component>,
    ) -> wasmtime::Result<(Component, Allocation)> {
        if self.0.config.pool.is_some() {
            match make(self.engine(profile, Allocation::Pooled)?) {
                Ok(component) => return Ok((component, Allocation::Pooled)),
                // wasmtime has no type for "does not fit"; what fails for another reason fails again below.
                Err(error) => tracing::debug!(error = %Escaped(&error), "not for the pool"),
            }
        }
        Ok((make(self.engine(profile, Allocation::OnDemand)?)?, Allocation::OnDemand))
    }

    /// The name of a code cache entry: everything that the code depends on.
    fn entry_name(&self, key: &CacheKey) -> Result<Digest, EngineError> {
        struct Blake(blake3::Hasher);
        impl Hasher for Blake {
            fn write(&mut self, bytes: &[u8]) {
                self.0.update(bytes);
            }
            fn finish(&self) -> u64 {
                unreachable!("the whole digest is taken")
            }
        }
        let mut hasher = Blake(blake3::Hasher::new());
        self.main(key.profile)?.precompile_compatibility_hash().hash(&mut hasher);
        key.profile.hash(&mut hasher);
        // Code is not looked at again: it is that of a component that was within these limits.
        self.0.config.compile_limits.hash(&mut hasher);
        hasher.0.update(&key.digest);
        Ok(*hasher.0.finalize().as_bytes())
    }
}

/// Calls the compiler. It reads what strangers write, and a bug in it is not to end the host. What it has begun when it
/// panics belongs to this component alone.
fn compiler<R>(compile: impl FnOnce() -> wasmtime::Result<R>) -> Result<R, LoadError> {
    contained(|| compile().map_err(|error| LoadError::Invalid { error }))
}

fn contained<R>(read: impl FnOnce() -> Result<R, LoadError>) -> Result<R, LoadError> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|payload| Err(LoadError::CompilerPanicked { message: panic_message(payload) }))
}

/// A component's binary form, from a file that has it as text or as it is.
fn read(path: &Path, limits: &CompileLimits) -> Result<Vec<u8>, LoadError> {
    let is_text = path.extension().is_some_and(|extension| extension == "wat");
    let check = |bytes| if is_text { limits.check_text(bytes) } else { limits.check_bytes(bytes) };
    let most = if is_text { limits.text_bytes } else { limits.bytes };
    let failed = |source| LoadError::File { path: path.to_owned(), source };
    let file = fs::File::open(path).map_err(failed)?;
    check(file.metadata().map_err(failed)?.len())?;
    let mut bytes = Vec::new();
    // It may be no file at all, or grow while it is read.
    file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    check(bytes.len() as u64)?;
    if !is_text {
        return Ok(bytes);
    }
    contained(|| {
        wat::parse_bytes(&bytes).map(|binary| binary.into_owned()).map_err(|mut error| {
            error.set_path(path);
            LoadError::Text { error }
        })
    })
}

async fn off_the_workers<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, LoadError> + Send + 'static,
) -> Result<R, LoadError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(LoadError::Shutdown),
    }
}

fn digest(bytes: &[u8]) -> Digest {
    *blake3::hash(bytes).as_bytes()
}

/// Tells a component from a core module and from anything else by its first eight bytes.
fn check_header(bytes: &[u8]) -> Result<(), LoadError> {
    const WASM: &[u8] = b"\0asm";
    match bytes {
        [b'\0', b'a', b's', b'm', _, _, 0, 0, ..] => Err(LoadError::CoreModule),
        _ if bytes.starts_with(WASM) => Ok(()),
        _ => Err(LoadError::NotWasm { start: bytes[..bytes.len().min(WASM.len())].to_vec() }),
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn a_component_is_forgotten_with_its_last_user() {
        let engine = WasmEngine::new(EngineConfig::on_demand()).unwrap();
        let first = engine.load_wat_blocking("(component)", Profile::Plain).unwrap();
        let second = first.clone();
        drop(first);
        assert_eq!(engine.0.known.len(), 1);
        drop(second);
        assert_eq!(engine.0.known.len(), 0);
    }

    #[tokio::test]
    async fn a_component_in_the_code_cache_does_not_wait_for_others_to_compile() {
        let folder = tempfile::tempdir().unwrap();
        let config = EngineConfig { code_cache: Some(folder.path().to_owned()), ..EngineConfig::on_demand() };
        let engine = WasmEngine::new(config).unwrap();
        let bytes = wat::parse_str("(component)").unwrap();
        assert_eq!(engine.load(bytes.clone(), Profile::Plain).await.unwrap().origin(), Origin::Compiled);
        let _all = engine.0.compile_jobs.acquire().await.unwrap();
        assert_eq!(engine.load(bytes, Profile::Plain).await.unwrap().origin(), Origin::CodeCache);
    }

    #[test]
    fn a_panic_of_the_compiler_is_an_error() {
        let error = compiler(|| -> wasmtime::Result<()> { panic!("over\x1b[31m") }).unwrap_err();
        assert!(matches!(&error, LoadError::CompilerPanicked { message } if message == "over\x1b[31m"), "{error:?}");
        assert!(error.to_string().contains(r"over\u{1b}[31m"), "{error}");
    }

    #[tokio::test]
    async fn a_load_that_is_dropped_while_it_waits_for_its_turn_is_gone() {
        let engine = WasmEngine::new(EngineConfig::on_demand()).unwrap();
        let all = engine.0.config.compile_jobs.get() as u32;
        let others = engine.0.compile_jobs.acquire_many(all).await.unwrap();
        let bytes = wat::parse_str("(component)").unwrap();
        let mut load = Box::pin(engine.load(bytes.clone(), Profile::Plain));
        assert!(load.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(load);
        drop(others);
        // It would have come first.
        assert_eq!(engine.0.compile_jobs.available_permits(), all as usize);
        assert_eq!(engine.0.known.len(), 0);
        engine.load(bytes, Profile::Plain).await.unwrap();
    }

    #[tokio::test]
    async fn whoever_asks_for_what_is_being_compiled_holds_no_thread() {
        let folder = tempfile::tempdir().unwrap();
        let config = EngineConfig { code_cache: Some(folder.path().to_owned()), ..EngineConfig::on_demand() };
        let engine = WasmEngine::new(config).unwrap();
        let key = CacheKey { digest: digest(b"x"), profile: Profile::Plain };
        let slot = engine.slot(key);
        let compiling = slot.lock();
        assert!(engine.load_cached(key).is_none());
        drop(compiling);
    }

    #[test]
    fn a_failure_is_not_remembered() {
        let engine = WasmEngine::new(EngineConfig::on_demand()).unwrap();
        engine.load_blocking(b"nonsense", Profile::Plain).unwrap_err();
        assert_eq!(engine.0.known.len(), 0);
    }
}

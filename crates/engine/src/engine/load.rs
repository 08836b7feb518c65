//! Loads a component from memory, from the code cache, or by compiling, once for concurrent loads of the same bytes.

use std::{
    fs,
    hash::Hash,
    io::{self, PipeReader, Read},
    path::Path,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use dashmap::{DashMap, Entry};
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::{Engine, component::Component};

use crate::{
    Allocation, CompileLimits, CompilerEnd, Features, LoadError, LoadedComponent, Origin, Profile, WasmEngine,
    compiler,
    complexity::Form,
    config::Kind,
    digest::{Digest, code_digest, hashed},
    engine::component::Loaded,
};

/// What identifies a component in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CacheKey {
    digest: Digest,
    profile: Profile,
}

/// Loaded components, and loads in flight.
#[derive(Default)]
pub(crate) struct Loads {
    /// Held weakly, so that a component's code goes with its last user.
    known: DashMap<CacheKey, Weak<Loaded>>,
    /// Held by its waiters. When the last of them goes, the load is dropped and its compiler killed.
    flights: DashMap<FlightKey, Flight>,
    next_flight: AtomicU64,
}

/// Each tenant loads a component by itself, so that none waits in another's queue.
type FlightKey = (CacheKey, Option<usize>);

struct Flight {
    /// Tells apart loads with the same key.
    id: u64,
    load: WeakShared<BoxFuture<'static, Outcome>>,
}

type Outcome = Result<LoadedComponent, Arc<LoadError>>;

/// Bytes up to which `load` hashes and looks up on the caller's task instead of a blocking thread. Hashing this many
/// takes some 20 µs.
const HASH_INLINE: usize = 64 << 10;

/// Bytes up to which a component is compiled straight into its engine. This saves a tenth of a small component's time.
/// One that does not fit the pool is then compiled twice, which is too slow for a large one.
const COMPILE_IN_PLACE: usize = 256 << 10;

impl WasmEngine {
    /// Loads a component from its binary form: from memory if these bytes are loaded already, else from the code cache,
    /// else compiled by [`EngineConfig::compiler`](crate::EngineConfig::compiler). Does not block an async worker. At
    /// most [`EngineConfig::compile_jobs`](crate::EngineConfig::compile_jobs) compile at a time. Concurrent loads of
    /// the same bytes share one load and its failure.
    ///
    /// Dropping the last of them cancels the load and kills its compiler process. A
    /// [`Compiler::InProcess`](crate::Compiler::InProcess) cannot be stopped: it goes on in the background and keeps
    /// its permit.
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
        self.load_form(bytes, Form::Binary, profile).await
    }

    /// [`load`](Self::load) on the calling thread. It takes no permit and shares no load: two calls at a time with the
    /// same bytes both compile.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    pub fn load_blocking(&self, bytes: &[u8], profile: Profile) -> Result<LoadedComponent, LoadError> {
        self.load_form_blocking(bytes, Form::Binary, profile)
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
        let limits = self.config().compile_limits;
        let (path, bytes, form) = off_the_workers(move || {
            let (bytes, form) = read(path.as_ref(), &limits)?;
            Ok((path, bytes, form))
        })
        .await?;
        self.load_form(bytes, form, profile).await.map_err(|error| in_file(error, path.as_ref()))
    }

    /// [`load_file`](Self::load_file) on the calling thread.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    pub fn load_file_blocking(&self, path: impl AsRef<Path>, profile: Profile) -> Result<LoadedComponent, LoadError> {
        let (bytes, form) = read(path.as_ref(), &self.config().compile_limits)?;
        self.load_form_blocking(&bytes, form, profile).map_err(|error| in_file(error, path.as_ref()))
    }

    /// Loads a component from its text form.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    pub fn load_wat_blocking(&self, text: &str, profile: Profile) -> Result<LoadedComponent, LoadError> {
        self.load_form_blocking(text.as_bytes(), Form::Text, profile)
    }

    /// Compiles a component into native code for [`load_precompiled`](Self::load_precompiled), here or in another
    /// process with an engine of the same version and settings on the same kind of processor.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    pub fn precompile_blocking(&self, bytes: &[u8], profile: Profile) -> Result<Vec<u8>, LoadError> {
        let main = self.main(profile.into())?;
        let limits = &self.config().compile_limits;
        limits.check_form(Form::Binary, bytes.len() as u64)?;
        #[cfg(target_os = "linux")]
        if let Some(compilers) = &self.inner.compilers {
            let mut code = compilers.compile(bytes, Form::Binary, profile, code_digest(main, profile), None)?;
            let mut all = Vec::new();
            return match code.file().and_then(|file| file.read_to_end(&mut all)) {
                Ok(_) => Ok(all),
                Err(source) => Err(LoadError::CompilerStart { source }),
            };
        }
        let admitted = compiler::admit(bytes, Form::Binary, limits, self.config().features)?;
        admitted.compile(self.main(Kind { profile, features: admitted.features })?)
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
        let key = CacheKey { digest: digest(Form::Binary, code), profile };
        if let Some(known) = self.known(&key) {
            return Ok(known);
        }
        // SAFETY: promised by the caller.
        let adopted = self.adopt_unknown(profile, |engine| unsafe { Component::deserialize(engine, code) });
        let (kind, component, allocation) = adopted?;
        Ok(self.keep(key, kind, component, allocation, Origin::Precompiled))
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
        let adopted = self.adopt_unknown(profile, |engine| unsafe { Component::deserialize_file(engine, path) });
        let (kind, component, allocation) = adopted?;
        Ok(self.loaded(None, kind, component, allocation, Origin::Precompiled))
    }

    /// Gives code to the first engine that takes it: it does not say what it needs.
    fn adopt_unknown(
        &self,
        profile: Profile,
        make: impl Fn(&Engine) -> wasmtime::Result<Component>,
    ) -> Result<(Kind, Component, Allocation), LoadError> {
        let mut first = None;
        for features in self.config().features.combinations() {
            let kind = Kind { profile, features };
            match self.adopt(kind, &make) {
                Ok((component, allocation)) => return Ok((kind, component, allocation)),
                Err(error) => _ = first.get_or_insert(error),
            }
        }
        let error = first.expect("there is always the combination of nothing");
        Err(LoadError::Incompatible { profile, error })
    }

    async fn load_form(
        &self,
        bytes: impl AsRef<[u8]> + Send + 'static,
        form: Form,
        profile: Profile,
    ) -> Result<LoadedComponent, LoadError> {
        self.config().compile_limits.check_form(form, bytes.as_ref().len() as u64)?;
        let (bytes, digest) = if bytes.as_ref().len() <= HASH_INLINE {
            let digest = digest(form, bytes.as_ref());
            (bytes, digest)
        } else {
            off_the_workers(move || {
                let digest = digest(form, bytes.as_ref());
                Ok((bytes, digest))
            })
            .await?
        };
        let key = CacheKey { digest, profile };
        if let Some(known) = self.known(&key) {
            return Ok(known);
        }
        let load = self.join_or_begin(key, |engine, landed| {
            let load = async move {
                let _landed = landed;
                engine.load_keyed(bytes, form, key).await.map_err(Arc::new)
            };
            load.boxed()
        });
        load.await.map_err(|error| Arc::try_unwrap(error).unwrap_or_else(|error| error.told_again()))
    }

    fn load_form_blocking(&self, bytes: &[u8], form: Form, profile: Profile) -> Result<LoadedComponent, LoadError> {
        self.config().compile_limits.check_form(form, bytes.len() as u64)?;
        let key = CacheKey { digest: digest(form, bytes), profile };
        match self.load_cached(key) {
            Some(known) => Ok(known),
            None => self.compile(bytes, form, key, None),
        }
    }

    /// Joins the load with this key, or starts it.
    fn join_or_begin(
        &self,
        key: CacheKey,
        begin: impl FnOnce(Self, Landed) -> BoxFuture<'static, Outcome>,
    ) -> Shared<BoxFuture<'static, Outcome>> {
        let loads = &self.inner.loads;
        let key = (key, self.lane.as_ref().map(|lane| Arc::as_ptr(lane) as usize));
        let entry = loads.flights.entry(key);
        if let Entry::Occupied(flight) = &entry
            && let Some(load) = flight.get().load.upgrade()
        {
            return load;
        }
        let id = loads.next_flight.fetch_add(1, Ordering::Relaxed);
        let load = begin(self.clone(), Landed { engine: self.clone(), key, id }).shared();
        entry.insert(Flight { id, load: load.downgrade().expect("not polled yet") });
        load
    }

    async fn load_keyed(
        self,
        bytes: impl AsRef<[u8]> + Send + 'static,
        form: Form,
        key: CacheKey,
    ) -> Result<LoadedComponent, LoadError> {
        if self.inner.code_cache.is_some() {
            // Does not have to wait for its turn to compile.
            let engine = self.clone();
            if let Some(cached) = off_the_workers(move || Ok(engine.load_cached(key))).await? {
                return Ok(cached);
            }
        }
        let permits = self.permits().await?;
        // The other end is dropped with this future.
        let (cancelled, _cancel) = io::pipe().map_err(|source| LoadError::CompilerStart { source })?;
        off_the_workers(move || {
            // A compilation that goes on without waiters keeps its permit.
            let _permits = permits;
            match self.known(&key) {
                Some(known) => Ok(known),
                None => self.compile(bytes.as_ref(), form, key, Some(&cancelled)),
            }
        })
        .await
    }

    /// Permits of a compilation: the tenant's, for a tenant's handle, and one of all. While waiting for the first it
    /// does not hold the second.
    async fn permits(&self) -> Result<(Option<OwnedSemaphorePermit>, OwnedSemaphorePermit), LoadError> {
        let of = |permits: &Arc<Semaphore>| Arc::clone(permits).acquire_owned();
        let closed = |_| LoadError::Shutdown;
        let tenants = match &self.lane {
            Some(lane) => Some(of(lane).await.map_err(closed)?),
            None => None,
        };
        Ok((tenants, of(&self.inner.compile_jobs).await.map_err(closed)?))
    }

    fn known(&self, key: &CacheKey) -> Option<LoadedComponent> {
        let loaded = self.inner.loads.known.get(key)?.upgrade()?;
        Some(LoadedComponent::new(loaded))
    }

    fn load_cached(&self, key: CacheKey) -> Option<LoadedComponent> {
        self.known(&key).or_else(|| self.find_in_code_cache(key))
    }

    /// Registers a component, unless another with the same bytes was registered meanwhile.
    fn keep(
        &self,
        key: CacheKey,
        kind: Kind,
        component: Component,
        allocation: Allocation,
        origin: Origin,
    ) -> LoadedComponent {
        // Declared before the entry's guard, so that it is dropped after it.
        let loaded = self.loaded(Some(key), kind, component, allocation, origin);
        let mut known = self.inner.loads.known.entry(key).or_default();
        match known.upgrade() {
            Some(other) => LoadedComponent::new(other),
            None => {
                *known = loaded.downgrade();
                loaded.clone()
            }
        }
    }

    /// Removes the entry of a dropped component, unless it was loaded anew.
    pub(crate) fn forget(&self, key: &CacheKey) {
        self.inner.loads.known.remove_if(key, |_, loaded| loaded.strong_count() == 0);
    }

    /// A component that is forgotten with its last user where it has a key. It belongs to no tenant.
    fn loaded(
        &self,
        key: Option<CacheKey>,
        kind: Kind,
        component: Component,
        allocation: Allocation,
        origin: Origin,
    ) -> LoadedComponent {
        let engine = Self { inner: Arc::clone(&self.inner), lane: None };
        let memo = OnceLock::new();
        LoadedComponent::new(Arc::new(Loaded { engine, component, kind, allocation, origin, key, memo }))
    }

    #[expect(unsafe_code, reason = "code in a private folder is trusted")]
    fn find_in_code_cache(&self, key: CacheKey) -> Option<LoadedComponent> {
        let cache = self.inner.code_cache.as_ref()?;
        let (path, features) = cache.find(&self.entry_name(&key).ok()?)?;
        if !self.config().features.offers(features) {
            // Compiled when they were offered.
            return None;
        }
        let kind = Kind { profile: key.profile, features };
        // SAFETY: the folder and the file belong to this user and nobody else can write to them, and the file's name and
        // length are those it was written with; see `CodeCache` for what is trusted beyond that.
        match self.adopt(kind, |engine| unsafe { Component::deserialize_file(engine, &path) }) {
            Ok((component, allocation)) => Some(self.keep(key, kind, component, allocation, Origin::CodeCache)),
            Err(error) => {
                let error = format_args!("{error:#}");
                tracing::warn!(path = %path.display(), %error, "code cache entry refused: compiling again");
                None
            }
        }
    }

    #[expect(unsafe_code, reason = "wasmtime hands out compiled code as bytes and takes it back as trusted")]
    fn compile(
        &self,
        bytes: &[u8],
        form: Form,
        key: CacheKey,
        cancel: Option<&PipeReader>,
    ) -> Result<LoadedComponent, LoadError> {
        let profile = key.profile;
        let main = self.main(profile.into())?;
        let invalid = |error| LoadError::Invalid { error };
        #[cfg(target_os = "linux")]
        if let Some(compilers) = &self.inner.compilers {
            let mut code = compilers.compile(bytes, form, profile, code_digest(main, profile), cancel)?;
            let kind = Kind { profile, features: code.features };
            if !self.config().features.offers(kind.features) {
                return Err(LoadError::Compiler { end: CompilerEnd::Nonsense });
            }
            let entry = self.store(&key, kind.features, |entry| io::copy(code.file()?, entry).map(|_| ()))?;
            // SAFETY: a compiler of this version says that it has made them for these settings, in a file that nobody can
            // write to any more, or that is in a private folder. What is trusted is that compiler; see `SECURITY.md`.
            let adopt = |path| self.adopt(kind, |engine| unsafe { Component::deserialize_file(engine, &path) });
            let adopted = match entry.map(adopt) {
                Some(Ok(adopted)) => adopted,
                // The folder may have been emptied since.
                _ => adopt(code.path()).map_err(invalid)?,
            };
            let (component, allocation) = adopted;
            return Ok(self.keep(key, kind, component, allocation, Origin::Compiled));
        }
        // It cannot be stopped.
        _ = cancel;
        let limits = &self.config().compile_limits;
        let admitted = compiler::admit(bytes, form, limits, self.config().features)?;
        let kind = Kind { profile, features: admitted.features };
        let in_place = self.inner.code_cache.is_none() && admitted.binary.len() <= COMPILE_IN_PLACE;
        let (component, allocation) = if in_place {
            let made = admitted.call(|binary| self.adopt(kind, |engine| Component::from_binary(engine, binary)))?;
            let image = made.0.image_range();
            limits.check_code((image.end as usize - image.start as usize) as u64)?;
            made
        } else {
            let code = admitted.compile(self.main(kind)?)?;
            self.store(&key, kind.features, |entry| io::Write::write_all(entry, &code))?;
            // SAFETY: wasmtime made these bytes a moment ago, for these settings.
            self.adopt(kind, |engine| unsafe { Component::deserialize(engine, &code) }).map_err(invalid)?
        };
        Ok(self.keep(key, kind, component, allocation, Origin::Compiled))
    }

    /// Writes an entry of the code cache, if there is one, and says where it is.
    fn store(
        &self,
        key: &CacheKey,
        features: Features,
        write: impl FnOnce(&mut fs::File) -> io::Result<()>,
    ) -> Result<Option<std::path::PathBuf>, LoadError> {
        let Some(cache) = &self.inner.code_cache else { return Ok(None) };
        let entry = cache.store(&self.entry_name(key)?, features, write);
        Ok(entry
            .inspect_err(|error| {
                tracing::warn!(folder = %cache.folder().display(), %error, "cannot write to the code cache");
            })
            .ok())
    }

    /// The name of a code cache entry: everything that the code depends on.
    fn entry_name(&self, key: &CacheKey) -> Result<Digest, LoadError> {
        let code = code_digest(self.main(key.profile.into())?, key.profile);
        Ok(hashed(|hasher| {
            code.hash(hasher);
            // Cached code is not checked again: its component was within these limits.
            self.config().compile_limits.hash(hasher);
            key.digest.hash(hasher);
        }))
    }
}

/// Removes the entry of a load that ended, unless it is another's by now.
struct Landed {
    engine: WasmEngine,
    key: FlightKey,
    id: u64,
}

impl Drop for Landed {
    fn drop(&mut self) {
        self.engine.inner.loads.flights.remove_if(&self.key, |_, flight| flight.id == self.id);
    }
}

/// The contents of a file, and whether they are text.
fn read(path: &Path, limits: &CompileLimits) -> Result<(Vec<u8>, Form), LoadError> {
    let is_text = path.extension().is_some_and(|extension| extension == "wat");
    let form = if is_text { Form::Text } else { Form::Binary };
    let failed = |source| LoadError::File { path: path.to_owned(), source };
    let file = fs::File::open(path).map_err(failed)?;
    limits.check_form(form, file.metadata().map_err(failed)?.len())?;
    let mut bytes = Vec::new();
    // It may be no file at all, or grow while it is read.
    file.take(limits.most(form).saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    limits.check_form(form, bytes.len() as u64)?;
    Ok((bytes, form))
}

/// Says in which file text is wrong.
fn in_file(error: LoadError, path: &Path) -> LoadError {
    match error {
        LoadError::Text { error } => LoadError::Text { error: error.context(path.display().to_string()) },
        error => error,
    }
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

fn digest(form: Form, bytes: &[u8]) -> Digest {
    match form {
        Form::Binary => *blake3::hash(bytes).as_bytes(),
        Form::Text => blake3::derive_key("airssys-wasm component as text", bytes),
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;
    use crate::EngineConfig;

    fn on_demand() -> WasmEngine {
        WasmEngine::new(EngineConfig::on_demand().compile_in_process()).unwrap()
    }

    fn is_pending<F: Future>(load: std::pin::Pin<&mut F>) -> bool {
        load.poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    #[test]
    fn a_component_is_forgotten_with_its_last_user() {
        let engine = on_demand();
        let first = engine.load_wat_blocking("(component)", Profile::Plain).unwrap();
        let second = first.clone();
        drop(first);
        assert_eq!(engine.inner.loads.known.len(), 1);
        drop(second);
        assert_eq!(engine.inner.loads.known.len(), 0);
    }

    #[test]
    fn of_two_with_the_same_bytes_one_is_kept() {
        let engine = on_demand();
        let first = engine.load_wat_blocking("(component)", Profile::Plain).unwrap();
        let key = CacheKey { digest: digest(Form::Text, b"(component)"), profile: Profile::Plain };
        let second =
            engine.keep(key, Profile::Plain.into(), first.component().clone(), first.allocation(), Origin::Compiled);
        assert!(first.same(&second));
        drop((first, second));
        assert_eq!(engine.inner.loads.known.len(), 0);
    }

    #[tokio::test]
    async fn a_component_in_the_code_cache_does_not_wait_for_others_to_compile() {
        let folder = tempfile::tempdir().unwrap();
        let config = EngineConfig { code_cache: Some(folder.path().to_owned()), ..EngineConfig::on_demand() };
        let engine = WasmEngine::new(config.compile_in_process()).unwrap();
        let bytes = wat::parse_str("(component)").unwrap();
        assert_eq!(engine.load(bytes.clone(), Profile::Plain).await.unwrap().origin(), Origin::Compiled);
        let _all = engine.inner.compile_jobs.acquire().await.unwrap();
        assert_eq!(engine.load(bytes, Profile::Plain).await.unwrap().origin(), Origin::CodeCache);
    }

    #[tokio::test]
    async fn a_load_that_is_dropped_while_it_waits_for_its_turn_is_gone() {
        let engine = on_demand();
        let all = engine.config().compile_jobs.get() as u32;
        let others = engine.inner.compile_jobs.acquire_many(all).await.unwrap();
        let bytes = wat::parse_str("(component)").unwrap();
        let mut load = Box::pin(engine.load(bytes.clone(), Profile::Plain));
        assert!(is_pending(load.as_mut()));
        drop(load);
        drop(others);
        // It would have come first.
        assert_eq!(engine.inner.compile_jobs.available_permits(), all as usize);
        assert_eq!(engine.inner.loads.flights.len(), 0);
        engine.load(bytes, Profile::Plain).await.unwrap();
    }

    #[tokio::test]
    async fn who_asks_for_the_same_bytes_takes_no_turn_and_gets_the_same() {
        let engine = on_demand();
        let all = engine.config().compile_jobs.get() as u32;
        let others = engine.inner.compile_jobs.acquire_many(all).await.unwrap();
        let bytes = wat::parse_str("(component)").unwrap();
        let mut loads: Vec<_> = (0..10).map(|_| Box::pin(engine.load(bytes.clone(), Profile::Plain))).collect();
        assert!(loads.iter_mut().all(|load| is_pending(load.as_mut())));
        assert_eq!(engine.inner.loads.flights.len(), 1);
        drop(others);
        // The one that came first has gone: another goes on with what it has begun.
        drop(loads.remove(0));
        let loaded: Vec<_> = futures_util::future::join_all(loads).await.into_iter().map(Result::unwrap).collect();
        assert!(loaded.iter().all(|each| each.same(&loaded[0])));
        assert_eq!(engine.inner.loads.flights.len(), 0);
    }

    #[tokio::test]
    async fn a_failure_is_told_to_all_who_wait_and_not_remembered() {
        let engine = on_demand();
        let all = engine.config().compile_jobs.get() as u32;
        let others = engine.inner.compile_jobs.acquire_many(all).await.unwrap();
        let mut loads: Vec<_> = (0..3).map(|_| Box::pin(engine.load(b"nonsense", Profile::Plain))).collect();
        assert!(loads.iter_mut().all(|load| is_pending(load.as_mut())));
        drop(others);
        for error in futures_util::future::join_all(loads).await {
            assert!(matches!(error.unwrap_err(), LoadError::NotWasm { start } if start == b"nons"));
        }
        assert_eq!((engine.inner.loads.known.len(), engine.inner.loads.flights.len()), (0, 0));
    }

    #[tokio::test]
    async fn a_tenant_that_waits_for_itself_leaves_the_turns_to_others() {
        let engine = on_demand();
        let (one, other) = (engine.for_tenant(), engine.for_tenant());
        let busy = one.lane.as_ref().unwrap().acquire().await.unwrap();
        let bytes = wat::parse_str("(component)").unwrap();
        let mut waits = Box::pin(one.load(bytes.clone(), Profile::Plain));
        assert!(is_pending(waits.as_mut()));
        assert_eq!(engine.inner.compile_jobs.available_permits(), engine.config().compile_jobs.get());
        // Not even for the same bytes.
        let theirs = other.load(bytes, Profile::Plain).await.unwrap();
        assert!(is_pending(waits.as_mut()));
        drop(busy);
        assert!(waits.await.unwrap().same(&theirs));
    }
}

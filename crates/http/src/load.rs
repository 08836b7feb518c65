//! Components and actors of one system, each by its `Component.toml`, and how HTTP reaches them.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use airssys_wasm_actor::{ActorManifest, ActorRef, ActorState, ActorSystem, RestartPolicy, SystemConfig};
use airssys_wasm_engine::{LoadError, WasmEngine};
use airssys_wasm_limits::ManifestError;

use crate::{
    ask::AskActor,
    component::{HttpComponent, HttpComponentSpec, Interface},
    host::{HttpHost, HttpState, add_http},
    manifest::{HttpTable, LoadHttpError, custom, file_of, supervision},
    service::{HttpServiceBuilder, HttpTarget, Route},
};

/// What a `Component.toml` stands for in a system of actors, and how HTTP reaches it.
#[non_exhaustive]
pub struct Loaded<U: HttpHost = HttpState> {
    /// Its actor. That of a component that answers HTTP only has its name.
    pub actor: ActorRef,
    /// The requests that go to it.
    pub routes: Vec<Route>,
    /// Who answers them. `None` for an actor that is not reached by HTTP.
    pub target: Option<HttpTarget>,
    /// The component, where it answers HTTP by itself.
    pub component: Option<HttpComponent<ActorState<U>>>,
}

impl<U: HttpHost> fmt::Debug for Loaded<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { actor, routes, target, component } = self;
        let mut text = f.debug_struct("Loaded");
        text.field("actor", actor).field("routes", routes).field("target", target);
        text.field("component", component).finish()
    }
}

/// A system of actors whose components may import `wasi:http`.
pub fn system(engine: WasmEngine, config: SystemConfig) -> ActorSystem<HttpState> {
    ActorSystem::with_host(engine, config, |_| HttpState::default(), add_http)
}

/// Reads a `Component.toml`, loads and links its component, and makes of it what it is:
///
/// - a component that exports the handler of `wasi:http`: its routes lead to it, in sandboxes of its own. It may import
///   `airssys:actor/messaging`, and what `[link]` names, as far as it is granted. Of `[component]` it has `name`, `wasm` and
///   `depends_on`;
/// - else an actor, which is spawned. With `ask = true` its routes lead to it, see [`AskActor`]; it has the `deadline` of its
///   `[resources]` for a request, with the time in the mailbox.
///
/// Both may send requests as `[http] allow` grants.
///
/// ```
/// use airssys_wasm_actor::{ActorSystem, SystemConfig};
/// use airssys_wasm_engine::{EngineConfig, WasmEngine};
/// use airssys_wasm_http::{HttpService, load};
///
/// # async fn service() -> Result<HttpService, Box<dyn std::error::Error>> {
/// let system = airssys_wasm_http::system(WasmEngine::new(EngineConfig::default())?, SystemConfig::default());
/// let stock = load(&system, "stock/Component.toml").await?;
/// let shop = load(&system, "shop/Component.toml").await?;
/// let service = HttpService::builder().loaded(&stock).loaded(&shop).build()?;
/// # Ok(service)
/// # }
/// ```
///
/// # Errors
///
/// [`LoadHttpError`], after which nothing is left of it.
///
/// # Panics
///
/// Outside a tokio runtime with timers.
pub async fn load<U: HttpHost>(
    system: &ActorSystem<U>,
    manifest: impl AsRef<Path>,
) -> Result<Loaded<U>, LoadHttpError> {
    let path = manifest.as_ref().to_owned();
    let read = match tokio::task::spawn_blocking(move || Read::new(path)).await {
        Ok(read) => read?,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => return Err(LoadError::Shutdown.into()),
    };
    let Read { path, http, supervision, actor, table, wasm } = read;
    let wrong = |source| LoadHttpError::Manifest { path: path.clone(), source };
    let (id, deadline) = (actor.component.name.clone(), actor.sandbox.limits.deadline);
    let subscribes = !actor.messaging.subscribe.is_empty();
    let spec = system.load_bytes(actor, wasm).await?;
    let state = {
        let (make, id, outgoing) = (system.state_factory(), id, http.grants());
        let outgoing = outgoing.named(id.as_str());
        move || {
            let mut state = make(&id);
            state.http().grant(outgoing.clone());
            state
        }
    };
    let handler = Interface::of(spec.sandbox());
    if !http.ask && (handler.is_ok() || !http.routes.is_empty()) {
        handler?;
        ManifestError::check_keys("component", &table, &["name", "wasm", "depends_on"]).map_err(wrong)?;
        if subscribes {
            let error = "a component that answers HTTP takes no messages; leave out `subscribe`";
            return Err(wrong(custom(error)));
        }
        let front = system.front(spec).await?;
        let actor = front.actor().clone();
        let component =
            HttpComponentSpec::of_front(front, state).with_limits(http.limits).with_restart(supervision).build()?;
        let target = Some(component.clone().into());
        return Ok(Loaded { actor, routes: http.routes, target, component: Some(component) });
    }
    let spec = spec.with_state(move |_| std::future::ready(Ok::<_, std::convert::Infallible>(state())));
    let actor = system.spawn(spec).await?;
    let target = http.ask.then(|| AskActor::new(actor.clone(), deadline, http.limits).into());
    Ok(Loaded { actor, routes: http.routes, target, component: None })
}

impl HttpServiceBuilder {
    /// Adds the routes of a component or actor that was loaded by its `Component.toml`.
    #[must_use]
    pub fn loaded<U: HttpHost>(self, loaded: &Loaded<U>) -> Self {
        match &loaded.target {
            Some(target) => self.routes(loaded.routes.iter().cloned(), target.clone()),
            None => self,
        }
    }
}

/// What was read of files.
struct Read {
    path: PathBuf,
    http: HttpTable,
    supervision: RestartPolicy,
    actor: ActorManifest,
    /// `[component]` as it is written.
    table: toml::Table,
    wasm: Vec<u8>,
}

impl Read {
    fn new(path: PathBuf) -> Result<Self, LoadHttpError> {
        let read = |path: &Path, source| LoadHttpError::Read { path: path.to_owned(), source };
        let text = fs::read_to_string(&path).map_err(|source| read(&path, source))?;
        let parsed = || -> Result<_, ManifestError> {
            let mut manifest: toml::Table = text.parse()?;
            let http = HttpTable::take_from(&mut manifest)?;
            let actor = ActorManifest::from_toml(&manifest.to_string())?;
            let table = manifest.get("component").and_then(toml::Value::as_table).cloned().unwrap_or_default();
            Ok((http, supervision(&mut manifest)?, actor, table))
        };
        let (http, supervision, actor, table) =
            parsed().map_err(|source| LoadHttpError::Manifest { path: path.clone(), source })?;
        let wasm = file_of(&path, actor.component.wasm.as_deref())?;
        let wasm = fs::read(&wasm).map_err(|source| read(&wasm, source))?;
        Ok(Self { path, http, supervision, actor, table, wasm })
    }
}

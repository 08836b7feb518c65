//! Guests that are actors, on bare wasmtime.

use std::sync::{Arc, LazyLock};

use airssys_wasm_engine::{Export, LoadedComponent, Profile, WasmEngine};
use airssys_wasm_fixtures as fixtures;
use bytes::Bytes;
use wasmtime::{
    Store,
    component::{ComponentNamedList, ComponentType, Instance, InstancePre, Lift, Linker, Lower, TypedFunc},
};

use crate::bare;

/// A guest, for our actors and for the bare engine.
pub struct Guest {
    loaded: LoadedComponent,
    pre: InstancePre<()>,
    handle: Export,
}

/// [`fixtures::ECHO_ACTOR`].
pub static ECHO: LazyLock<Guest> = LazyLock::new(|| Guest::new(bare::engine(), fixtures::ECHO_ACTOR));
/// [`fixtures::SMALLEST_ACTOR`].
pub static SMALLEST: LazyLock<Guest> =
    LazyLock::new(|| Guest::new(bare::engine(), &bare::binary(fixtures::SMALLEST_ACTOR)));
/// [`fixtures::SMALLEST_ASYNC_ACTOR`].
pub static SMALLEST_ASYNC: LazyLock<Guest> =
    LazyLock::new(|| Guest::new(bare::engine(), &bare::binary(fixtures::SMALLEST_ASYNC_ACTOR)));
/// [`fixtures::SMALLEST_KEEPING_ACTOR`].
pub static SMALLEST_KEEPING: LazyLock<Guest> =
    LazyLock::new(|| Guest::new(bare::engine(), &bare::binary(fixtures::SMALLEST_KEEPING_ACTOR)));
/// [`fixtures::COLLECTING_ACTOR`].
pub static COLLECTING: LazyLock<Guest> =
    LazyLock::new(|| Guest::new(bare::engine(), &bare::binary(fixtures::COLLECTING_ACTOR)));
/// [`fixtures::COUNTER`].
pub static COUNTER: LazyLock<Guest> = LazyLock::new(|| Guest::new(bare::engine(), fixtures::COUNTER));
/// [`fixtures::COUNTER_V2`].
pub static COUNTER_V2: LazyLock<Guest> = LazyLock::new(|| Guest::new(bare::engine(), fixtures::COUNTER_V2));
/// [`fixtures::ASYNC_ACTOR`].
pub static ASYNC_ACTOR: LazyLock<Guest> = LazyLock::new(|| Guest::new(bare::engine(), fixtures::ASYNC_ACTOR));
/// [`fixtures::ACTOR`].
pub static ACTOR: LazyLock<Guest> = LazyLock::new(|| Guest::new(bare::engine(), fixtures::ACTOR));

impl Guest {
    /// A guest that is an actor.
    pub fn new(engine: &WasmEngine, bytes: &[u8]) -> Self {
        let loaded = engine.load_blocking(bytes, Profile::Plain).expect("a valid fixture");
        let mut linker = Linker::new(loaded.wasmtime());
        linker.define_unknown_imports_as_traps(loaded.component()).expect("functions only");
        let pre = linker.instantiate_pre(loaded.component()).expect("all of it is defined");
        let version = if loaded.features().component_async { "0.2.0" } else { "0.1.0" };
        let handle = loaded.export(&format!("airssys:actor/handler@{version}#handle")).expect("an actor");
        Self { loaded, pre, handle }
    }

    /// What was loaded.
    pub fn loaded(&self) -> &LoadedComponent {
        &self.loaded
    }

    /// An instance on the bare engine.
    pub async fn instantiate(&self) -> BareGuest {
        let mut store = bare::store(self.pre.engine(), ());
        let instance = self.pre.instantiate_async(&mut store).await.expect("room for it");
        self.live(store, instance)
    }

    /// The same without a fiber.
    pub fn instantiate_now(&self) -> BareGuest {
        let mut store = bare::store(self.pre.engine(), ());
        let instance = self.pre.instantiate(&mut store).expect("room for it");
        self.live(store, instance)
    }

    fn live(&self, mut store: Store<()>, instance: Instance) -> BareGuest {
        let handle = instance.get_typed_func(&mut store, self.handle.index()).expect("its type");
        BareGuest { store, instance, handle }
    }

    /// One of its exports, found once.
    pub fn export(&self, name: &str) -> Export {
        self.loaded.export(name).expect("the export")
    }
}

/// A guest in a store without limits.
pub struct BareGuest {
    store: Store<()>,
    instance: Instance,
    handle: TypedFunc<(Message,), (Handled,)>,
}

type Handled = Result<Option<Bytes>, String>;

/// `airssys:actor/types.message`.
#[derive(ComponentType, Lower)]
#[component(record)]
struct Message {
    payload: Bytes,
    sender: Option<Arc<str>>,
    topic: Option<Arc<str>>,
    #[component(name = "content-type")]
    content_type: Option<Arc<str>>,
    #[component(name = "wants-answer")]
    wants_answer: bool,
}

impl Message {
    fn new(payload: Bytes, wants_answer: bool) -> Self {
        Self { payload, sender: None, topic: None, content_type: None, wants_answer }
    }
}

impl BareGuest {
    /// A warm call of its handler.
    ///
    /// # Errors
    ///
    /// When the guest traps.
    pub async fn handle(&mut self, payload: Bytes, wants_answer: bool) -> wasmtime::Result<Bytes> {
        self.store.set_epoch_deadline(1 << 40);
        let message = Message::new(payload, wants_answer);
        let (answer,) = self.handle.call_async(&mut self.store, (message,)).await?;
        Ok(answer.expect("no error").expect("an answer"))
    }

    /// The same on the stack of its caller, of a guest that was [made so](Guest::instantiate_now).
    ///
    /// # Errors
    ///
    /// When the guest traps.
    pub fn handle_now(&mut self, payload: Bytes, wants_answer: bool) -> wasmtime::Result<Bytes> {
        self.store.set_epoch_deadline(1 << 40);
        let (answer,) = self.handle.call(&mut self.store, (Message::new(payload, wants_answer),))?;
        Ok(answer.expect("no error").expect("an answer"))
    }

    /// A call of another export.
    pub async fn call<P, R>(&mut self, export: &Export, params: P) -> R
    where
        P: ComponentNamedList + Lower + Send + Sync + 'static,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        let func = self.instance.get_typed_func::<P, R>(&mut self.store, export.index()).expect("its type");
        self.store.set_epoch_deadline(1 << 40);
        func.call_async(&mut self.store, params).await.expect("no trap")
    }
}

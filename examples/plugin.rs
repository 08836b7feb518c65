//! A till that runs the plugins of its shops: components of a WIT world of its own, supervised, with a resource on either
//! side. Each plugin has its own till in its store, and no plugin sees another's.
//!
//! `cargo run --example plugin`

use std::collections::BTreeMap;

use airssys_wasm_actor::{ActorRef, ActorSpec, ActorState, ActorSystem, CallError, ContractKind, SystemConfig};
use airssys_wasm_engine::{
    EngineConfig, Profile, WasmEngine,
    wasmtime::{
        self,
        component::{HasData, Resource},
    },
    wasmtime_wasi::ResourceTable,
};
use airssys_wasm_fixtures::CHECKOUT;
use airssys_wasm_isolation::{HostState, SandboxSpec};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use anyhow::Result;

/// The world of `examples/plugin/till.wit`.
mod world {
    #![allow(missing_docs, unreachable_pub, reason = "generated, and what it passes on")]

    /// What a plugin has a handle to. It never sees inside.
    #[derive(Default)]
    pub struct Basket {
        pub(super) total: u32,
    }

    airssys_wasm_engine::wasmtime::component::bindgen!({
        path: "plugin",
        world: "plugin",
        wasmtime_crate: airssys_wasm_engine::wasmtime,
        with: { "example:till/baskets.basket": Basket },
        imports: { default: trappable },
        exports: { default: async },
    });
}

use world::{Basket, Plugin, example::till::baskets};

/// What each plugin's store holds of the till.
struct Till {
    prices: BTreeMap<&'static str, u32>,
}

/// The till and its handles, as the host functions below want them.
struct View<'a> {
    till: &'a Till,
    table: &'a mut ResourceTable,
}

/// Says so to wasmtime.
struct Baskets;

impl HasData for Baskets {
    type Data<'a> = View<'a>;
}

impl baskets::Host for View<'_> {}

impl baskets::HostBasket for View<'_> {
    fn new(&mut self) -> wasmtime::Result<Resource<Basket>> {
        // The table has room for as many handles as the limits say.
        Ok(self.table.push(Basket::default())?)
    }

    fn add(&mut self, basket: Resource<Basket>, item: String) -> wasmtime::Result<Result<(), String>> {
        let basket = self.table.get_mut(&basket)?;
        Ok(match self.till.prices.get(&*item) {
            Some(price) => {
                basket.total += price;
                Ok(())
            }
            None => Err(format!("the shop does not sell `{item}`")),
        })
    }

    fn total(&mut self, basket: Resource<Basket>) -> wasmtime::Result<u32> {
        Ok(self.table.get(&basket)?.total)
    }

    fn drop(&mut self, basket: Resource<Basket>) -> wasmtime::Result<()> {
        self.table.delete(basket)?;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    run().await?;
    Ok(())
}

/// Gives what the plugin asks for an order, what it says to one that it cannot fill, what came of a discount that its author
/// did not think of, and what it asks afterwards.
pub(crate) async fn run() -> Result<(u32, String, CallError, u32)> {
    let system = ActorSystem::with_host(
        WasmEngine::new(EngineConfig::small().compile_in_process())?,
        SystemConfig::default(),
        |_plugin| Till { prices: [("apple", 120), ("pear", 60)].into() },
        |linker| {
            baskets::add_to_linker::<_, Baskets>(linker, |state: &mut HostState<ActorState<Till>>| {
                let (table, ext) = state.table_and_ext();
                View { till: &ext.user, table }
            })
        },
    );
    let component = system.engine().load(CHECKOUT, Profile::Plain).await?;
    let sandbox = SandboxSpec::new(system.link(&component)?, ResourceLimits::with_memory(ByteSize::mib(8)))?;
    // It takes no messages: it is called by what it exports.
    let spec = ActorSpec::new("checkout".parse()?, sandbox).with_contract(ContractKind::Exports);
    let plugin = system.spawn(spec).await?;

    let order = checkout(&system, &plugin, &["apple", "pear"], 10).await?.expect("the shop sells both");
    println!("an apple and a pear, less 10 %: {order}");
    let refused = checkout(&system, &plugin, &["plum"], 10).await?.expect_err("the shop does not");
    println!("a plum: {refused}");

    let crashed = checkout(&system, &plugin, &["apple"], 200).await.expect_err("more than everything");
    println!("an apple, less 200 %: {crashed}");
    let after = checkout(&system, &plugin, &["apple"], 0).await?.expect("it was restarted");
    println!("an apple: {after}");
    Ok((order, refused, crashed, after))
}

/// One call: a discount is made in the plugin, used, and dropped.
async fn checkout(
    system: &ActorSystem<Till>,
    plugin: &ActorRef,
    items: &[&str],
    percent: u32,
) -> Result<Result<u32, String>, CallError> {
    let items: Vec<String> = items.iter().map(|&item| item.to_owned()).collect();
    let call = system.call_with(plugin, move |mut store, instance| {
        Box::pin(async move {
            let bindings = Plugin::new(&mut store, &instance)?;
            let discounts = bindings.example_till_discounts();
            let discount = discounts.discount().call_constructor(&mut store, percent).await?;
            let asked = discounts.call_checkout(&mut store, &items, discount).await?;
            discount.resource_drop_async(&mut store).await?;
            Ok(asked)
        })
    });
    call.await
}

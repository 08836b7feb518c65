//! Host names and datagrams: a few in flight.

use std::{future::poll_fn, net::IpAddr, vec};

use airssys_wasm_engine::{
    Linker,
    wasmtime::{
        self,
        component::{Accessor, Resource},
    },
    wasmtime_wasi::{
        p3::bindings::sockets::{
            ip_name_lookup,
            types::{ErrorCode, HostUdpSocketWithStore as _, IpAddress, IpSocketAddress},
        },
        sockets::{UdpSocket, WasiSockets, WasiSocketsView},
    },
};

use super::versioned;
use crate::{
    HostState,
    wasi::{LookUp, Refused},
};

pub(super) fn bound<U: Send + 'static>(linker: &mut Linker<HostState<U>>) -> wasmtime::Result<()> {
    linker
        .instance(&versioned("wasi:sockets/ip-name-lookup"))?
        .func_wrap_concurrent("resolve-addresses", |store, (name,)| Box::pin(resolve_addresses(store, name)))?;
    let mut sockets = linker.instance(&versioned("wasi:sockets/types"))?;
    sockets.func_wrap_concurrent("[method]udp-socket.send", |store, (socket, data, to)| {
        Box::pin(send(store, socket, data, to))
    })?;
    sockets.func_wrap_concurrent("[method]udp-socket.receive", |store, (socket,)| Box::pin(receive(store, socket)))
}

type Addresses = Result<Vec<IpAddress>, ip_name_lookup::ErrorCode>;

async fn resolve_addresses<U: Send + 'static>(
    store: &Accessor<HostState<U>>,
    name: String,
) -> wasmtime::Result<(Addresses,)> {
    let mut look_up = match store.with(|mut store| LookUp::new(store.get().look_ups(), &name)) {
        Ok(look_up) => look_up,
        Err(Refused::NotGranted) => return Ok((Err(ip_name_lookup::ErrorCode::PermanentResolverFailure),)),
        Err(Refused::NotAName) => return Ok((Err(ip_name_lookup::ErrorCode::InvalidArgument),)),
    };
    let answer = |addresses: &mut vec::IntoIter<IpAddr>| addresses.map(IpAddress::from).collect();
    let addresses = poll_fn(|cx| look_up.poll_addresses(cx).map(|addresses| addresses.map(answer))).await;
    Ok((addresses.map_err(|_| ip_name_lookup::ErrorCode::NameUnresolvable),))
}

async fn send<U: Send + 'static>(
    store: &Accessor<HostState<U>>,
    socket: Resource<UdpSocket>,
    data: Vec<u8>,
    to: Option<IpSocketAddress>,
) -> wasmtime::Result<(Result<(), ErrorCode>,)> {
    let in_flight = store.with(|mut store| store.get().in_flight());
    if data.len() > LARGEST_DATAGRAM {
        return Ok((Err(ErrorCode::DatagramTooLarge),));
    }
    let Some(_permits) = in_flight.send().await else { return Ok((Err(ErrorCode::OutOfMemory),)) };
    let sockets = store.with_getter::<WasiSockets>(|state| state.sockets());
    match WasiSockets::send(&sockets, socket, data, to).await {
        Ok(()) => Ok((Ok(()),)),
        Err(error) => Ok((Err(error.downcast()?),)),
    }
}

/// Bytes of a datagram, as wasmtime-wasi has it.
const LARGEST_DATAGRAM: usize = u16::MAX as usize;

type Received = Result<(Vec<u8>, IpSocketAddress), ErrorCode>;

async fn receive<U: Send + 'static>(
    store: &Accessor<HostState<U>>,
    socket: Resource<UdpSocket>,
) -> wasmtime::Result<(Received,)> {
    let in_flight = store.with(|mut store| store.get().in_flight());
    let Some(_permit) = in_flight.try_receive() else { return Ok((Err(ErrorCode::OutOfMemory),)) };
    let sockets = store.with_getter::<WasiSockets>(|state| state.sockets());
    match WasiSockets::receive(&sockets, socket).await {
        Ok(datagram) => Ok((Ok(datagram),)),
        Err(error) => Ok((Err(error.downcast()?),)),
    }
}

//! kameo's remote actors: a swarm of libp2p's without discovery, with noise and yamux as in kameo's own examples. Over TCP, since QUIC
//! took no less where it was tried.

use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::StreamExt;
use kameo::{mailbox, prelude::*, remote};
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, multiaddr, noise,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use serde::{Deserialize, Serialize};

use crate::Peer;

const NAME: &str = "echo";
/// Beyond what is in flight, in the mailbox and on the connection: by default kameo has room for 64 and 100.
const ROOM: usize = 1_024;

#[derive(Actor, RemoteActor)]
struct Echo;

/// As bytes, not as the sequence of numbers that a `Vec` would be.
#[derive(Serialize, Deserialize, Reply)]
struct Payload(Bytes);

#[remote_message]
impl Message<Payload> for Echo {
    type Reply = Payload;

    async fn handle(&mut self, message: Payload, _: &mut Context<Self, Self::Reply>) -> Self::Reply {
        message
    }
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    kameo: remote::Behaviour,
}

fn swarm() -> Result<Swarm<Behaviour>> {
    let swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)?
        .with_behaviour(|key| {
            let config = remote::messaging::Config::default().with_max_concurrent_streams(ROOM);
            Behaviour { kameo: remote::Behaviour::new(key.public().to_peer_id(), config) }
        })?
        // A connection lasts while others are measured.
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::MAX))
        .build();
    swarm.behaviour().kameo.try_init_global()?;
    Ok(swarm)
}

/// Drives it from a task of its own.
fn drive(mut swarm: Swarm<Behaviour>) {
    tokio::spawn(async move {
        loop {
            swarm.select_next_some().await;
        }
    });
}

#[derive(Clone)]
pub(crate) struct Kameo(RemoteActorRef<Echo>);

impl Peer for Kameo {
    async fn serve() -> Result<String> {
        let mut swarm = swarm()?;
        swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse()?)?;
        let address = loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                break address.with(multiaddr::Protocol::P2p(*swarm.local_peer_id()));
            }
        };
        drive(swarm);
        Echo::spawn_with_mailbox(Echo, mailbox::bounded(ROOM)).register(NAME).await?;
        Ok(address.to_string())
    }

    async fn reach(address: &str) -> Result<Self> {
        let address: Multiaddr = address.parse()?;
        let peer = address.iter().find_map(|part| match part {
            multiaddr::Protocol::P2p(peer) => Some(peer),
            _ => None,
        });
        let peer: PeerId = peer.context("an address without its peer")?;
        let mut swarm = swarm()?;
        swarm.add_peer_address(peer, address.clone());
        swarm.dial(address)?;
        while !swarm.is_connected(&peer) {
            swarm.select_next_some().await;
        }
        drive(swarm);
        loop {
            // The other is known, and asked, once both have agreed on the protocol.
            match RemoteActorRef::lookup(NAME).await? {
                Some(actor) => return Ok(Self(actor)),
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    async fn ask(&self, payload: Bytes) -> Result<Bytes> {
        Ok(self.0.ask(&Payload(payload)).await?.0)
    }
}

//! ractor's cluster: a `NodeServer` on either side, over plain TCP.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Result, bail};
use bytes::Bytes;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, pg, rpc::CallResult};
use ractor_cluster::{NetworkStream, NodeServer, NodeServerMessage, RactorClusterMessage};
use tokio::net::TcpListener;

use crate::Peer;

const GROUP: &str = "echo";

struct Echo;

#[derive(RactorClusterMessage)]
enum Message {
    #[rpc]
    Ask(Vec<u8>, RpcReplyPort<Vec<u8>>),
}

impl Actor for Echo {
    type Msg = Message;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Message>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<Message>,
        Message::Ask(payload, reply): Message,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        reply.send(payload)?;
        Ok(())
    }
}

async fn node(name: &str) -> Result<ActorRef<NodeServerMessage>> {
    let server = NodeServer::new(0, "cookie".into(), name.into(), "localhost".into(), None, None);
    let (node, _) = Actor::spawn(None, server.with_listen_addr(Ipv4Addr::LOCALHOST.into()), ()).await?;
    Ok(node)
}

#[derive(Clone)]
pub(crate) struct Ractor(ActorRef<Message>);

impl Peer for Ractor {
    async fn serve() -> Result<String> {
        let node = node("far").await?;
        let (actor, _) = Actor::spawn(None, Echo, ()).await?;
        pg::join(GROUP.into(), vec![actor.get_cell()]);
        // A node does not say which port it was given, so this does what its own listener does.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            let (stream, peer_addr) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let stream = Box::new(NetworkStream::Raw { peer_addr, local_addr: address, stream });
            node.cast(NodeServerMessage::ConnectionOpened { stream, is_server: true })?;
            anyhow::Ok(())
        });
        Ok(address.to_string())
    }

    async fn reach(address: &str) -> Result<Self> {
        ractor_cluster::client_connect(&node("near").await?, address).await?;
        loop {
            match pg::get_members(&GROUP.into()).pop() {
                Some(actor) => return Ok(Self(actor.into())),
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    async fn ask(&self, payload: Bytes) -> Result<Bytes> {
        match self.0.call(|reply| Message::Ask(payload.into(), reply), None).await? {
            CallResult::Success(answer) => Ok(answer.into()),
            other => bail!("no answer: {other:?}"),
        }
    }
}

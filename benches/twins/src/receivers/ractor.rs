use bytes::Bytes;
use ractor::{ActorProcessingErr, RpcReplyPort, SupervisionEvent, rpc::CallResult};
use tokio::task::JoinHandle;

use super::{CRASH, Receiver, echo};

/// An actor of ractor.
#[derive(Clone)]
pub struct Ractor(pub ractor::ActorRef<RactorMail>);

/// A message for one of ractor's actors.
pub struct RactorMail(Bytes, Option<RpcReplyPort<Bytes>>);

/// The handler of one of ractor's actors.
struct RactorEcho;

impl ractor::Actor for RactorEcho {
    type Msg = RactorMail;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ractor::ActorRef<RactorMail>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ractor::ActorRef<RactorMail>,
        RactorMail(payload, reply): RactorMail,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let answer = echo(payload);
        if let Some(reply) = reply {
            reply.send(answer)?;
        }
        Ok(())
    }
}

impl Ractor {
    /// An actor that runs.
    pub async fn spawn() -> (Self, JoinHandle<()>) {
        let (actor, task) = ractor::Actor::spawn(None, RactorEcho, ()).await.expect("an actor");
        (Self(actor), task)
    }

    async fn try_ask(&self, payload: Bytes) -> Option<Bytes> {
        match self.0.call(|reply| RactorMail(payload, Some(reply)), None).await {
            Ok(CallResult::Success(answer)) => Some(answer),
            _ => None,
        }
    }
}

impl Receiver for Ractor {
    async fn tell(&self, payload: Bytes) {
        self.0.cast(RactorMail(payload, None)).expect("it lives");
    }

    async fn ask(&self, payload: Bytes) -> Option<Bytes> {
        self.try_ask(payload).await
    }
}

/// An actor of ractor behind a supervisor that spawns it anew, for ractor leaves that to its users. Whoever asks a new one
/// asks the supervisor for it first.
#[derive(Clone)]
pub struct RactorSupervised(ractor::ActorRef<RpcReplyPort<Ractor>>);

struct RactorSupervisor;

impl RactorSupervised {
    /// A supervisor and its child.
    pub async fn spawn() -> Self {
        Self(ractor::Actor::spawn(None, RactorSupervisor, ()).await.expect("an actor").0)
    }

    async fn child(&self) -> Ractor {
        match self.0.call(|reply| reply, None).await {
            Ok(CallResult::Success(child)) => child,
            _ => panic!("the supervisor lives"),
        }
    }
}

impl ractor::Actor for RactorSupervisor {
    type Msg = RpcReplyPort<Ractor>;
    type State = Ractor;
    type Arguments = ();

    async fn pre_start(&self, myself: ractor::ActorRef<Self::Msg>, (): ()) -> Result<Ractor, ActorProcessingErr> {
        let (child, _) = ractor::Actor::spawn_linked(None, RactorEcho, (), myself.get_cell()).await?;
        Ok(Ractor(child))
    }

    async fn handle(
        &self,
        _: ractor::ActorRef<Self::Msg>,
        reply: RpcReplyPort<Ractor>,
        child: &mut Ractor,
    ) -> Result<(), ActorProcessingErr> {
        Ok(reply.send(child.clone())?)
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ractor::ActorRef<Self::Msg>,
        event: SupervisionEvent,
        child: &mut Ractor,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(..) = event {
            *child = self.pre_start(myself, ()).await?;
        }
        Ok(())
    }
}

impl Receiver for RactorSupervised {
    async fn tell(&self, payload: Bytes) {
        self.child().await.tell(payload).await;
    }

    async fn ask(&self, payload: Bytes) -> Option<Bytes> {
        let crashes = payload == CRASH;
        loop {
            match self.child().await.try_ask(payload.clone()).await {
                // It was the old one, whose end the supervisor has yet to hear of.
                None if !crashes => {}
                answer => return answer,
            }
        }
    }
}

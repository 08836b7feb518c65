//! The imports of `wasmcloud:messaging@0.3.0`, whose bodies are streams.

use std::{sync::Arc, time::Duration};

use airssys_wasm_engine::{
    Linker, LoadedComponent,
    wasmtime::{
        self,
        component::{Accessor, StreamReader},
    },
};
use airssys_wasm_isolation::HostState;
use bytes::Bytes;

use crate::{
    ActorState,
    guest::{
        bodies::{Collected, Collecting, Reading},
        imports::{Publication, answer_asker, request_topic, room, share},
        wire::{BrokerError, GuestSendError, StreamedMessage},
    },
};

type Tasks<U> = Accessor<HostState<ActorState<U>>>;

/// Defines them in a linker, for a component with async functions.
pub(crate) fn link<U: Send + 'static>(
    linker: &mut Linker<HostState<ActorState<U>>>,
    component: &LoadedComponent,
) -> wasmtime::Result<()> {
    if !component.features().component_async {
        return Ok(());
    }
    let mut consumer = linker.instance("wasmcloud:messaging/consumer@0.3.0")?;
    consumer.func_wrap_concurrent(
        "request",
        |tasks: &Tasks<U>, (subject, body, timeout_ms): (Arc<str>, StreamReader<u8>, Option<u32>)| {
            Box::pin(async move { Ok((request(tasks, subject, body, timeout_ms).await?,)) })
        },
    )?;
    consumer.func_wrap_concurrent("publish", |tasks: &Tasks<U>, (message,): (StreamedMessage,)| {
        Box::pin(async move { Ok((publish(tasks, message).await?,)) })
    })
}

async fn request<U: Send + 'static>(
    tasks: &Tasks<U>,
    subject: Arc<str>,
    body: StreamReader<u8>,
    timeout_ms: Option<u32>,
) -> wasmtime::Result<Result<StreamedMessage, BrokerError>> {
    let (body, share_of_body) = match collect(tasks, &subject, body, |_| false).await? {
        Ok(collected) => collected,
        Err(error) => return Ok(Err(error)),
    };
    let _call = tasks.with(|mut store| store.data_mut().host_call());
    // Without a timeout it is the deadline of the call.
    let timeout = timeout_ms.map_or(Duration::MAX, |ms| Duration::from_millis(ms.into()));
    let question = tasks.with(|mut store| {
        let data = store.data_mut();
        let mut question = Publication::new(&mut data.ext, &subject, body)?;
        question.room = Some(room(data));
        Ok::<_, GuestSendError>(question)
    });
    let answer = match question {
        Ok(question) => match request_topic(question, timeout).await {
            Ok(answer) => answer,
            Err(error) => return Ok(Err(error.into())),
        },
        Err(error) => return Ok(Err(error.into())),
    };
    drop(share_of_body);
    tasks.with(|mut store| {
        let Some(share) = share(store.data_mut(), answer.len()) else { return Ok(Err(BrokerError::QuotaExceeded)) };
        let body = StreamReader::new(&mut store, Reading::Answer { bytes: answer, _share: share })?;
        Ok(Ok(StreamedMessage { subject, body, reply_to: None }))
    })
}

async fn publish<U: Send + 'static>(
    tasks: &Tasks<U>,
    StreamedMessage { subject, body, .. }: StreamedMessage,
) -> wasmtime::Result<Result<(), BrokerError>> {
    let is_reply = |state: &ActorState<U>| {
        state.cell.reply_subject.lock().as_ref().is_some_and(|(reply_to, _)| *reply_to == subject)
    };
    let (body, _share) = match collect(tasks, &subject, body, is_reply).await? {
        Ok(collected) => collected,
        Err(error) => return Ok(Err(error)),
    };
    let _call = tasks.with(|mut store| store.data_mut().host_call());
    let publication = tasks.with(|mut store| {
        let state = &mut store.data_mut().ext;
        if answer_asker(&state.cell, &subject, &body) {
            return Ok(None);
        }
        Publication::new(state, &subject, body).map(Some)
    });
    Ok(match publication {
        Ok(publication) => {
            if let Some(publication) = publication {
                publication.publish().await;
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
    })
}

/// Reads a body whole, if the guest may publish to the subject or needs no grant for it.
async fn collect<U: Send + 'static>(
    tasks: &Tasks<U>,
    subject: &str,
    mut body: StreamReader<u8>,
    needs_no_grant: impl FnOnce(&ActorState<U>) -> bool,
) -> wasmtime::Result<Collected> {
    let collected = tasks.with(|mut store| {
        let state = &mut store.data_mut().ext;
        if !needs_no_grant(state)
            && let Err(error) = Publication::new(state, subject, Bytes::new())
        {
            body.close(&mut store)?;
            return Ok::<_, wasmtime::Error>(Err(error));
        }
        let (collecting, collected) = Collecting::new();
        body.pipe(&mut store, collecting)?;
        Ok(Ok(collected))
    })?;
    Ok(match collected {
        Ok(collected) => collected.await.unwrap_or(Err(BrokerError::BrokerUnavailable)),
        Err(error) => Err(error.into()),
    })
}

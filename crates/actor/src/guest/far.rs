//! Calls that come from other hosts, with encoded parameters.

use std::{marker::PhantomData, sync::Arc};

use airssys_wasm_engine::{ExportError, LoadedComponent, shown};
use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    CallError,
    guest::{
        calls::{by_values, typed},
        signatures::{ByTypes, Outcome, Plain, by_types},
    },
    runtime::{
        call::{FarExport, MadeFar, MakeFar, Used, come_back},
        values::{Signature, Unread},
    },
};

/// Finds what a caller of another host imports, in a component whose state is `U`.
pub(crate) fn find<U: Send + 'static>(component: &LoadedComponent, name: &str) -> Result<FarExport, ExportError> {
    let export = component.export(name)?;
    let Some(signature) = Signature::of(export.func()) else {
        let mismatch = "it cannot be called from another host".to_owned();
        return Err(ExportError::Mistyped { actual: export.ty().to_owned(), mismatch });
    };
    let (make, used) = by_types(component, export.func(), Typed::<U>(name, PhantomData))
        .unwrap_or_else(|| (make_by_values, Used::imported(name, export.func())));
    Ok(FarExport { ty: export.ty().to_owned(), signature, used: Arc::new(used), make })
}

/// Whether an export has the type that a caller imports.
pub(crate) fn check(export: &FarExport, imported: &str) -> Result<(), ExportError> {
    if *export.signature.text == *imported {
        return Ok(());
    }
    let mismatch = format!("it is imported as `{}`", shown(imported));
    Err(ExportError::Mistyped { actual: export.ty.clone(), mismatch })
}

struct Typed<'a, U>(&'a str, PhantomData<U>);

impl<U: Send + 'static> ByTypes for Typed<'_, U> {
    type Made = (MakeFar, Used);

    fn make<P: Plain, R: Outcome>(self) -> Self::Made {
        (make_typed::<U, P, R>, Used::of::<P, R>(self.0))
    }
}

/// What the parameters weigh is for the mailbox to look at: they are little more than the bytes.
fn make_typed<U: Send + 'static, P: Plain, R: Outcome>(
    export: &Arc<FarExport>,
    params: Bytes,
    _most: usize,
    deadline: Option<Instant>,
) -> Result<MadeFar, Unread> {
    let (call, result) = typed::<U, P, R>(&export.used, P::decode(params)?);
    Ok((call, Box::pin(async move { Ok(come_back(result, deadline).await?.encode()) })))
}

fn make_by_values(
    export: &Arc<FarExport>,
    params: Bytes,
    most: usize,
    deadline: Option<Instant>,
) -> Result<MadeFar, Unread> {
    let (call, result) = by_values(&export.used, export.signature.decode_params(params, most)?, None);
    let export = Arc::clone(export);
    let encoded = async move {
        let results = come_back(result, deadline).await?;
        export.signature.encode_results(&results).ok_or(CallError::Malformed { made: true })
    };
    Ok((call, Box::pin(encoded)))
}

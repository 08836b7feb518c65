//! The signatures that have static types in calls of guests, here and between hosts. All others go by values.

use airssys_wasm_engine::{
    LoadedComponent,
    wasmtime::component::{ComponentNamedList, Lift, Lower, types::ComponentFunc},
};
use bytes::Bytes;

use crate::{Argument, runtime::values::Wire};

/// Parameters that have static types.
pub(crate) trait Plain: Argument + Wire + ComponentNamedList + Lift + Lower + Send + Sync + 'static {}

impl<T: Argument + Wire + ComponentNamedList + Lift + Lower + Send + Sync + 'static> Plain for T {}

/// Results that have.
pub(crate) trait Outcome: Plain {
    /// A failed call, if the type has a word for it.
    fn failed(why: &str) -> Option<Self>;
}

macro_rules! outcomes {
    ($($silent:ty),*; $($speaking:ty),*) => {
        $(impl Outcome for $silent {
            fn failed(_: &str) -> Option<Self> {
                None
            }
        })*
        $(impl Outcome for (Result<$speaking, String>,) {
            fn failed(why: &str) -> Option<Self> {
                Some((Err(why.to_owned()),))
            }
        })*
    };
}

outcomes!((), (Bytes,), (Option<Bytes>,); (), Bytes, Option<Bytes>);

/// What is made for a signature that has static types.
pub(crate) trait ByTypes {
    type Made;

    fn make<P: Plain, R: Outcome>(self) -> Self::Made;
}

/// The finite set of them: those in which a list of bytes goes either way. By values it takes some 40 bytes for each of them.
/// `None` for another.
pub(crate) fn by_types<T: ByTypes>(component: &LoadedComponent, ty: &ComponentFunc, types: T) -> Option<T::Made> {
    macro_rules! first_of {
        ($($params:ty => [$($result:ty),*]),*) => {
            $($(if component.has_type::<$params, $result>(ty) {
                return Some(types.make::<$params, $result>());
            })*)*
        };
    }
    // Those of async functions are values.
    if ty.async_() {
        return None;
    }
    first_of!(
        (Bytes,) => [(), (Bytes,), (Option<Bytes>,), (Result<(), String>,), (Result<Bytes, String>,),
            (Result<Option<Bytes>, String>,)],
        (String, Bytes) => [(), (Bytes,), (Option<Bytes>,), (Result<(), String>,), (Result<Bytes, String>,),
            (Result<Option<Bytes>, String>,)],
        (String,) => [(Bytes,), (Option<Bytes>,), (Result<Bytes, String>,), (Result<Option<Bytes>, String>,)],
        () => [(Bytes,), (Option<Bytes>,), (Result<Bytes, String>,), (Result<Option<Bytes>, String>,)]
    );
    None
}

//! Interfaces that actors of other hosts may call. What they are called by there is for their host to say.

use std::collections::HashMap;

use airssys_wasm_actor::registry::{ActorAddress, ComponentId};
use parking_lot::RwLock;

/// Of hosts, and of the contract between a host and its actors.
const NEVER: [&str; 3] = ["wasi:", "wasmcloud:", "airssys:actor/"];

/// An interface was not offered to actors of other hosts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` cannot be offered to other hosts; name an interface of the component's own, `acme:kv/store@1.0.0`",
    interface.escape_debug()
)]
pub struct OfferError {
    /// What was named.
    pub interface: String,
}

/// Checks what is to be offered.
pub(crate) fn check(interface: &str) -> Result<(), OfferError> {
    let is_name = interface.split_once(':').is_some_and(|(_, rest)| rest.contains('/')) && !interface.contains('#');
    if is_name && !NEVER.iter().any(|never| interface.starts_with(never)) {
        Ok(())
    } else {
        Err(OfferError { interface: interface.to_owned() })
    }
}

/// What a host offers, by the name of an actor, a group or a kind.
#[derive(Default)]
pub(crate) struct Offers(RwLock<HashMap<Box<str>, Offer>>);

struct Offer {
    interfaces: Vec<String>,
    /// The actor with whose export it ends, once that is exported.
    of: Option<ActorAddress>,
}

impl Offers {
    /// Of the actor that is exported under the name, or else of what is exported under it next.
    pub(crate) fn set(&self, name: &ComponentId, interfaces: Vec<String>, of: Option<ActorAddress>) {
        self.0.write().insert(name.as_str().into(), Offer { interfaces, of });
    }

    /// An actor is exported. What was offered of another is not offered of this one.
    pub(crate) fn exported(&self, actor: &ActorAddress) {
        let mut offers = self.0.write();
        let Some(offer) = offers.get_mut(actor.id().as_str()) else { return };
        if offer.of.get_or_insert_with(|| actor.clone()) != actor {
            offers.remove(actor.id().as_str());
        }
    }

    /// An export has ended for good.
    pub(crate) fn end(&self, name: &ComponentId) {
        self.0.write().remove(name.as_str());
    }

    /// The same of an actor's. What was offered of the next is left.
    pub(crate) fn end_of(&self, actor: &ActorAddress) {
        let mut offers = self.0.write();
        if offers.get(actor.id().as_str()).is_some_and(|offer| offer.of.as_ref() == Some(actor)) {
            offers.remove(actor.id().as_str());
        }
    }

    pub(crate) fn has(&self, name: &str, interface: &str) -> bool {
        self.0.read().get(name).is_some_and(|offer| offer.interfaces.iter().any(|offered| offered == interface))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_ends_with_the_actor_that_was_exported_and_not_with_one_before() {
        let name: ComponentId = "kv".parse().unwrap();
        let [first, second] = [1, 2].map(|number| ActorAddress::elsewhere(&name, number));
        let offers = Offers::default();
        let offer = |of: Option<&ActorAddress>| offers.set(&name, vec!["acme:kv/store".to_owned()], of.cloned());
        let is_offered = || offers.has("kv", "acme:kv/store");
        offer(None);
        offers.exported(&first);
        offers.end_of(&second);
        assert!(is_offered() && !offers.has("kv", "acme:kv/other") && !offers.has("other", "acme:kv/store"));
        offers.end_of(&first);
        assert!(!is_offered());
        // Of one that lives.
        offer(Some(&first));
        assert!(is_offered());
        offers.exported(&second);
        assert!(!is_offered());
        // Of the second, while the first is exported still.
        offer(None);
        offers.end_of(&first);
        assert!(is_offered());
        offers.exported(&second);
        assert!(is_offered());
        offers.end(&name);
        assert!(!is_offered());
    }

    #[test]
    fn interfaces_of_hosts_are_never_offered() {
        for interface in ["acme:kv/store@1.0.0", "acme:kv/store", "airssys:other/x@0.1.0", "wasi-like:kv/store"] {
            assert_eq!(check(interface), Ok(()));
        }
        let never =
            ["airssys:actor/actor@0.1.0", "wasi:http/incoming-handler@0.2.0", "wasmcloud:messaging/handler@0.2.0"];
        for interface in never.into_iter().chain(["", "store", "acme:kv", "acme:kv/store@1.0.0#get"]) {
            assert_eq!(check(interface), Err(OfferError { interface: interface.to_owned() }));
        }
    }
}

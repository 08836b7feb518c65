//! Interfaces that actors of other hosts may call. What they are called by there is for their host to say.

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

#[cfg(test)]
mod tests {
    use super::*;

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

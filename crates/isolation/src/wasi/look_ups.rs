//! Looking up host names.

use std::{
    net::{IpAddr, Ipv6Addr, ToSocketAddrs as _},
    pin::Pin,
    task::{Context, Poll, ready},
    vec,
};

use airssys_wasm_engine::wasmtime_wasi::{async_trait, p2::Pollable};
use tokio::task::spawn_blocking;
use url::Host;

use super::{FileJobs, Job, ended};

/// The longest name in the DNS, in bytes.
const LONGEST: usize = 253;

/// How many look-ups all sandboxes of a specification have at a time: eight. Each holds its permit until its blocking
/// thread is free, also when its sandbox is gone. So a guest takes no more of them by being restarted.
#[derive(Clone, Default)]
pub(crate) struct LookUps(
    // The permits know nothing of files.
    FileJobs,
);

/// Nobody is asked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    NotGranted,
    NotAName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unresolvable;

/// A look-up, and what is left of the addresses that it gave.
pub(crate) enum LookUp {
    Asked(Job<Result<Vec<IpAddr>, Unresolvable>>),
    Answered(Result<vec::IntoIter<IpAddr>, Unresolvable>),
}

impl LookUp {
    /// Parses a name and asks for it, if that is granted.
    pub(crate) fn new(granted: Option<&LookUps>, name: &str) -> Result<Self, Refused> {
        if name.len() > LONGEST {
            return Err(Refused::NotAName);
        }
        let LookUps(jobs) = granted.ok_or(Refused::NotGranted)?;
        let address = match Host::parse(name) {
            Ok(Host::Domain(name)) => {
                let asked = async { ended(spawn_blocking(|| addresses(name)).await) };
                return Ok(Self::Asked(jobs.spawn(asked)));
            }
            Ok(Host::Ipv4(address)) => address.into(),
            Ok(Host::Ipv6(address)) => address.into(),
            // Without brackets it is none for `Host`.
            Err(_) => name.parse::<Ipv6Addr>().map_err(|_| Refused::NotAName)?.into(),
        };
        Ok(Self::Answered(Ok(vec![address].into_iter())))
    }

    pub(crate) fn poll_addresses(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<&mut vec::IntoIter<IpAddr>, Unresolvable>> {
        if let Self::Asked(job) = self {
            *self = Self::Answered(ready!(Pin::new(job).poll(cx)).map(Vec::into_iter));
        }
        match self {
            Self::Asked(_) => Poll::Pending,
            Self::Answered(addresses) => Poll::Ready(addresses.as_mut().map_err(|failed| *failed)),
        }
    }
}

#[async_trait]
impl Pollable for LookUp {
    async fn ready(&mut self) {
        std::future::poll_fn(|cx| self.poll_addresses(cx).map(drop)).await;
    }
}

fn addresses(name: String) -> Result<Vec<IpAddr>, Unresolvable> {
    let addresses = (name.as_str(), 0).to_socket_addrs().map_err(|_| Unresolvable)?;
    Ok(addresses.map(|address| address.ip().to_canonical()).collect())
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::mpsc};

    use tokio::runtime::Builder;

    use super::*;

    async fn all(mut look_up: LookUp) -> Vec<IpAddr> {
        poll_fn(|cx| look_up.poll_addresses(cx).map(|addresses| addresses.unwrap().collect())).await
    }

    #[tokio::test]
    async fn an_address_is_not_looked_up() {
        let none_left = LookUps(FileJobs::new(1));
        let _permit = none_left.0.permit().await;
        for (name, address) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("[::1]", "::1")] {
            let look_up = LookUp::new(Some(&none_left), name).unwrap();
            assert_eq!(all(look_up).await, [address.parse::<IpAddr>().unwrap()]);
        }
    }

    #[tokio::test]
    async fn what_is_not_granted_or_no_name_is_refused() {
        let granted = LookUps::default();
        let refused = |granted, name: &str| LookUp::new(granted, name).err();
        assert_eq!(refused(None, "localhost"), Some(Refused::NotGranted));
        for no_name in ["", "a b", "1:2", &"a".repeat(254)] {
            assert_eq!(refused(Some(&granted), no_name), Some(Refused::NotAName), "{no_name}");
        }
    }

    #[test]
    fn a_look_up_that_nobody_waits_for_holds_its_permit_until_its_thread_is_free() {
        let runtime = Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let look_ups = LookUps(FileJobs::new(1));
            let (busy, until) = mpsc::channel::<()>();
            drop(spawn_blocking(move || until.recv()));
            let look_up = || LookUp::new(Some(&look_ups), "localhost").unwrap();
            for _ in 0..10 {
                // As when a guest traps, and is restarted.
                drop(look_up());
                tokio::task::yield_now().await;
            }
            let mut waits = look_up();
            tokio::task::yield_now().await;
            assert!(poll_fn(|cx| Poll::Ready(waits.poll_addresses(cx).is_pending())).await);
            assert!(look_ups.0.try_permit().is_none());
            drop(busy);
            assert!(all(waits).await.iter().all(IpAddr::is_loopback));
            drop(look_ups.0.permit().await);
        });
    }
}

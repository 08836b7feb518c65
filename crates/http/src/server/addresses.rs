//! How many connections each address has, and how many requests in hand.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Counts connections and requests by address.
#[derive(Debug, Clone)]
pub(super) struct Addresses {
    most: u32,
    requests: usize,
    count: Arc<Mutex<HashMap<IpAddr, Of>>>,
}

/// What one address has.
#[derive(Debug)]
struct Of {
    connections: u32,
    /// Room for requests.
    requests: Arc<Semaphore>,
}

/// One connection of an address, while it lives.
#[derive(Debug)]
pub(super) struct Counted {
    address: IpAddr,
    count: Arc<Mutex<HashMap<IpAddr, Of>>>,
    requests: Arc<Semaphore>,
}

impl Counted {
    /// One more request in hand, or `None` if the address has all that it may.
    pub(super) fn request(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.requests).try_acquire_owned().ok()
    }
}

impl Addresses {
    pub(super) fn new(most: u32, requests: u32) -> Self {
        Self { most, requests: (requests as usize).min(Semaphore::MAX_PERMITS), count: Arc::default() }
    }

    /// One more connection, or `None` if the address has all that it may.
    pub(super) fn one_more(&self, address: IpAddr) -> Option<Counted> {
        let address = network_of(address);
        let mut count = self.count.lock();
        if count.get(&address).map_or(0, |of| of.connections) >= self.most {
            return None;
        }
        let fresh = || Of { connections: 0, requests: Arc::new(Semaphore::new(self.requests)) };
        let of = count.entry(address).or_insert_with(fresh);
        of.connections += 1;
        Some(Counted { address, count: Arc::clone(&self.count), requests: Arc::clone(&of.requests) })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut count = self.count.lock();
        if let Some(of) = count.get_mut(&self.address) {
            of.connections -= 1;
            if of.connections == 0 {
                count.remove(&self.address);
            }
        }
    }
}

/// Of IPv6 the network: whoever has one address has all of it.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_and_others_have_theirs() {
        let addresses = Addresses::new(2, 1);
        let of = |address: &str| addresses.one_more(address.parse().unwrap());
        let first = of("2001:db8::1");
        let second = of("2001:db8::ffff:2");
        assert!(first.is_some() && second.is_some());
        assert!(of("2001:db8::3").is_none());
        let other = of("2001:db8:0:1::1");
        assert!(other.is_some());
        // Requests are those of both.
        let request = first.as_ref().and_then(Counted::request);
        assert!(request.is_some());
        assert!(second.as_ref().and_then(Counted::request).is_none());
        assert!(other.as_ref().and_then(Counted::request).is_some());
        drop(request);
        assert!(second.as_ref().and_then(Counted::request).is_some());
        drop(first);
        assert!(of("2001:db8::3").is_some());
        drop((second, other));
        assert!(addresses.count.lock().is_empty());
    }
}

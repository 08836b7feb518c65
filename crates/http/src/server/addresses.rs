//! How many connections each address has.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use parking_lot::Mutex;

/// Counts connections by address.
#[derive(Debug, Clone)]
pub(super) struct Addresses {
    most: u32,
    count: Arc<Mutex<HashMap<IpAddr, u32>>>,
}

/// One connection of an address, while it lives.
#[derive(Debug)]
pub(super) struct Counted {
    address: IpAddr,
    count: Arc<Mutex<HashMap<IpAddr, u32>>>,
}

impl Addresses {
    pub(super) fn new(most: u32) -> Self {
        Self { most, count: Arc::default() }
    }

    /// One more connection, or `None` if the address has all that it may.
    pub(super) fn one_more(&self, address: IpAddr) -> Option<Counted> {
        let address = network_of(address);
        let mut count = self.count.lock();
        let of_address = count.entry(address).or_default();
        if *of_address >= self.most {
            if *of_address == 0 {
                count.remove(&address);
            }
            return None;
        }
        *of_address += 1;
        Some(Counted { address, count: Arc::clone(&self.count) })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut count = self.count.lock();
        if let Some(of_address) = count.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
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
        let addresses = Addresses::new(2);
        let of = |address: &str| addresses.one_more(address.parse().unwrap());
        let first = of("2001:db8::1");
        let second = of("2001:db8::ffff:2");
        assert!(first.is_some() && second.is_some());
        assert!(of("2001:db8::3").is_none());
        let other = of("2001:db8:0:1::1");
        assert!(other.is_some());
        drop(first);
        assert!(of("2001:db8::3").is_some());
        drop((second, other));
        assert!(addresses.count.lock().is_empty());
    }
}

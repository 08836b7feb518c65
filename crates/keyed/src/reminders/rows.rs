//! How reminders are rows of a store: one for each, by the time when it is due, and one for each actor, with the names and
//! times of its own.
//!
//! A reminder counts if the row of its actor has it. It is written after the other, and taken away before it, so that what
//! a crash leaves between the two is a reminder that does not count.

/// The kind of the rows by time. No actor's kind has such a name.
pub(super) const BY_TIME: &str = "!due";

/// The kind of the rows by time of a kind of actors that several hosts have.
pub(super) fn by_time_of(kind: &str) -> String {
    format!("{BY_TIME}/{kind}")
}

/// The kind of the rows by actor: one for each kind of theirs, so that it is known how many actors of it have any.
pub(super) fn by_actor(of: &str) -> String {
    format!("!reminders/{}", kind_of(of).unwrap_or_default())
}

/// The kind of an actor.
pub(super) fn kind_of(of: &str) -> Option<&str> {
    Some(of.split_once('/')?.0)
}

/// The key of a reminder: keys are in the order of time, milliseconds since 1970.
pub(super) fn key(due: u64, of: &str, name: &str) -> String {
    format!("{due:016x} {of} {name}")
}

/// Before all that are due at this time, or later.
pub(super) fn before(due: u64) -> String {
    format!("{due:016x}")
}

/// A key taken apart: when it is due, of whom, its name.
pub(super) fn parts(key: &str) -> Option<(u64, &str, &str)> {
    let mut parts = key.split(' ');
    let due = u64::from_str_radix(parts.next()?, 16).ok()?;
    Some((due, parts.next()?, parts.next()?))
}

/// The reminders of an actor: name and time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Own(pub(super) Vec<(Box<str>, u64)>);

impl Own {
    pub(super) fn find(&self, name: &str) -> Option<u64> {
        self.0.iter().find(|own| *own.0 == *name).map(|own| own.1)
    }

    /// With another time for this name. Gives the one it had.
    pub(super) fn set(&mut self, name: &str, due: u64) -> Option<u64> {
        match self.0.iter_mut().find(|own| *own.0 == *name) {
            Some(own) => Some(std::mem::replace(&mut own.1, due)),
            None => {
                self.0.push((name.into(), due));
                None
            }
        }
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<u64> {
        let at = self.0.iter().position(|own| *own.0 == *name)?;
        Some(self.0.swap_remove(at).1)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut row = Vec::new();
        for (name, due) in &self.0 {
            row.extend_from_slice(&due.to_be_bytes());
            row.push(name.len() as u8);
            row.extend_from_slice(name.as_bytes());
        }
        row
    }

    pub(super) fn decode(mut row: &[u8]) -> Option<Self> {
        let mut own = Vec::new();
        while !row.is_empty() {
            let (due, rest) = row.split_first_chunk()?;
            let (len, rest) = rest.split_first()?;
            let (name, rest) = rest.split_at_checked((*len).into())?;
            own.push((str::from_utf8(name).ok()?.into(), u64::from_be_bytes(*due)));
            row = rest;
        }
        Some(Self(own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_the_order_of_time() {
        let times = [0, 1, 9, 10, 255, 256, 1 << 32, u64::MAX];
        let keys = times.map(|due| key(due, "cart/4711", "name"));
        assert!(keys.is_sorted());
        assert!(times.iter().zip(&keys).all(|(due, key)| parts(key) == Some((*due, "cart/4711", "name"))));
        assert!(times.iter().zip(&keys).all(|(due, key)| before(*due) < *key));
        assert!(times[1..].iter().zip(&keys).all(|(due, key)| before(*due) > *key));
    }

    #[test]
    fn what_is_no_key_has_no_parts() {
        for bad in ["", "x", "12", "12 a", "zz a b", "- a b"] {
            assert_eq!(parts(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn rows_of_actors_are_read_as_they_were_written() {
        let mut own = Own::default();
        assert_eq!(Own::decode(&own.encode()), Some(own.clone()));
        assert_eq!((own.set("a", 1), own.set("b", u64::MAX), own.set("a", 3)), (None, None, Some(1)));
        assert_eq!((own.find("a"), own.find("c")), (Some(3), None));
        let row = own.encode();
        assert_eq!(Own::decode(&row), Some(own.clone()));
        assert!((1..row.len()).filter(|cut| *cut != 10).all(|cut| Own::decode(&row[..cut]).is_none()));
        assert_eq!((own.remove("a"), own.remove("a"), own.find("b")), (Some(3), None, Some(u64::MAX)));
    }
}

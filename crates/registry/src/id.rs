//! The name of a component, checked where it is made and hashed once.

use std::{
    borrow::{Borrow, Cow},
    fmt,
    hash::{BuildHasher, Hash, Hasher},
    str::FromStr,
    sync::{Arc, LazyLock},
};

use dashmap::{DashMap, mapref::one::Ref};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The name of a component or of a group of components. Cheap to clone, hash and compare.
///
/// 1 to 128 bytes of ASCII letters, digits and `-_.:/@`: no blanks, no control characters, and no `*` or `>`, which are
/// wildcards in topics.
#[derive(Clone)]
pub struct ComponentId {
    /// Of the text, by a hash that differs from process to process, so that nobody can choose names that collide.
    hash: u64,
    text: Arc<str>,
}

/// A name that cannot be a component's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidId {
    /// No characters.
    #[error("a component's name cannot be empty")]
    Empty,
    /// Too many characters.
    #[error("a component's name has {len} bytes, and may have {}", ComponentId::MAX_LEN)]
    TooLong {
        /// Its bytes.
        len: usize,
    },
    /// A character that may not be in a name.
    #[error("a component's name cannot have {character:?} in it (at byte {at}): use letters, digits and `-_.:/@`")]
    Character {
        /// The character.
        character: char,
        /// Where it is.
        at: usize,
    },
}

impl ComponentId {
    /// Bytes that a name may have.
    pub const MAX_LEN: usize = 128;

    /// Checks a name.
    ///
    /// # Errors
    ///
    /// [`InvalidId`].
    pub fn new(name: &str) -> Result<Self, InvalidId> {
        if name.is_empty() {
            return Err(InvalidId::Empty);
        }
        if name.len() > Self::MAX_LEN {
            return Err(InvalidId::TooLong { len: name.len() });
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'/' | b'@');
        if let Some(at) = name.bytes().position(|b| !allowed(b)) {
            // All before it are ASCII, so a character begins there.
            let character = name[at..].chars().next().unwrap_or_default();
            return Err(InvalidId::Character { character, at });
        }
        Ok(Self { hash: hash_of(name), text: name.into() })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn hash_of(name: &str) -> u64 {
    static HASHER: LazyLock<ahash::RandomState> = LazyLock::new(ahash::RandomState::new);
    HASHER.hash_one(name)
}

/// What something can be looked up by: a [`ComponentId`], or text, which need not be a valid name.
pub trait Name: sealed::Sealed {
    #[doc(hidden)]
    #[expect(private_interfaces, reason = "sealed: nobody else calls it")]
    fn entry<'a, V>(&self, entries: &'a Entries<V>) -> Option<Ref<'a, ComponentId, V>>;
}

/// What is registered, by name.
pub(crate) type Entries<V> = DashMap<ComponentId, V, HashedOnce>;

mod sealed {
    pub trait Sealed {}

    impl Sealed for super::ComponentId {}
    impl Sealed for str {}
}

impl Name for ComponentId {
    #[expect(private_interfaces, reason = "as in the trait")]
    fn entry<'a, V>(&self, entries: &'a Entries<V>) -> Option<Ref<'a, ComponentId, V>> {
        entries.get(self)
    }
}

impl Name for str {
    #[expect(private_interfaces, reason = "as in the trait")]
    fn entry<'a, V>(&self, entries: &'a Entries<V>) -> Option<Ref<'a, ComponentId, V>> {
        let key: &dyn Key = &(hash_of(self), self);
        entries.get(key)
    }
}

/// A name with its hash, owned or not: by this text finds an id without becoming one. It hashes and compares as
/// [`ComponentId`] does.
trait Key {
    fn parts(&self) -> (u64, &str);
}

impl Key for ComponentId {
    fn parts(&self) -> (u64, &str) {
        (self.hash, &self.text)
    }
}

impl Key for (u64, &str) {
    fn parts(&self) -> (u64, &str) {
        *self
    }
}

impl Hash for dyn Key + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.parts().0);
    }
}

impl PartialEq for dyn Key + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for dyn Key + '_ {}

impl<'a> Borrow<dyn Key + 'a> for ComponentId {
    fn borrow(&self) -> &(dyn Key + 'a) {
        self
    }
}

impl Serialize for ComponentId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ComponentId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        Self::new(&text).map_err(|error| de::Error::custom(format_args!("{text:?}: {error}")))
    }
}

impl From<&ComponentId> for Arc<str> {
    fn from(id: &ComponentId) -> Self {
        Arc::clone(&id.text)
    }
}

impl FromStr for ComponentId {
    type Err = InvalidId;

    fn from_str(name: &str) -> Result<Self, InvalidId> {
        Self::new(name)
    }
}

impl PartialEq for ComponentId {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && (Arc::ptr_eq(&self.text, &other.text) || self.text == other.text)
    }
}

impl Eq for ComponentId {}

impl PartialOrd for ComponentId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ComponentId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl Hash for ComponentId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl fmt::Debug for ComponentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ComponentId({:?})", self.as_str())
    }
}

impl fmt::Display for ComponentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Takes the hash that an id brings with it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct HashedOnce;

impl BuildHasher for HashedOnce {
    type Hasher = Kept;

    fn build_hasher(&self) -> Kept {
        Kept(0)
    }
}

pub(crate) struct Kept(u64);

impl Hasher for Kept {
    fn write(&mut self, _: &[u8]) {
        unreachable!("an id is hashed as one number");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "tenant-1/plugin:v1.0@host_2", &"x".repeat(128)] {
            assert_eq!(ComponentId::new(good).unwrap().as_str(), good);
        }
        assert_eq!(ComponentId::new(""), Err(InvalidId::Empty));
        assert_eq!(ComponentId::new(&"x".repeat(129)), Err(InvalidId::TooLong { len: 129 }));
        for bad in [' ', '\n', '\0', '\u{1b}', '*', '>', 'é', '\u{202e}', '"', '\\'] {
            let name = format!("ab{bad}");
            assert_eq!(ComponentId::new(&name), Err(InvalidId::Character { character: bad, at: 2 }));
        }
        let error = ComponentId::new("\u{1b}[2J").unwrap_err().to_string();
        assert!(!error.contains('\u{1b}'), "{error}");
    }

    #[test]
    fn equal_names_are_equal_ids() {
        let (a, b) = (ComponentId::new("same").unwrap(), ComponentId::new("same").unwrap());
        assert_eq!(a, b);
        assert_eq!(HashedOnce.hash_one(&a), HashedOnce.hash_one(&b));
        assert_ne!(a, ComponentId::new("other").unwrap());
        assert!(ComponentId::new("a").unwrap() < ComponentId::new("b").unwrap());
    }

    #[test]
    fn text_finds_what_its_id_finds() {
        let entries = Entries::with_hasher(HashedOnce);
        for n in 0..1_000 {
            entries.insert(ComponentId::new(&format!("c{n}")).unwrap(), n);
        }
        for n in 0..1_000 {
            let name = format!("c{n}");
            assert_eq!(name.as_str().entry(&entries).as_deref(), Some(&n));
            assert_eq!(ComponentId::new(&name).unwrap().entry(&entries).as_deref(), Some(&n));
        }
        assert!(
            "c1000".entry(&entries).is_none() && "no name\n".entry(&entries).is_none() && "".entry(&entries).is_none()
        );
    }

    #[test]
    fn only_names_are_read() {
        let id = ComponentId::new("a").unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), r#""a""#);
        assert_eq!(serde_json::from_str::<ComponentId>(r#""a""#).unwrap(), id);
        assert!(serde_json::from_str::<ComponentId>(r#""a b""#).unwrap_err().to_string().contains("cannot have ' '"));
    }
}

//! Points at which other threads may run between the operations of one. They cost nothing outside of unit tests; there
//! a scheduler decides who runs next.

pub(crate) use imp::*;

#[cfg(not(test))]
mod imp {
    /// What threads share: each access is a point.
    pub(crate) type Shared<T> = T;

    #[inline(always)]
    pub(crate) fn shared<T>(value: T) -> Shared<T> {
        value
    }

    /// A point between two accesses.
    #[inline(always)]
    pub(crate) fn point() {}
}

#[cfg(test)]
mod imp {
    use std::ops::{Deref, DerefMut};

    #[derive(Default)]
    pub(crate) struct Shared<T>(T);

    pub(crate) fn shared<T>(value: T) -> Shared<T> {
        Shared(value)
    }

    impl<T> Deref for Shared<T> {
        type Target = T;

        fn deref(&self) -> &T {
            point();
            &self.0
        }
    }

    impl<T> DerefMut for Shared<T> {
        fn deref_mut(&mut self) -> &mut T {
            point();
            &mut self.0
        }
    }

    /// Does nothing outside of a schedule.
    pub(crate) fn point() {
        shuttle_engine::runtime::thread::switch_if_not_stopping();
    }
}

//! Scheduling points for unit tests, between operations on what threads share. Elsewhere they compile to nothing.

pub(crate) use imp::*;

#[cfg(not(test))]
mod imp {
    /// A value that threads share. Each access is a scheduling point.
    pub(crate) type Shared<T> = T;

    #[inline(always)]
    pub(crate) fn shared<T>(value: T) -> Shared<T> {
        value
    }

    /// Access that is no scheduling point, for what happens under a lock.
    #[inline(always)]
    pub(crate) fn quiet<T>(value: &Shared<T>) -> &T {
        value
    }

    /// A scheduling point.
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

    pub(crate) fn quiet<T>(value: &Shared<T>) -> &T {
        &value.0
    }

    /// Does nothing outside of a schedule.
    pub(crate) fn point() {
        shuttle_engine::runtime::thread::switch_if_not_stopping();
    }
}

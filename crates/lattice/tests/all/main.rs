//! What the crate promises, from outside, with a server of its own for each test.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod store;

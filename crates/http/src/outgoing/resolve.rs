//! Names to addresses.

use std::{fmt, future::Future, io, net::IpAddr, pin::Pin};

/// Finds the addresses of host names for outgoing requests. Each of them is checked before anything is sent to it, and it
/// is not looked up a second time.
pub trait Resolve: fmt::Debug + Send + Sync + 'static {
    /// The addresses of a host, which is a name, not an address.
    ///
    /// # Errors
    ///
    /// When there are none, or they are not to be had.
    fn resolve(&self, host: &str) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;
}

/// The system's resolver. Each look-up takes a blocking thread of the runtime for as long as it lasts.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, host: &str) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        let host = host.to_owned();
        Box::pin(async move {
            let found = tokio::net::lookup_host((host, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

//! What a component is granted of the world: nothing, unless it is named here.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use airssys_wasm_engine::wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, sockets::SocketAddrUse};
use airssys_wasm_limits::LogAllowance;
use serde::{Deserialize, Serialize};

use super::output::{GuestOutput, Stdio, Tail};

/// Grants for WASI: the `[wasi]` table of a `Component.toml`. The default grants nothing.
///
/// ```toml
/// [wasi]
/// args = ["--verbose"]
/// env = { LANG = "C" }
/// folders = [{ host = "/srv/plugins/data", guest = "/data", permissions = "read" }]
/// connect = ["127.0.0.1:5432"]
/// stderr = "tracing"
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct WasiGrants {
    /// Arguments, the program's name first if the guest expects one.
    pub args: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Folders of the host.
    pub folders: Vec<Folder>,
    /// Streams of files open at a time, which hold at most 64 KiB each. One more fails as `insufficient-memory`. The listing
    /// of a folder is one, too. Default: 32.
    pub file_streams: u32,
    /// Addresses that the guest may connect and send to. Port 0 stands for every port.
    pub connect: Vec<SocketAddr>,
    /// Addresses that the guest may listen on and receive at. Port 0 stands for every port.
    pub listen: Vec<SocketAddr>,
    /// Whether the guest may look up host names. Each look-up takes a blocking thread of the runtime for as long as the
    /// system's resolver does. All sandboxes of a spec have eight at a time, those included that are gone.
    pub name_lookup: bool,
    /// Where its standard output goes.
    pub stdout: Stdio,
    /// Where its standard error goes.
    pub stderr: Stdio,
}

impl Default for WasiGrants {
    fn default() -> Self {
        Self {
            args: Vec::new(),
            env: BTreeMap::new(),
            folders: Vec::new(),
            file_streams: 32,
            connect: Vec::new(),
            listen: Vec::new(),
            name_lookup: false,
            stdout: Stdio::default(),
            stderr: Stdio::default(),
        }
    }
}

/// A folder of the host, under the name a guest knows it by.
///
/// It is opened by its path for each sandbox. Do not grant a path through a folder that a guest may write to: that
/// guest could put a link in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Folder {
    /// The folder on the host.
    pub host: PathBuf,
    /// Its name in the guest.
    pub guest: String,
    /// What the guest may do in it.
    #[serde(default)]
    pub permissions: Permissions,
}

/// What a guest may do in a folder and in all that is below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Permissions {
    /// List and read.
    #[default]
    Read,
    /// List, read, write, make and remove.
    ReadWrite,
}

/// A grant cannot be given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WasiError {
    /// A folder cannot be opened.
    #[error("cannot grant the folder {path}; does it exist, and may this process read it?", path = folder.display())]
    Folder {
        /// The folder on the host.
        folder: PathBuf,
        /// Why.
        #[source]
        source: airssys_wasm_engine::wasmtime::Error,
    },
    /// The runtime that was to open its folders is shutting down.
    #[error("the runtime is shutting down")]
    ShuttingDown,
}

impl WasiGrants {
    pub(crate) const KEYS: &[&str] =
        &["args", "env", "folders", "file_streams", "connect", "listen", "name_lookup", "stdout", "stderr"];

    /// A context to be, with these grants: opens the folders.
    pub(crate) fn builder(
        &self,
        name: Option<&Arc<str>>,
        log: &LogAllowance,
        stderr: Tail,
    ) -> Result<WasiCtxBuilder, WasiError> {
        let mut builder = WasiCtx::builder();
        builder.args(&self.args);
        for (name, value) in &self.env {
            builder.env(name, value);
        }
        for Folder { host, guest, permissions } in &self.folders {
            let permissions = match permissions {
                Permissions::Read => FsPerms::ReadOnly,
                Permissions::ReadWrite => FsPerms::ReadWrite,
            };
            builder
                .preopened_dir(host, guest, permissions)
                .map_err(|source| WasiError::Folder { folder: host.clone(), source })?;
        }
        if !(self.connect.is_empty() && self.listen.is_empty()) {
            let (connect, listen) = (self.connect.clone(), self.listen.clone());
            builder.allow_tcp(true).allow_udp(true).socket_addr_check(move |address, usage| {
                let allowed = is_allowed(&connect, &listen, address, usage);
                Box::pin(async move { allowed })
            });
        }
        builder.allow_ip_name_lookup(self.name_lookup);
        if !matches!(self.stdout, Stdio::Discard) {
            builder.stdout(GuestOutput::new(&self.stdout, "stdout", name, log, None));
        }
        builder.stderr(GuestOutput::new(&self.stderr, "stderr", name, log, Some(stderr)));
        Ok(builder)
    }
}

fn is_allowed(connect: &[SocketAddr], listen: &[SocketAddr], address: SocketAddr, usage: SocketAddrUse) -> bool {
    // An IPv4 address written as an IPv6 one is the same address.
    let same_ip = |a: IpAddr, b: IpAddr| a.to_canonical() == b.to_canonical();
    let named = |list: &[SocketAddr]| {
        list.iter().any(|grant| same_ip(grant.ip(), address.ip()) && [0, address.port()].contains(&grant.port()))
    };
    // What the system picks for an outgoing socket.
    let outgoing = || !connect.is_empty() && address.ip().is_unspecified() && address.port() == 0;
    match usage {
        SocketAddrUse::TcpConnect | SocketAddrUse::UdpSend => named(connect),
        SocketAddrUse::TcpBind => named(listen) || outgoing(),
        // A datagram is judged by who sends it, and not by where it arrives: with `listen` from anybody.
        SocketAddrUse::UdpBind => named(listen) || (listen.is_empty() && outgoing()),
        SocketAddrUse::TcpListen => named(listen),
        SocketAddrUse::TcpAccept => !listen.is_empty(),
        SocketAddrUse::UdpReceive => !listen.is_empty() || named(connect),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_addresses_may_be_connected_to() {
        let connect = ["127.0.0.1:80".parse().unwrap(), "10.0.0.1:0".parse().unwrap()];
        let may = |address: &str, usage| is_allowed(&connect, &[], address.parse().unwrap(), usage);
        assert!(may("127.0.0.1:80", SocketAddrUse::TcpConnect));
        assert!(may("[::ffff:127.0.0.1]:80", SocketAddrUse::TcpConnect));
        assert!(!may("127.0.0.1:81", SocketAddrUse::TcpConnect));
        assert!(may("10.0.0.1:9", SocketAddrUse::UdpSend));
        assert!(!may("10.0.0.2:9", SocketAddrUse::UdpSend));
        assert!(may("0.0.0.0:0", SocketAddrUse::TcpBind));
        assert!(!may("127.0.0.1:80", SocketAddrUse::TcpBind));
        assert!(!may("0.0.0.0:0", SocketAddrUse::TcpListen));
        assert!(!may("9.9.9.9:1", SocketAddrUse::TcpAccept));
    }

    #[test]
    fn only_named_addresses_may_be_listened_on() {
        let listen = ["127.0.0.1:8080".parse().unwrap()];
        let may = |address: &str, usage| is_allowed(&[], &listen, address.parse().unwrap(), usage);
        assert!(may("127.0.0.1:8080", SocketAddrUse::TcpBind));
        assert!(may("127.0.0.1:8080", SocketAddrUse::TcpListen));
        assert!(may("9.9.9.9:1", SocketAddrUse::TcpAccept));
        assert!(!may("127.0.0.1:8081", SocketAddrUse::TcpBind));
        assert!(!may("0.0.0.0:0", SocketAddrUse::TcpBind));
        assert!(!may("127.0.0.1:8080", SocketAddrUse::TcpConnect));
    }

    #[test]
    fn what_receives_from_anybody_is_bound_where_it_may_listen() {
        let (connect, listen) = (["10.0.0.1:53".parse().unwrap()], ["127.0.0.1:8080".parse().unwrap()]);
        let anywhere = "0.0.0.0:0".parse().unwrap();
        assert!(is_allowed(&connect, &[], anywhere, SocketAddrUse::UdpBind));
        assert!(!is_allowed(&connect, &listen, anywhere, SocketAddrUse::UdpBind));
        assert!(is_allowed(&connect, &listen, listen[0], SocketAddrUse::UdpBind));
        assert!(is_allowed(&connect, &listen, anywhere, SocketAddrUse::TcpBind));
    }
}

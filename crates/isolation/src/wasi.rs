//! What a component is granted of the world: nothing, unless it is named here.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use airssys_wasm_engine::wasmtime_wasi::{
    FsPerms, WasiCtx, WasiCtxBuilder,
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamError, StreamResult},
    sockets::SocketAddrUse,
};
use airssys_wasm_limits::{LogAllowance, LogLine};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::io::AsyncWrite;

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
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct WasiGrants {
    /// Arguments, the program's name first if the guest expects one.
    pub args: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Folders of the host.
    pub folders: Vec<Folder>,
    /// Addresses that the guest may connect and send to. Port 0 stands for every port.
    pub connect: Vec<SocketAddr>,
    /// Addresses that the guest may listen on and receive at. Port 0 stands for every port.
    pub listen: Vec<SocketAddr>,
    /// Whether the guest may look up host names. Each look-up takes a blocking thread of the runtime for as long as the
    /// system's resolver does, and only `host_calls` limits how many a guest starts.
    pub name_lookup: bool,
    /// Where its standard output goes.
    pub stdout: Stdio,
    /// Where its standard error goes.
    pub stderr: Stdio,
}

/// A folder of the host, under the name a guest knows it by.
///
/// It is opened by its path for each sandbox. A path that leads through a folder which some guest may write to is not
/// safe to grant: that guest could put a link in its place.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Permissions {
    /// List and read.
    #[default]
    Read,
    /// List, read, write, make and remove.
    ReadWrite,
}

/// Where a guest's output goes.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Stdio {
    /// Nowhere.
    #[default]
    Discard,
    /// Into `tracing` at level INFO, a line an event, under the target `guest`. Control characters are escaped, lines cut
    /// at 4 KiB, empty ones left out, and no more is kept than
    /// [`log_bytes`](airssys_wasm_limits::ResourceLimits::log_bytes), with a word on the rest: a guest can neither forge
    /// events, nor steer a terminal, nor flood the log.
    Tracing,
    /// To a writer, as it is. Writes happen on the async worker: the writer must not block.
    #[serde(skip)]
    Writer(Arc<Mutex<dyn Write + Send>>),
}

impl Stdio {
    /// To this writer, which is shared by all sandboxes with these grants.
    pub fn writer(writer: impl Write + Send + 'static) -> Self {
        Self::Writer(Arc::new(Mutex::new(writer)))
    }
}

impl fmt::Debug for Stdio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discard => "Discard",
            Self::Tracing => "Tracing",
            Self::Writer(_) => "Writer",
        })
    }
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
}

impl WasiGrants {
    pub(crate) const KEYS: &[&str] =
        &["args", "env", "folders", "connect", "listen", "name_lookup", "stdout", "stderr"];

    /// A context to be, with these grants: opens the folders.
    pub(crate) fn builder(&self, log: &LogAllowance) -> Result<WasiCtxBuilder, WasiError> {
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
        if let Some(output) = GuestOutput::new(&self.stdout, "stdout", log) {
            builder.stdout(output);
        }
        if let Some(output) = GuestOutput::new(&self.stderr, "stderr", log) {
            builder.stderr(output);
        }
        Ok(builder)
    }
}

fn is_allowed(connect: &[SocketAddr], listen: &[SocketAddr], address: SocketAddr, usage: SocketAddrUse) -> bool {
    // An IPv4 address written as an IPv6 one is the same address.
    let same_ip = |a: IpAddr, b: IpAddr| a.to_canonical() == b.to_canonical();
    let named = |list: &[SocketAddr]| {
        list.iter().any(|grant| same_ip(grant.ip(), address.ip()) && [0, address.port()].contains(&grant.port()))
    };
    match usage {
        SocketAddrUse::TcpConnect | SocketAddrUse::UdpSend => named(connect),
        // What the system picks for an outgoing socket; receiving on it takes an address of its own.
        SocketAddrUse::TcpBind | SocketAddrUse::UdpBind => {
            named(listen) || (!connect.is_empty() && address.ip().is_unspecified() && address.port() == 0)
        }
        SocketAddrUse::TcpListen => named(listen),
        SocketAddrUse::TcpAccept => !listen.is_empty(),
        SocketAddrUse::UdpReceive => !listen.is_empty() || named(connect),
    }
}

/// One output of a guest.
#[derive(Clone)]
struct GuestOutput(Arc<Mutex<Sink>>);

enum Sink {
    Tracing { stream: &'static str, log: LogAllowance, line: Vec<u8> },
    Writer(Arc<Mutex<dyn Write + Send>>),
}

/// Bytes after which a line is cut.
const LONGEST_LINE: usize = 4 << 10;

/// Bytes that a guest may write at once.
const LARGEST_WRITE: usize = 64 << 10;

impl GuestOutput {
    fn new(stdio: &Stdio, stream: &'static str, log: &LogAllowance) -> Option<Self> {
        let sink = match stdio {
            Stdio::Discard => return None,
            Stdio::Tracing => Sink::Tracing { stream, log: log.clone(), line: Vec::new() },
            Stdio::Writer(writer) => Sink::Writer(Arc::clone(writer)),
        };
        Some(Self(Arc::new(Mutex::new(sink))))
    }
}

impl Sink {
    fn accept(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Writer(writer) => writer.lock().write_all(bytes),
            Self::Tracing { stream, log, line } => {
                for &byte in bytes {
                    if byte == b'\n' || line.len() == LONGEST_LINE {
                        emit(stream, log, line);
                    }
                    if byte != b'\n' {
                        line.push(byte);
                    }
                }
                Ok(())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Writer(writer) => writer.lock().flush(),
            Self::Tracing { .. } => Ok(()),
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Self::Tracing { stream, log, line } = self {
            emit(stream, log, line);
        }
    }
}

/// Makes an event of a line, unless it is empty or one too many.
fn emit(stream: &str, log: &LogAllowance, line: &mut Vec<u8>) {
    if line.is_empty() {
        return;
    }
    match log.line(line.len()) {
        LogLine::Kept { left_out } => {
            if left_out > 0 {
                tracing::warn!(target: "guest", stream, left_out, "lines were left out");
            }
            tracing::info!(target: "guest", stream, "{}", String::from_utf8_lossy(line).escape_debug());
        }
        LogLine::LeftOut { first: true } => {
            tracing::warn!(target: "guest", stream, "writes more than its `log_bytes`: lines are left out");
        }
        LogLine::LeftOut { first: false } => {}
    }
    line.clear();
}

impl IsTerminal for GuestOutput {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for GuestOutput {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for GuestOutput {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.len() > LARGEST_WRITE {
            return Err(StreamError::trap("more bytes written than `check-write` permitted"));
        }
        self.0.lock().accept(&bytes).map_err(failed)
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.0.lock().flush().map_err(failed)
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(LARGEST_WRITE)
    }
}

fn failed(error: io::Error) -> StreamError {
    StreamError::LastOperationFailed(error.into())
}

#[airssys_wasm_engine::wasmtime_wasi::async_trait]
impl Pollable for GuestOutput {
    async fn ready(&mut self) {}
}

impl AsyncWrite for GuestOutput {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.0.lock().accept(bytes).map(|()| bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.lock().flush())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
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
}

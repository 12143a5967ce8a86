//! Addresses, sockets and listeners: TCP and Unix alike.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

/// Where a target listens: `HOST:PORT` or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A TCP address; the host may be a name.
    Tcp(String),
    /// A Unix socket.
    Unix(PathBuf),
}

/// A text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no address: use HOST:PORT, [IPV6]:PORT or unix:PATH")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError(text.chars().flat_map(char::escape_debug).take(200).collect());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(error()) } else { Ok(Self::Unix(path.into())) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || port.parse::<u16>().is_err() || (host.contains(':') && !bracketed) {
            return Err(error());
        }
        Ok(Self::Tcp(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(text) => f.write_str(text),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why a listener could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The address does not name this machine, is taken, or is not permitted.
    #[error("cannot listen on {address}: {}", hint(.source))]
    Bind {
        /// The address.
        address: Address,
        /// What the kernel said.
        source: io::Error,
    },
    /// The address can be reached from other machines, and nothing protects the stream.
    #[error(
        "{address} can be reached from other machines and the stream is neither encrypted nor \
         authenticated: listen on a loopback address or a Unix socket, or accept that with --insecure"
    )]
    Exposed {
        /// The address.
        address: Address,
    },
}

fn hint(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "it is in use: choose another one, or end the process that has it".into(),
        io::ErrorKind::PermissionDenied => "no permission: choose a port above 1023 or another folder".into(),
        io::ErrorKind::AddrNotAvailable => "this machine does not have that address".into(),
        _ => error.to_string(),
    }
}

/// A listener of either kind. A Unix socket's file is removed when it is dropped.
#[derive(Debug)]
pub struct Listener {
    inner: ListenerKind,
    address: Address,
}

#[derive(Debug)]
enum ListenerKind {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Listens. Addresses that other machines can reach need `insecure`.
    pub fn bind(address: &Address, insecure: bool) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Bind { address: address.clone(), source };
        match address {
            Address::Tcp(text) => {
                let resolved: Vec<SocketAddr> = text.to_socket_addrs().map_err(failed)?.collect();
                if !insecure && resolved.iter().any(|at| !at.ip().is_loopback()) {
                    return Err(ListenError::Exposed { address: address.clone() });
                }
                let listener = TcpListener::bind(&resolved[..]).map_err(failed)?;
                let address = Address::Tcp(listener.local_addr().map_err(failed)?.to_string());
                Ok(Self { inner: ListenerKind::Tcp(listener), address })
            }
            Address::Unix(path) => {
                remove_stale(path);
                let listener = UnixListener::bind(path).map_err(failed)?;
                let inner = ListenerKind::Unix(listener, path.clone());
                Ok(Self { inner, address: address.clone() })
            }
        }
    }

    /// Where it listens; a port 0 is replaced by the one that the kernel chose.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Waits for the next connection.
    pub(crate) fn accept(&self) -> io::Result<Socket> {
        match &self.inner {
            ListenerKind::Tcp(listener) => Socket::tcp(listener.accept()?.0),
            ListenerKind::Unix(listener, _) => Ok(Socket::Unix(listener.accept()?.0)),
        }
    }

    /// Makes a blocked [`accept`](Self::accept) return an error, now and for ever.
    pub(crate) fn close(&self) {
        let fd = match &self.inner {
            ListenerKind::Tcp(listener) => listener.as_fd(),
            ListenerKind::Unix(listener, _) => listener.as_fd(),
        };
        if let Err(error) = rustix::net::shutdown(fd, rustix::net::Shutdown::Both) {
            tracing::debug!(%error, "closing a listener");
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let ListenerKind::Unix(_, path) = &self.inner
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::debug!(%error, path = %path.display(), "removing a socket file");
        }
    }
}

/// Removes a socket file that nobody listens on any more, so that a crash does not block its name.
fn remove_stale(path: &Path) {
    use std::os::unix::fs::FileTypeExt;
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    let patience = Duration::from_secs(1);
    if is_socket && connect_unix(path, patience).is_err_and(|error| refused(&error)) {
        let _ = std::fs::remove_file(path);
    }
}

/// Connects with a bound on the wait: a listener whose queue is full keeps a caller waiting
/// (`unix(7)`), and the send timeout ends that.
fn connect_unix(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(timeout))?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Err(rustix::io::Errno::AGAIN) => Err(io::ErrorKind::TimedOut.into()),
        connected => Ok(connected.map(|()| UnixStream::from(socket))?),
    }
}

/// A connected socket of either kind, or a descriptor that leads one way.
#[derive(Debug)]
pub(crate) enum Socket {
    /// A file or a pipe, which does not block, and how long to wait for it.
    Plain(std::fs::File, Duration),
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Connects; the error is one sentence with the remedy.
    pub(crate) fn connect(address: &Address, timeout: Duration) -> Result<Self, String> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
                format!("nobody listens on {address}: start `ferry receive` there first ({error})")
            }
            _ => format!("{address} cannot be reached: {error}"),
        };
        match address {
            Address::Unix(path) => connect_unix(path, timeout).map(Self::Unix).map_err(failed),
            Address::Tcp(text) => {
                let mut last = io::Error::from(io::ErrorKind::NotFound);
                for at in text.to_socket_addrs().map_err(failed)? {
                    match TcpStream::connect_timeout(&at, timeout).and_then(Self::tcp) {
                        Ok(socket) => return Ok(socket),
                        Err(error) => last = error,
                    }
                }
                Err(failed(last))
            }
        }
    }

    fn tcp(stream: TcpStream) -> io::Result<Self> {
        // Messages are small and each is waited for: Nagle's algorithm would hold them back.
        stream.set_nodelay(true)?;
        Ok(Self::Tcp(stream))
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Plain(file, patience) => Ok(Self::Plain(file.try_clone()?, *patience)),
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
        }
    }

    pub(crate) fn set_write_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Self::Plain(..) => Ok(()),
            Self::Tcp(stream) => stream.set_write_timeout(Some(timeout)),
            Self::Unix(stream) => stream.set_write_timeout(Some(timeout)),
        }
    }

    pub(crate) fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Self::Plain(..) => Ok(()),
            Self::Tcp(stream) => stream.set_read_timeout(Some(timeout)),
            Self::Unix(stream) => stream.set_read_timeout(Some(timeout)),
        }
    }

    /// How long a transfer waits by itself; sockets have timeouts of their own.
    pub(crate) fn patience(&self) -> Duration {
        match self {
            Self::Plain(_, patience) => *patience,
            Self::Tcp(_) | Self::Unix(_) => Duration::ZERO,
        }
    }

    /// Ends a direction, or both: a blocked read or write returns.
    pub(crate) fn shutdown(&self, how: Shutdown) {
        let done = match self {
            Self::Plain(..) => Ok(()),
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        };
        if let Err(error) = done {
            tracing::debug!(%error, "shutting a socket down");
        }
    }
}

/// Waits until a descriptor is ready; false when `patience` is over.
pub(crate) fn is_ready(fd: impl AsFd, flags: PollFlags, patience: Duration) -> io::Result<bool> {
    let patience = Timespec::try_from(patience).ok();
    let mut polled = [PollFd::new(&fd, flags)];
    loop {
        match rustix::event::poll(&mut polled, patience.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other? > 0),
        }
    }
}

fn patiently(
    file: &std::fs::File,
    flags: PollFlags,
    patience: Duration,
    mut step: impl FnMut() -> io::Result<usize>,
) -> io::Result<usize> {
    loop {
        match step() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !is_ready(file, flags, patience)? {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            other => return other,
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Plain(file, _) => file.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for &Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match *self {
            Socket::Plain(file, patience) => {
                patiently(file, PollFlags::IN, *patience, || { file }.read(into))
            }
            Socket::Tcp(stream) => { stream }.read(into),
            Socket::Unix(stream) => { stream }.read(into),
        }
    }
}

impl Write for &Socket {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match *self {
            Socket::Plain(file, patience) => {
                patiently(file, PollFlags::OUT, *patience, || { file }.write(from))
            }
            Socket::Tcp(stream) => { stream }.write(from),
            Socket::Unix(stream) => { stream }.write(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_back() {
        for good in ["127.0.0.1:7000", "localhost:1", "[::1]:7000", "unix:/run/x.sock", "unix:x"] {
            assert_eq!(good.parse::<Address>().unwrap().to_string(), good);
        }
        for bad in ["", ":1", "host", "host:", "host:70000", "host:x", "::1:7000", "unix:"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_exposed_address_needs_consent() {
        let any = "0.0.0.0:0".parse().unwrap();
        assert!(matches!(Listener::bind(&any, false), Err(ListenError::Exposed { .. })));
        assert!(Listener::bind(&"127.0.0.1:0".parse().unwrap(), false).is_ok());
    }

    #[test]
    fn a_busy_port_says_so() {
        let first = Listener::bind(&"127.0.0.1:0".parse().unwrap(), false).unwrap();
        let error = Listener::bind(first.address(), false).unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
    }

    #[test]
    fn a_stale_socket_file_does_not_block_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap()); // leaves its file, as a crash would
        let address = Address::Unix(path.clone());
        let live = Listener::bind(&address, false).unwrap();
        assert!(Listener::bind(&address, false).is_err(), "a live one is left alone");
        drop(live);
        assert!(!path.exists());
    }

    #[test]
    fn a_full_queue_does_not_keep_a_caller_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let address = Address::Unix(path);
        let short = Duration::from_millis(20);
        let waiting: Vec<_> = (0..4).map(|_| Socket::connect(&address, short)).collect();
        let text = waiting.into_iter().find_map(Result::err).unwrap();
        assert!(text.contains("cannot be reached") && text.contains("timed out"), "{text}");
    }

    #[test]
    fn nobody_there_is_said_with_the_remedy() {
        let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap(), false).unwrap();
        let address = listener.address().clone();
        drop(listener);
        let text = Socket::connect(&address, Duration::from_secs(1)).unwrap_err();
        assert!(text.contains("start `ferry receive`"), "{text}");
    }
}

//! The Unix socket on which the agent serves its own dns-server.
//!
//! A socket file outlives the process that made it, and a folder can hold anything. So the path is taken over only from a
//! dead agent; it is open to its group and nobody else; and each caller is known by what the kernel says about it (user
//! and group, never the process id, which can be reused).

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::watched::LocalConnection;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_stream::Stream;
use tonic::transport::server::{Connected, UdsConnectInfo};
use tracing::{info, warn};

use crate::log_limit::LogLimit;
use crate::seated::Seated;

/// Longest path of a socket, in bytes: the kernel's address holds 108 with the zero at its end.
pub const PATH_BYTES_MAX: usize = 107;

/// Mode of the socket: its owner and its group may connect.
const MODE: u32 = 0o660;

/// Callers that wait to be accepted: a dns-server with many workers connects all of them at once.
const BACKLOG: i32 = 128;

/// Connections at a time: each dns-server worker has one, and people look in.
pub const CONNECTIONS_MAX: usize = 256;

/// Pause after the system refused to hand over a connection for want of files or memory, which lasts for longer.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Lines per second about refused callers.
const LOG_LINES_PER_SECOND: u32 = 5;

/// Why there is no socket. Nothing was changed, except that a dead agent's socket may be gone.
#[derive(Debug, Error)]
pub enum BindError {
    /// The path does not fit into a socket address.
    #[error("{} has {} bytes and a socket's path at most {PATH_BYTES_MAX}: choose a shorter one", path.display(), path.as_os_str().len())]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// The folder is missing or not a folder.
    #[error("the folder {} for the socket: {source}; make it, for the agent's user and the dns-server's group", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// Everybody may replace files in the folder, the socket too.
    #[error("everybody may replace files in {}: take the write permission from others, or use a folder of its own", path.display())]
    FolderOpenToAll {
        /// The folder.
        path: PathBuf,
    },
    /// Something else is at the path.
    #[error("{} is {found}, not a socket that an agent left behind: remove it or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// Another process listens at the path.
    #[error("another process listens on {}: stop it or choose another path", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The system said no.
    #[error("{action} {}: {source}", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Who may use the socket: whoever matches a user or a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// User ids.
    pub users: Vec<u32>,
    /// Group ids, compared with a caller's primary group: the kernel tells no other.
    pub groups: Vec<u32>,
}

/// A bound socket. Its file goes when this does, if it is still ours.
#[derive(Debug)]
pub struct LocalSocket {
    listener: UnixListener,
    file: SocketFile,
    allowed: Allowed,
}

/// Counters of the local socket. Clones count into the same counters.
#[derive(Clone, Debug, Default)]
pub struct LocalSocketMetrics {
    refused: Family<[(&'static str, &'static str); 1], Counter>,
    accept_errors: Counter,
}

/// A connection from a caller that may use the socket.
pub type LocalStream = Seated<LocalConnection, UdsConnectInfo>;

impl Allowed {
    /// The agent's own user, root, and the agent's own group.
    pub fn own() -> io::Result<Self> {
        // Our own credentials as the kernel shows them to the other end of a socket.
        let (socket, _other_end) = UnixStream::pair()?;
        let own = socket.peer_cred()?;
        Ok(Self { users: vec![0, own.uid()], groups: vec![own.gid()] })
    }

    /// Whether a caller with this user and primary group may use the socket.
    pub fn admits(&self, user: u32, group: u32) -> bool {
        self.users.contains(&user) || self.groups.contains(&group)
    }
}

impl LocalSocket {
    /// Listens at `path`. Must run inside a tokio runtime.
    pub fn bind(path: impl AsRef<Path>) -> Result<Self, BindError> {
        let path = path.as_ref();
        if path.as_os_str().as_bytes().len() > PATH_BYTES_MAX {
            return Err(BindError::PathTooLong { path: path.to_owned() });
        }
        check_folder(path)?;
        remove_stale(path)?;
        let failed = |action| move |source| BindError::System { action, path: path.to_owned(), source };

        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed("making a socket for"))?;
        let address = SockAddr::unix(path).map_err(failed("using the path"))?;
        socket.bind(&address).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { path: path.to_owned() },
            _ => failed("listening on")(source),
        })?;
        let file = SocketFile::at(path).map_err(failed("looking at"))?;
        // Before it listens nobody can connect: there is no moment at which the mode is wider than it should be.
        fs::set_permissions(path, Permissions::from_mode(MODE)).map_err(failed("setting the mode of"))?;
        socket.listen(BACKLOG).map_err(failed("listening on"))?;
        socket.set_nonblocking(true).map_err(failed("listening on"))?;
        let listener = UnixListener::from_std(std::os::unix::net::UnixListener::from(OwnedFd::from(socket)))
            .map_err(failed("listening on"))?;
        let allowed = Allowed::own().map_err(failed("finding the user of"))?;
        Ok(Self { listener, file, allowed })
    }

    /// Lets these in, and nobody else.
    pub fn allow(mut self, allowed: Allowed) -> Self {
        self.allowed = allowed;
        self
    }

    /// Where the socket is.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// The connections of those who may use the socket. The stream never ends by itself; dropping it closes the socket
    /// and removes its file.
    pub fn incoming(
        self,
        metrics: LocalSocketMetrics,
    ) -> impl Stream<Item = io::Result<LocalStream>> + Send + Unpin + 'static {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let log = LogLimit::new(LOG_LINES_PER_SECOND);
        let door = Door { socket: self, metrics, places, log };
        Box::pin(futures_util::stream::unfold(door, async |door| {
            let stream = door.next().await;
            Some((Ok(stream), door))
        }))
    }
}

impl LocalSocketMetrics {
    /// Puts the counters into `registry`, whose prefix they take.
    pub fn register(&self, registry: &mut Registry) {
        for reason in [NOT_ALLOWED, FULL] {
            drop(self.refused.get_or_create(&[("reason", reason)]));
        }
        registry.register(
            "local_connections_refused",
            "Connections to the local socket from users that may not use it, or beyond its limit",
            self.refused.clone(),
        );
        registry.register(
            "local_accept_errors",
            "Errors of the system while it was to hand over a local connection",
            self.accept_errors.clone(),
        );
    }

    /// How many connections were refused, for whatever reason.
    pub fn refused(&self) -> u64 {
        [NOT_ALLOWED, FULL].map(|reason| self.refused.get_or_create(&[("reason", reason)]).get()).iter().sum()
    }
}

const NOT_ALLOWED: &str = "not_allowed";
const FULL: &str = "full";

/// The accepting side of a bound socket.
struct Door {
    socket: LocalSocket,
    metrics: LocalSocketMetrics,
    places: Arc<Semaphore>,
    log: LogLimit,
}

impl Door {
    /// The next caller that may come in.
    async fn next(&self) -> LocalStream {
        loop {
            match self.socket.listener.accept().await {
                Ok((stream, _)) => {
                    if let Some(stream) = self.admit(stream) {
                        return stream;
                    }
                }
                Err(error) => {
                    self.metrics.accept_errors.inc();
                    if let Some(suppressed) = self.log.allow() {
                        warn!(%error, suppressed, "cannot accept local connections now, trying again");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, stream: UnixStream) -> Option<LocalStream> {
        // Credentials of the moment of connecting. Without them (the caller is gone) nobody is let in.
        let caller = stream.peer_cred().ok();
        if !caller.is_some_and(|caller| self.socket.allowed.admits(caller.uid(), caller.gid())) {
            self.metrics.refused.get_or_create(&[("reason", NOT_ALLOWED)]).inc();
            if let Some(suppressed) = self.log.allow() {
                let (user, group) = (caller.map(|caller| caller.uid()), caller.map(|caller| caller.gid()));
                warn!(?user, ?group, allowed = ?self.socket.allowed, suppressed, "local caller refused");
            }
            return None;
        }
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.metrics.refused.get_or_create(&[("reason", FULL)]).inc();
            if let Some(suppressed) = self.log.allow() {
                warn!(open = CONNECTIONS_MAX, suppressed, "local caller refused: too many connections");
            }
            return None;
        };
        let caller = stream.connect_info();
        match LocalConnection::new(stream) {
            Ok(stream) => Some(Seated::new(stream, caller, place)),
            Err(error) => {
                self.metrics.accept_errors.inc();
                if let Some(suppressed) = self.log.allow() {
                    warn!(%error, suppressed, "cannot watch a local connection, closing it");
                }
                None
            }
        }
    }
}

/// The file of a bound socket, removed at the end unless another agent has put its own there.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<Self> {
        let file = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), device: file.dev(), inode: file.ino() })
    }

    fn is_ours(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|file| file.dev() == self.device && file.ino() == self.inode)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_ours()
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!(%error, path = %self.path.display(), "the socket's file stays behind");
        }
    }
}

fn check_folder(path: &Path) -> Result<(), BindError> {
    let folder = match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => Path::new("/"),
    };
    let refused = |source| BindError::Folder { path: folder.to_owned(), source };
    let metadata = fs::metadata(folder).map_err(refused)?;
    if !metadata.is_dir() {
        return Err(refused(io::ErrorKind::NotADirectory.into()));
    }
    // With the sticky bit (as /tmp has it) only the owner of a file may replace it.
    let mode = metadata.mode();
    if mode & 0o002 != 0 && mode & 0o1000 == 0 {
        return Err(BindError::FolderOpenToAll { path: folder.to_owned() });
    }
    Ok(())
}

/// Makes room for a new socket if what is there is the socket of an agent that is gone, and only then.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let failed = |action| move |source| BindError::System { action, path: path.to_owned(), source };
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("looking at")(error)),
    };
    if !found.file_type().is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned(), found: kind(&found) });
    }
    // A blocking connect would wait for a process that is stopped with a full backlog.
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed("making a socket for"))?;
    socket.set_nonblocking(true).map_err(failed("making a socket for"))?;
    let address = SockAddr::unix(path).map_err(failed("using the path"))?;
    match socket.connect(&address) {
        // Nobody holds the other end of this file any more.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(failed("finding out whether anybody listens on")(error));
        }
        // It answered, or it exists and has no time.
        Ok(()) | Err(_) => return Err(BindError::InUse { path: path.to_owned() }),
    }
    match fs::remove_file(path) {
        Ok(()) => {
            info!(path = %path.display(), "removed the socket of an agent that is gone");
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("removing the socket of an agent that is gone,")(error)),
    }
}

fn kind(found: &Metadata) -> &'static str {
    let kind = found.file_type();
    if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_dir() {
        "a folder"
    } else if kind.is_file() {
        "a file"
    } else {
        "something else"
    }
}

//! The agent's Unix socket on a real file system.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;

use heimdall_agent::local_socket::{Allowed, BindError, CONNECTIONS_MAX, LocalSocket, LocalSocketMetrics};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_stream::StreamExt;
use tonic::transport::server::Connected;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn callers_of_the_same_user_come_in_and_the_file_goes_with_the_socket() {
    let dir = folder();
    let path = dir.path().join("agent.sock");
    let metrics = LocalSocketMetrics::default();
    let socket = LocalSocket::bind(&path).unwrap();
    assert_eq!(socket.path(), path);
    assert_eq!(mode(&path), 0o660);

    let mut incoming = socket.incoming(metrics.clone());
    let mut far = UnixStream::connect(&path).await.unwrap();
    let mut near = incoming.next().await.unwrap().unwrap();
    assert!(near.connect_info().peer_cred.is_some());
    far.write_all(b"ping").await.unwrap();
    let mut bytes = [0; 4];
    near.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"ping");

    drop(incoming);
    assert!(!path.exists());
    assert_eq!(metrics.refused(), 0);
}

#[tokio::test]
async fn callers_that_match_neither_user_nor_group_are_turned_away_and_counted() {
    let dir = folder();
    let path = dir.path().join("agent.sock");
    let metrics = LocalSocketMetrics::default();
    // No test can be another user, so the list is one that we are not on.
    let nobody = Allowed { users: vec![u32::MAX - 1], groups: vec![u32::MAX - 1] };
    let mut incoming = LocalSocket::bind(&path).unwrap().allow(nobody).incoming(metrics.clone());
    let mut far = UnixStream::connect(&path).await.unwrap();
    let read = tokio::select! {
        _ = incoming.next() => panic!("nobody may come in"),
        read = far.read_u8() => read,
    };
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(metrics.refused(), 1);
}

#[tokio::test]
async fn one_connection_too_many_is_closed_and_a_place_that_is_left_is_given_again() {
    let dir = folder();
    let path = dir.path().join("agent.sock");
    let metrics = LocalSocketMetrics::default();
    let mut incoming = LocalSocket::bind(&path).unwrap().incoming(metrics.clone());
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let far = UnixStream::connect(&path).await.unwrap();
        open.push((far, incoming.next().await.unwrap().unwrap()));
    }
    let mut late = UnixStream::connect(&path).await.unwrap();
    let read = tokio::select! {
        _ = incoming.next() => panic!("there is no place left"),
        read = late.read_u8() => read,
    };
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(metrics.refused(), 1);

    open.pop();
    let _far = UnixStream::connect(&path).await.unwrap();
    incoming.next().await.unwrap().unwrap();
}

#[test]
fn a_user_a_group_or_neither() {
    let allowed = Allowed { users: vec![0, 65532], groups: vec![2000] };
    assert!(allowed.admits(0, 0));
    assert!(allowed.admits(65532, 1));
    assert!(allowed.admits(1, 2000));
    assert!(!allowed.admits(1, 1));
    assert!(!allowed.admits(2000, 65532), "a user id is not a group id");
}

#[tokio::test]
async fn the_socket_of_a_dead_agent_is_replaced() {
    let dir = folder();
    let path = dir.path().join("agent.sock");
    // The standard library's listener leaves its file behind, as a killed agent does.
    drop(StdListener::bind(&path).unwrap());
    assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket());

    let mut incoming = LocalSocket::bind(&path).unwrap().incoming(LocalSocketMetrics::default());
    let _far = UnixStream::connect(&path).await.unwrap();
    incoming.next().await.unwrap().unwrap();
}

#[tokio::test]
async fn the_socket_of_a_living_agent_is_left_alone() {
    let dir = folder();
    let path = dir.path().join("agent.sock");
    let first = LocalSocket::bind(&path).unwrap();
    assert!(matches!(LocalSocket::bind(&path), Err(BindError::InUse { .. })));

    let mut incoming = first.incoming(LocalSocketMetrics::default());
    let _far = UnixStream::connect(&path).await.unwrap();
    incoming.next().await.unwrap().unwrap();
}

#[tokio::test]
async fn an_agent_that_is_too_busy_to_accept_is_not_dead() {
    let dir = folder();
    let path = dir.path().join("agent.sock");
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    socket.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(0).unwrap();
    // The one place in its queue is taken.
    let _waiting = std::os::unix::net::UnixStream::connect(&path).unwrap();
    assert!(matches!(LocalSocket::bind(&path), Err(BindError::InUse { .. })));
}

#[tokio::test]
async fn nothing_but_a_socket_is_ever_replaced() {
    let dir = folder();
    let path = dir.path().join("agent.sock");
    let refused = |expected: &str| {
        let error = LocalSocket::bind(&path).unwrap_err();
        assert!(matches!(&error, BindError::NotASocket { found, .. } if *found == expected), "{error}");
        assert!(fs::symlink_metadata(&path).is_ok(), "what is there must stay");
    };

    fs::write(&path, "precious").unwrap();
    refused("a file");
    fs::remove_file(&path).unwrap();

    fs::create_dir(&path).unwrap();
    refused("a folder");
    fs::remove_dir(&path).unwrap();

    // Also a link to a socket, and a link to nothing: following it would make a socket where somebody else wants it.
    drop(StdListener::bind(dir.path().join("other.sock")).unwrap());
    symlink(dir.path().join("other.sock"), &path).unwrap();
    refused("a symbolic link");
    fs::remove_file(&path).unwrap();
    symlink(dir.path().join("nothing"), &path).unwrap();
    refused("a symbolic link");
}

#[tokio::test]
async fn a_path_that_does_not_fit_is_an_error_that_counts() {
    let dir = folder();
    let longest = 107 - dir.path().as_os_str().len() - 1;
    LocalSocket::bind(dir.path().join("x".repeat(longest))).unwrap();
    let error = LocalSocket::bind(dir.path().join("x".repeat(longest + 1))).unwrap_err();
    assert!(error.to_string().contains("has 108 bytes and a socket's path at most 107"), "{error}");
}

#[tokio::test]
async fn the_folder_must_be_there_and_not_open_to_all() {
    let dir = folder();
    let missing = LocalSocket::bind(dir.path().join("run/agent.sock")).unwrap_err();
    assert!(matches!(missing, BindError::Folder { .. }));
    fs::write(dir.path().join("file"), "").unwrap();
    let in_a_file = LocalSocket::bind(dir.path().join("file/agent.sock")).unwrap_err();
    assert!(matches!(in_a_file, BindError::Folder { .. } | BindError::System { .. }), "{in_a_file}");

    let open = dir.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(LocalSocket::bind(open.join("agent.sock")), Err(BindError::FolderOpenToAll { .. })));
    fs::set_permissions(&open, Permissions::from_mode(0o1777)).unwrap();
    LocalSocket::bind(open.join("agent.sock")).unwrap();
}

#[tokio::test]
async fn a_file_that_another_agent_put_there_is_not_removed() {
    let dir = folder();
    let path = dir.path().join("agent.sock");
    let first = LocalSocket::bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let second = LocalSocket::bind(&path).unwrap();
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());
}

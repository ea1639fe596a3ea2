//! Upstreams of tests: real sockets that answer by a script.

use std::net::{Ipv4Addr, SocketAddr};

use heimdall_shared::dns::message::HEADER;
use heimdall_shared::key::{Flags, Key};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;

pub(crate) const NAME: &[u8] = b"\x07example\x03org\x00";
pub(crate) const QUESTION_END: usize = HEADER + NAME.len() + 4;
pub(crate) const SERVFAIL: u8 = 2;
pub(crate) const REFUSED: u8 = 5;
pub(crate) fn key() -> Key {
    Key::new(NAME, 1, 1, Flags::default(), "").unwrap()
}

/// What an upstream says to a query that it can answer.
pub(crate) fn answer(query: &[u8]) -> Vec<u8> {
    let mut packet = error(query, 0);
    packet[7] = 1;
    packet.extend_from_slice(&[0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
    packet
}

pub(crate) fn error(query: &[u8], rcode: u8) -> Vec<u8> {
    let mut packet = query[..QUESTION_END].to_vec();
    packet[2] = 0x81;
    packet[3] = 0x80 | rcode;
    packet[11] = 0;
    packet
}

pub(crate) fn truncated(query: &[u8]) -> Vec<u8> {
    let mut packet = error(query, 0);
    packet[2] |= 2;
    packet
}

/// A query as a scripted upstream saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) packet: Vec<u8>,
    pub(crate) from: SocketAddr,
}

/// An upstream on UDP: for each query the packets that `script` makes of it, given how many came before.
pub(crate) async fn upstream(
    script: impl Fn(usize, &[u8]) -> Vec<Vec<u8>> + Send + 'static,
) -> (SocketAddr, mpsc::Receiver<Seen>) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    (address, serve(socket, script))
}

pub(crate) fn serve(
    socket: UdpSocket,
    script: impl Fn(usize, &[u8]) -> Vec<Vec<u8>> + Send + 'static,
) -> mpsc::Receiver<Seen> {
    let (seen, queries) = mpsc::channel(1_024);
    tokio::spawn(async move {
        let mut buffer = [0; 4_096];
        for count in 0.. {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let packet = buffer[..length].to_vec();
            for reply in script(count, &packet) {
                socket.send_to(&reply, from).await.unwrap();
            }
            seen.send(Seen { packet, from }).await.unwrap();
        }
    });
    queries
}

/// An upstream on TCP at `address`: one reply for each connection's query, or a close without one.
pub(crate) async fn tcp_upstream(address: SocketAddr, script: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static) {
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut query).await.unwrap();
            if let Some(reply) = script(&query) {
                stream.write_u16(reply.len() as u16).await.unwrap();
                stream.write_all(&reply).await.unwrap();
            }
        }
    });
}

/// A free address on loopback where UDP and TCP answer nothing at all.
pub(crate) async fn nobody() -> SocketAddr {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap()
}

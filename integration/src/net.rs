//! Loopback addresses and ports of a test's own.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;

use nix::sys::socket::{setsockopt, sockopt};

/// A loopback address that no other test uses: 127.0.0.0/8 has 16 million, one is drawn at random.
pub fn own_loopback() -> Ipv4Addr {
    let [a, b, c] = rand::random::<[u8; 3]>();
    // 127.0.x.y is where other programs of the machine live; hosts 0 and 255 look like network addresses to people.
    Ipv4Addr::new(127, a.clamp(1, 254), b, c.clamp(1, 250))
}

/// Gives a socket a receive buffer of so many bytes: beyond the system's limit where that is allowed, else up to it.
///
/// # Errors
/// The system refuses both.
pub fn enlarge_receive_buffer(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    setsockopt(socket, sockopt::RcvBufForce, &bytes)
        .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &bytes))
        .map_err(io::Error::from)
}

/// Whether nobody holds `address`, for UDP and for TCP.
pub fn is_free(address: SocketAddr) -> bool {
    UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok()
}

/// `N` different ports of `host`, from 10,000 to 32,000 (below the kernel's ephemeral range), each free for UDP and TCP.
///
/// They are drawn together: two draws of one port each may give the same port twice, since nothing listens there yet.
///
/// # Panics
/// There are not enough in 1,000 tries.
pub fn free_ports<const N: usize>(host: Ipv4Addr) -> [u16; N] {
    let mut ports = Vec::with_capacity(N);
    for _ in 0..1000 {
        let port = 10_000 + rand::random::<u16>() % 22_000;
        if !ports.contains(&port) && is_free(SocketAddr::from((host, port))) {
            ports.push(port);
        }
        if let Ok(all) = ports.as_slice().try_into() {
            return all;
        }
    }
    panic!("{N} ports of 22,000 on {host} must be free");
}

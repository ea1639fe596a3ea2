//! Sockets on random source ports.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use heimdall_shared::watched::watched;

/// Ports that a query may leave from: all but those that need a privilege (RFC 5452 9.2 asks for "as large a range as
/// possible"). The kernel's own ephemeral range holds half of them or less.
const USABLE: RangeInclusive<u16> = 1_024..=u16::MAX;

/// Draws before giving up: with half of all ports taken, all of them fail once in four thousand million times.
const DRAWS_MAX: usize = 32;

/// Draws source ports.
#[derive(Debug)]
pub(super) struct Ports {
    /// Ports of our own listeners, which must stay free for a restart.
    avoided: Vec<u16>,
}

impl Ports {
    pub(super) const fn new(avoided: Vec<u16>) -> Self {
        Self { avoided }
    }

    /// A fresh socket on a random port, connected to `server`: the kernel drops what comes from elsewhere. The runtime watches
    /// for what arrives alone: there is room for what is sent, a packet now and then.
    pub(super) fn open(&self, server: SocketAddr) -> io::Result<AsyncFd<UdpSocket>> {
        let local: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        // From its creation one that does not block: a system call less for each query.
        let socket = Socket::new(Domain::for_address(server), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for _ in 0..DRAWS_MAX {
            let port = rand::random_range(USABLE);
            if self.avoided.contains(&port) {
                continue;
            }
            match socket.bind(&SocketAddr::new(local, port).into()) {
                Ok(()) => {
                    socket.connect(&server.into())?;
                    return watched(socket.into(), Interest::READABLE);
                }
                // Taken, or held back by the machine's configuration: another draw.
                Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => {
                    last = error;
                }
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[tokio::test]
    async fn five_hundred_queries_leave_from_as_many_ports_over_the_whole_range() {
        let ports = Ports::new(Vec::new());
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, 53));
        let drawn: Vec<u16> =
            (0..500).map(|_| ports.open(server).unwrap().get_ref().local_addr().unwrap().port()).collect();
        let distinct: HashSet<u16> = drawn.iter().copied().collect();
        assert!(distinct.len() >= 490, "{} distinct ports", distinct.len());
        // Each eighth of the range gets about 62 of 500; fewer than 25 would be 5 standard deviations off.
        for eighth in 0..8 {
            let range = 1_024 + eighth * 8_064..1_024 + (eighth + 1) * 8_064;
            let hits = drawn.iter().filter(|&&port| range.contains(&u32::from(port))).count();
            assert!(hits >= 25, "{hits} ports in {range:?}");
        }
    }

    #[tokio::test]
    async fn a_listener_s_port_is_never_drawn_and_a_taken_one_costs_another_draw() {
        // All ports but 8,192 are avoided, and one of those is taken.
        let taken = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let free = port.saturating_sub(4_096).max(1_024)..port.saturating_add(4_096);
        let ports = Ports::new(USABLE.filter(|port| !free.contains(port)).collect());
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, 53));
        let drawn: Vec<u16> = (0..200)
            .filter_map(|_| ports.open(server).ok())
            .map(|socket| socket.get_ref().local_addr().unwrap().port())
            .collect();
        assert!(drawn.len() > 150, "{} of 200 drew a port", drawn.len());
        assert!(drawn.iter().all(|drawn| free.contains(drawn) && *drawn != port));
    }
}

//! Binding all sockets before any is served.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use anyhow::Context as _;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo};
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use socket2::{Domain, Protocol, Socket, Type};

use crate::listener::envelope::has_packet_info;
use crate::worker::Sockets;

/// Receive buffer asked for, in bytes: some 2,000 small datagrams, what arrives in 10 ms at 200,000 per second. The kernel
/// gives at most `net.core.rmem_max`.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Connections that the kernel may complete before we accept them.
const BACKLOG: i32 = 1_024;

/// Ports drawn before a listener on port 0 gives up to find one that is free over both transports.
const PORT_DRAWS: usize = 16;

/// Binds every address for every worker. Gives the workers' sockets, and the addresses with their ports.
///
/// Over UDP each of several workers has a socket of its own (SO_REUSEPORT), which would also let a process that was left over from
/// before take its share of the queries. TCP has one listener without that option, bound first: it fails if anybody is there. A single worker's
/// socket does without it too: for each datagram the kernel would choose among one.
pub(crate) fn bind(listen: &[SocketAddr], workers: usize) -> anyhow::Result<(Vec<Sockets>, Vec<SocketAddr>)> {
    let mut all: Vec<_> = (0..workers).map(|_| Sockets { udp: Vec::new(), tcp: Vec::new() }).collect();
    let mut addresses = Vec::new();
    for &address in listen {
        let (tcp, udp, bound) = both(address, workers)?;
        for (sockets, udp) in all.iter_mut().zip(udp) {
            sockets.udp.push(udp);
            sockets.tcp.push(tcp.try_clone().with_context(|| format!("cannot share the TCP listener on {bound}"))?);
        }
        addresses.push(bound);
    }
    Ok((all, addresses))
}

fn both(address: SocketAddr, workers: usize) -> anyhow::Result<(TcpListener, Vec<UdpSocket>, SocketAddr)> {
    let mut draws = 0;
    loop {
        draws += 1;
        let tcp = tcp(address).with_context(|| {
            format!("cannot listen for DNS on {address} over TCP; is another server, or an earlier one, still there?")
        })?;
        let bound =
            tcp.local_addr().with_context(|| format!("cannot read the address of the listener on {address}"))?;
        match (0..workers).map(|_| udp(bound, workers > 1)).collect::<io::Result<Vec<_>>>() {
            Ok(udp) => return Ok((tcp, udp, bound)),
            // Somebody else's UDP socket has the port that the kernel drew for TCP.
            Err(error) if address.port() == 0 && error.kind() == io::ErrorKind::AddrInUse && draws < PORT_DRAWS => {}
            Err(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "cannot listen for DNS on {bound} over UDP; is another server, or an earlier one, still there?"
                    )
                });
            }
        }
    }
}

fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of a process that has just ended must not keep its successor from listening.
    socket.set_reuse_address(true)?;
    prepare(&socket, address)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn udp(address: SocketAddr, is_one_of_many: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if is_one_of_many {
        socket.set_reuse_port(true)?;
    }
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    never_fragment(&socket, address)?;
    if has_packet_info(address) {
        ask_for_packet_info(&socket, address)?;
    }
    prepare(&socket, address)?;
    Ok(socket.into())
}

/// Has all datagrams of `socket` leave in one piece.
///
/// RFC 9715 3.1 R2 wants a responder's replies not to be fragmented, since somebody else's second fragment can be put behind our first one. By
/// default the kernel sets DF only as long as it believes that a datagram fits its path, and believes whoever sends it an ICMP message
/// that says otherwise. No reply of ours is longer than what fits wherever IPv6 does ([`UDP_PAYLOAD`](crate::query::UDP_PAYLOAD)); where an
/// IPv4 link is narrower than 1,260 octets, what is too long for it does not arrive.
/// What also speaks for it: a datagram that cannot be fragmented needs no IP ID, which is drawn from a hash, and its path's MTU is not
/// looked up.
fn never_fragment(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => sockopt::set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::PROBE)?,
        SocketAddr::V6(_) => sockopt::set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::PROBE)?,
    }
    Ok(())
}

/// Has the kernel say of each datagram which of the machine's addresses it was sent to: the reply has to come from there.
fn ask_for_packet_info(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => setsockopt(socket, Ipv4PacketInfo, &true)?,
        SocketAddr::V6(_) => setsockopt(socket, Ipv6RecvPacketInfo, &true)?,
    }
    Ok(())
}

fn prepare(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv6() {
        // So that 0.0.0.0 and [::] can stand side by side.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn a_second_server_on_the_same_port_is_told_so() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (first, addresses) = bind(&[any], 2).unwrap();
        assert_eq!(first.len(), 2);
        assert!(first.iter().all(|sockets| sockets.udp[0].local_addr().unwrap() == addresses[0]));
        let error = format!("{:#}", bind(&addresses, 1).unwrap_err());
        assert!(error.contains(&addresses[0].to_string()) && error.contains("TCP"), "{error}");
    }

    #[test]
    fn several_workers_share_a_port_and_one_has_it_alone() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        for (is_one_of_many, expected) in [(true, None), (false, Some(io::ErrorKind::AddrInUse))] {
            let first = udp(any, is_one_of_many).unwrap();
            assert_eq!(udp(first.local_addr().unwrap(), true).err().map(|error| error.kind()), expected);
        }
    }

    #[test]
    fn what_leaves_a_udp_socket_is_never_fragmented() {
        let v4 = udp(SocketAddr::from(([127, 0, 0, 1], 0)), false).unwrap();
        assert_eq!(sockopt::ip_mtu_discover(&v4).unwrap(), Ipv4PathMtuDiscovery::PROBE);
        // Not every machine has IPv6.
        if let Ok(v6) = udp(SocketAddr::from((Ipv6Addr::LOCALHOST, 0)), false) {
            assert_eq!(sockopt::ipv6_mtu_discover(&v6).unwrap(), Ipv6PathMtuDiscovery::PROBE);
        }
    }
}

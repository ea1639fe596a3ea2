//! Where a datagram came from, and which of our addresses it was sent to.

use std::mem::offset_of;
use std::net::{Ipv6Addr, SocketAddr};

use nix::libc::{cmsghdr, in_pktinfo, in6_pktinfo, sockaddr_in6};

/// Octets of the longest socket address that is used, that of IPv6.
pub(super) const ADDRESS_MAX: usize = size_of::<sockaddr_in6>();

/// Octets of what stands before the content of a control message.
const HEADER: usize = size_of::<cmsghdr>();

/// Octets of the control message that says which IPv4 address was asked (IP_PKTINFO), as `CMSG_SPACE` counts them.
const PACKET_INFO_V4: usize = (HEADER + size_of::<in_pktinfo>()).next_multiple_of(align_of::<cmsghdr>());

/// The same of IPv6 (IPV6_PKTINFO).
const PACKET_INFO_V6: usize = (HEADER + size_of::<in6_pktinfo>()).next_multiple_of(align_of::<cmsghdr>());

/// Octets of the longest control message that is received.
pub(super) const PACKET_INFO_MAX: usize = PACKET_INFO_V6;

/// Whether a socket that is bound to `address` is told which one was asked: it has several.
pub(crate) fn has_packet_info(address: SocketAddr) -> bool {
    address.ip().is_unspecified()
}

/// Both ends of a datagram, as the kernel writes and reads them.
///
/// RFC 2181 4.1: "servers when responding to queries using UDP must cause the reply to be sent with the source address field in the IP header set
/// to the address that was in the destination address field of the IP header of the packet containing the query causing the response". A
/// socket that is bound to one address does that. One that is bound to all has to be told what was asked, and to say it when it replies.
#[derive(Clone, Copy, Debug)]
// A control message stands where its header may stand.
#[repr(C, align(8))]
pub(crate) struct Envelope {
    /// The control message that says which address was asked.
    pub(super) packet_info: [u8; PACKET_INFO_MAX],
    /// Octets of it, none of a socket that is bound to one address.
    pub(super) packet_info_length: u32,
    /// Who asks.
    pub(super) sender: [u8; ADDRESS_MAX],
}

impl Envelope {
    /// Of no datagram.
    pub(crate) const NONE: Self =
        Self { packet_info: [0; PACKET_INFO_MAX], packet_info_length: 0, sender: [0; ADDRESS_MAX] };

    /// Takes the `length` octets of control messages that the kernel wrote for what it is to read with the reply.
    ///
    /// Through which interface the query came is not said: the way back is the routing table's business. Only a link-local address means
    /// nothing without it.
    pub(super) fn keep(&mut self, length: usize) {
        let asked = self.asked_v6();
        // No option is set that has messages of other lengths. Without a message the kernel chooses where the reply comes from.
        let (length, interface) = match length {
            PACKET_INFO_V4 => (length, Some(HEADER + offset_of!(in_pktinfo, ipi_ifindex))),
            // RFC 4291 2.7: "Multicast addresses must not be used as source addresses in IPv6 packets".
            PACKET_INFO_V6 if asked.is_multicast() => (0, None),
            PACKET_INFO_V6 if asked.is_unicast_link_local() => (length, None),
            PACKET_INFO_V6 => (length, Some(HEADER + offset_of!(in6_pktinfo, ipi6_ifindex))),
            _ => (0, None),
        };
        self.packet_info_length = length as u32;
        if let Some(at) = interface {
            self.packet_info[at..][..size_of::<u32>()].fill(0);
        }
    }

    /// The address that was asked, if the message is one of IPv6.
    fn asked_v6(&self) -> Ipv6Addr {
        let octets = self.packet_info[HEADER + offset_of!(in6_pktinfo, ipi6_addr)..].first_chunk();
        octets.map_or(Ipv6Addr::UNSPECIFIED, |&octets: &[u8; 16]| octets.into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn of(content: &[u8], length: usize) -> Envelope {
        let mut envelope = Envelope { packet_info: [7; PACKET_INFO_MAX], ..Envelope::NONE };
        envelope.packet_info[HEADER..][..content.len()].copy_from_slice(content);
        envelope.keep(length);
        envelope
    }

    fn of_v6(asked: &str) -> Envelope {
        of(&asked.parse::<Ipv6Addr>().unwrap().octets(), 40)
    }

    #[test]
    fn what_was_asked_is_kept_without_the_interface() {
        let v4 = of(&[9; 12], 32);
        assert_eq!(v4.packet_info_length, 32);
        assert_eq!((v4.packet_info[15], &v4.packet_info[16..20], v4.packet_info[20]), (7, &[0; 4][..], 9));
        let v6 = of_v6("2001:db8::1");
        assert_eq!(v6.packet_info_length, 40);
        assert_eq!((v6.packet_info[31], &v6.packet_info[32..36], v6.packet_info[36]), (1, &[0; 4][..], 7));
        assert_eq!(of(&[], 0).packet_info_length, 0);
    }

    #[test]
    fn a_link_local_address_keeps_its_interface_and_a_group_is_nobody_s_source() {
        let link_local = of_v6("fe80::1");
        assert_eq!((link_local.packet_info_length, &link_local.packet_info[32..36]), (40, &[7; 4][..]));
        assert_eq!(of_v6("ff02::1").packet_info_length, 0);
    }
}

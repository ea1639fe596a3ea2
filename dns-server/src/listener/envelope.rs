//! Where a datagram came from, and which of our addresses it was sent to.

use nix::libc::{cmsghdr, in_pktinfo, in6_pktinfo, sockaddr_in6};

/// Octets of the longest socket address that is used, that of IPv6.
pub(super) const ADDRESS_MAX: usize = size_of::<sockaddr_in6>();

/// Octets of the control message that says which IPv4 address was asked (IP_PKTINFO), as `CMSG_SPACE` counts them.
const ASKED_V4: usize = (size_of::<cmsghdr>() + size_of::<in_pktinfo>()).next_multiple_of(align_of::<cmsghdr>());

/// The same of IPv6 (IPV6_PKTINFO).
const ASKED_V6: usize = (size_of::<cmsghdr>() + size_of::<in6_pktinfo>()).next_multiple_of(align_of::<cmsghdr>());

/// Octets of the longest control message that is received.
pub(super) const ASKED_MAX: usize = ASKED_V6;

/// Both ends of a datagram, as the kernel writes and reads them.
///
/// RFC 2181 4.1: "servers when responding to queries using UDP must cause the reply to be sent with the source address field in the IP header set
/// to the address that was in the destination address field of the IP header of the packet containing the query causing the response". A
/// socket that is bound to one address does that. One that is bound to all has to be told what was asked, and to say it when it replies.
#[derive(Clone, Copy, Debug)]
// A control message stands where its header may stand.
#[repr(C, align(8))]
pub(crate) struct Envelope {
    /// The control message that says what was asked.
    pub(super) asked: [u8; ASKED_MAX],
    /// Octets of it, none of a socket that is bound to one address.
    pub(super) asked_length: u32,
    /// Who asks.
    pub(super) sender: [u8; ADDRESS_MAX],
}

impl Envelope {
    /// Of no datagram.
    pub(crate) const NONE: Self = Self { asked: [0; ASKED_MAX], asked_length: 0, sender: [0; ADDRESS_MAX] };

    /// Takes the `length` octets of control messages that the kernel wrote for what it is to read with the reply.
    ///
    /// Through which interface the query came is not said: the way back is the routing table's business.
    pub(super) fn keep(&mut self, length: usize) {
        let header = size_of::<cmsghdr>();
        let interface = match length {
            ASKED_V4 => std::mem::offset_of!(in_pktinfo, ipi_ifindex),
            ASKED_V6 => std::mem::offset_of!(in6_pktinfo, ipi6_ifindex),
            // It was not told: the kernel chooses, as it did before.
            _ => {
                self.asked_length = 0;
                return;
            }
        };
        self.asked[header + interface..][..size_of::<u32>()].fill(0);
        self.asked_length = length as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_is_kept_without_the_interface() {
        let mut envelope = Envelope { asked: [7; ASKED_MAX], ..Envelope::NONE };
        envelope.keep(ASKED_V4);
        assert_eq!(envelope.asked_length, 32);
        assert_eq!((envelope.asked[15], &envelope.asked[16..20], envelope.asked[20]), (7, &[0; 4][..], 7));
        envelope.asked = [7; ASKED_MAX];
        envelope.keep(ASKED_V6);
        assert_eq!(envelope.asked_length, 40);
        assert_eq!((envelope.asked[31], &envelope.asked[32..36], envelope.asked[36]), (7, &[0; 4][..], 7));
        envelope.keep(0);
        assert_eq!(envelope.asked_length, 0);
    }
}

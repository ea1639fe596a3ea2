//! What a client asks: octets in, a [`Query`] or a [`Reject`] out. Pure, and without an allocation.

use heimdall_shared::dns::message::{Header, Message, Opt, Question};
use heimdall_shared::dns::rr::{class, rcode, rtype};

use crate::reply::Ede;

use crate::cache::{PIECE, Sought};

mod usual;

/// Largest UDP payload that we send or offer, in octets: what passes nearly every path unfragmented (RFC 9715).
pub const UDP_PAYLOAD: u16 = 1_232;

/// Largest UDP payload of a client without EDNS, and the least that any client takes (RFC 1035 4.2.1, RFC 6891 6.2.3).
pub(crate) const LEAST_UDP_PAYLOAD: u16 = 512;

/// Version byte at the front of every key.
const KEY_VERSION: u8 = 1;

/// Octets that are turned into lower case at once: most names are not longer.
const LOWERED: usize = 32;

/// Room for a name in whole pieces, and for what follows the longest one in a key, with zeros behind it.
const KEY_ROOM: usize = (1 + 256_usize.next_multiple_of(LOWERED)).next_multiple_of(PIECE) + 2 * PIECE;

/// Names of class CH by which servers are asked for their version and identity, in wire form.
const IDENTITY_NAMES: [&[u8]; 5] = [
    b"\x07version\x04bind\x00",
    b"\x07version\x06server\x00",
    b"\x08hostname\x04bind\x00",
    b"\x02id\x06server\x00",
    b"\x07authors\x04bind\x00",
];

/// The canonical key of a query, built on the stack: its octets are those of [`heimdall_shared::key::Key`].
#[derive(Clone, Debug)]
pub struct KeyBuf {
    /// Behind the key there are zeros up to the end of its last piece.
    bytes: [u8; KEY_ROOM],
    len: u16,
}

impl KeyBuf {
    /// An empty buffer, to be filled by [`Query::parse`] again and again.
    pub const fn new() -> Self {
        Self { bytes: [0; KEY_ROOM], len: 0 }
    }

    /// The key's octets.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// The key for a look into the cache.
    #[inline(always)]
    pub fn sought(&self) -> Sought<'_> {
        Sought { pieces: self.bytes.as_chunks().0, length: self.len.into() }
    }

    /// Takes the name at the front of `octets`, of `length` octets, with what follows it in a key.
    #[inline(always)]
    fn fill(&mut self, octets: &[u8], length: usize, tail: [u8; Question::TAIL], flags: u8) {
        self.bytes[0] = KEY_VERSION;
        let room = self.bytes[1..].as_chunks_mut::<LOWERED>().0;
        let (whole, rest) = octets.as_chunks();
        let needed = length.div_ceil(LOWERED);
        // Octets behind the name are lowered with it, and then overwritten or ignored.
        for (lower, chunk) in room.iter_mut().zip(whole).take(needed) {
            *lower = lower_case(chunk);
        }
        if let (true, Some(lower)) = (whole.len() < needed, room.get_mut(whole.len())) {
            let mut chunk = [0; LOWERED];
            chunk[..rest.len()].copy_from_slice(rest);
            *lower = lower_case(&chunk);
        }
        let end = 1 + length;
        self.len = end as u16 + 5;
        if let Some(end) = self.bytes.get_mut(end..).and_then(<[u8]>::first_chunk_mut::<{ 5 + PIECE - 1 }>) {
            *end = [0; 5 + PIECE - 1];
            let octets = u64::from(u32::from_le_bytes(tail)) | u64::from(flags) << u32::BITS;
            end[..8].copy_from_slice(&octets.to_le_bytes());
        }
    }
}

impl Default for KeyBuf {
    fn default() -> Self {
        Self::new()
    }
}

/// Turns `A`-`Z` into lower case. The compiler makes a few vector instructions of it.
#[inline(always)]
fn lower_case(octets: &[u8; LOWERED]) -> [u8; LOWERED] {
    let mut lower = *octets;
    lower.make_ascii_lowercase();
    lower
}

/// What a client's OPT record says that concerns its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// The largest UDP payload that the client takes; never below 512.
    pub udp_size: u16,
    /// DO.
    pub dnssec_ok: bool,
}

/// The parts of a query that its reply repeats or obeys, without the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// ID.
    pub id: u16,
    /// RD.
    pub recursion_desired: bool,
    /// CD.
    pub checking_disabled: bool,
    /// OPT, if the client sent one.
    pub edns: Option<Edns>,
}

impl Head {
    /// Of no query.
    pub(crate) const NONE: Self = Self { id: 0, recursion_desired: false, checking_disabled: false, edns: None };

    /// The key's octet of flags: DO and CD.
    #[inline]
    fn flags(&self) -> u8 {
        u8::from(self.edns.is_some_and(|edns| edns.dnssec_ok)) | u8::from(self.checking_disabled) << 1
    }
}

/// A question that may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query<'a> {
    /// Everything but the question.
    pub head: Head,
    /// The question as the client sent it: name (in its case), type, class.
    pub question: &'a [u8],
}

/// A message that gets no answer from cache or upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject<'a> {
    /// No reply at all.
    Silent,
    /// A reply of twelve octets.
    Bare {
        /// ID of the message.
        id: u16,
        /// Its opcode.
        opcode: u8,
        /// Its RD bit.
        recursion_desired: bool,
        /// Our return code.
        rcode: u8,
    },
    /// A reply with the question.
    Refused {
        /// The query.
        query: Query<'a>,
        /// Our return code, perhaps an extended one.
        rcode: u16,
        /// The reason, for clients with EDNS.
        ede: Option<Ede>,
    },
}

impl<'a> Query<'a> {
    /// Reads a client's message and leaves its key in `key`.
    #[inline]
    pub fn parse(packet: &'a [u8], key: &mut KeyBuf) -> Result<Self, Reject<'a>> {
        match usual::parse(packet, packet.len(), key) {
            Some(query) => Ok(query),
            None => Self::parse_any(packet, key),
        }
    }

    /// Reads a message of the usual shape, of `length` octets at the front of a buffer, and leaves its key in `key`; `None` means
    /// that [`Query::parse`] must decide. What stands behind the message has no meaning, but a name is read quicker where
    /// something does.
    #[inline(always)]
    pub fn parse_usual(buffer: &'a [u8], length: usize, key: &mut KeyBuf) -> Option<Self> {
        usual::parse(buffer, length, key)
    }

    /// Reads a message of whatever shape.
    fn parse_any(packet: &'a [u8], key: &mut KeyBuf) -> Result<Self, Reject<'a>> {
        // RFC 1035 4.1.1: a header has twelve octets. An answer to an answer could bounce for ever.
        let Some(header) = Header::of(packet) else { return Err(Reject::Silent) };
        if header.is_response() {
            return Err(Reject::Silent);
        }
        // RFC 8906 3.1.4: a server that does not know an opcode answers NOTIMP.
        if header.opcode() != 0 {
            return Err(bare(header, rcode::NOTIMP));
        }
        // RFC 9619 4: "A DNS message with OPCODE = 0 MUST NOT include a QDCOUNT parameter whose value is greater than 1"; a
        // question is needed for an answer.
        let form_error = Err(bare(header, rcode::FORMERR));
        let Ok(message) = Message::parse(packet) else { return form_error };
        let Some(question) = message.question() else { return form_error };
        if message.opt().is_some_and(|opt| !well_formed(opt, packet)) {
            return form_error;
        }
        let edns = message.opt().map(|opt| Edns {
            // RFC 6891 6.2.3: "Values lower than 512 MUST be treated as equal to 512."
            udp_size: opt.udp_size.max(LEAST_UDP_PAYLOAD),
            dnssec_ok: opt.dnssec_ok,
        });
        let head = Head {
            id: header.id(),
            recursion_desired: header.recursion_desired(),
            checking_disabled: header.checking_disabled(),
            edns,
        };
        let octets = packet.get(question.name.start..question.end()).unwrap_or_default();
        let Some((name, &tail)) = octets.split_last_chunk() else { return form_error };
        let query = Self { head, question: octets };
        // RFC 6891 6.1.3: "If a responder does not implement the VERSION level of the request, then it MUST respond with
        // RCODE=BADVERS."
        if message.opt().is_some_and(|opt| opt.version != 0) {
            return Err(Reject::Refused { query, rcode: rcode::BADVERS, ede: None });
        }
        if question.qtype == rtype::OPT {
            return form_error;
        }
        if let Some(ede) = policy(question, name) {
            return Err(Reject::Refused { query, rcode: u16::from(rcode::REFUSED), ede: Some(ede) });
        }
        key.fill(name, name.len(), tail, head.flags());
        Ok(query)
    }

    /// Whether the answer may be cached and shared: class IN alone.
    pub fn is_cacheable(&self) -> bool {
        self.question.last_chunk::<2>() == Some(&class::IN.to_be_bytes())
    }

    /// Most octets that a UDP reply to this client may have.
    #[inline]
    pub fn udp_limit(&self) -> usize {
        let offered = self.head.edns.map_or(LEAST_UDP_PAYLOAD, |edns| edns.udp_size);
        usize::from(offered.min(UDP_PAYLOAD))
    }
}

fn bare(header: Header<'_>, rcode: u8) -> Reject<'static> {
    let (id, opcode) = (header.id(), header.opcode());
    Reject::Bare { id, opcode, recursion_desired: header.recursion_desired(), rcode }
}

fn well_formed(opt: &Opt, packet: &[u8]) -> bool {
    opt.rdata.is_empty() || opt.options(packet).all(|option| option.is_ok())
}

/// Questions that are refused, with the reason.
#[inline]
fn policy(question: &Question, name: &[u8]) -> Option<Ede> {
    match (question.qclass, question.qtype) {
        // RFC 5936 2.2, RFC 1995: transfers are for authoritative servers.
        (_, rtype::AXFR | rtype::IXFR) => Some(Ede::NotSupported),
        (class::ANY, _) => Some(Ede::NotSupported),
        (class::CH, _) if IDENTITY_NAMES.iter().any(|asked| asked.eq_ignore_ascii_case(name)) => Some(Ede::Prohibited),
        _ => None,
    }
}

#[cfg(test)]
#[path = "query_tests.rs"]
mod tests;

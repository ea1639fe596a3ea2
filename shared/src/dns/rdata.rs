//! Where names stand inside RDATA, for the few types whose names may be compressed.
//!
//! RFC 3597 4: servers decompress names in the types of RFC 1035 and in RP, AFSDB, RT, SIG, PX, NXT, NAPTR and SRV;
//! every other type's RDATA is opaque, and compression is created in those of RFC 1035 alone.

use std::ops::Range;

use super::message::Malformed;
use super::name;
use super::rr::rtype;

/// One field of an RDATA layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// This many octets.
    Fixed(usize),
    /// A name, perhaps compressed.
    Name,
    /// A character-string: a length octet and that many octets.
    Text,
    /// Whatever is left.
    Rest,
}

/// The layout of a type's RDATA.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) fields: &'static [Field],
    /// Whether names may be compressed when this RDATA is written.
    pub(super) compress: bool,
}

/// The layout of `rtype`, or nothing if its RDATA is opaque.
pub(super) fn layout(rtype: u16) -> Option<Layout> {
    use Field::{Fixed, Name, Rest, Text};
    let (fields, compress): (&[Field], bool) = match rtype {
        rtype::NS | rtype::MD | rtype::MF | rtype::CNAME | rtype::MB | rtype::MG | rtype::MR | rtype::PTR => {
            (&[Name], true)
        }
        rtype::SOA => (&[Name, Name, Fixed(20)], true),
        rtype::MINFO => (&[Name, Name], true),
        rtype::MX => (&[Fixed(2), Name], true),
        rtype::RP => (&[Name, Name], false),
        rtype::AFSDB | rtype::RT => (&[Fixed(2), Name], false),
        rtype::SIG => (&[Fixed(18), Name, Rest], false),
        rtype::PX => (&[Fixed(2), Name, Name], false),
        rtype::NXT => (&[Name, Rest], false),
        rtype::SRV => (&[Fixed(6), Name], false),
        rtype::NAPTR => (&[Fixed(4), Text, Text, Text, Name], false),
        _ => return None,
    };
    Some(Layout { fields, compress })
}

/// Splits RDATA into its fields, each with its own octets. Refuses RDATA that its layout does not fill exactly.
pub(super) fn fields(
    packet: &[u8],
    rdata: &Range<usize>,
    layout: Layout,
    mut visit: impl FnMut(Field, Range<usize>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let broken = Malformed::Rdata(rdata.start);
    let mut at = rdata.start;
    for &field in layout.fields {
        let end = match field {
            Field::Fixed(octets) => at + octets,
            Field::Name => name::skip(packet, at).map_err(|error| Malformed::Name(at, error))?,
            Field::Text => at + 1 + usize::from(*packet.get(at).ok_or(broken)?),
            Field::Rest => rdata.end,
        };
        if end > rdata.end {
            return Err(broken);
        }
        visit(field, at..end)?;
        at = end;
    }
    if at == rdata.end { Ok(()) } else { Err(broken) }
}

/// Checks that RDATA has the layout of its type, and gives the offset of each name in it to `visit`.
pub(super) fn check(
    packet: &[u8],
    rtype: u16,
    rdata: &Range<usize>,
    mut visit: impl FnMut(usize),
) -> Result<(), Malformed> {
    let Some(layout) = layout(rtype) else { return Ok(()) };
    fields(packet, rdata, layout, |field, octets| {
        if field == Field::Name {
            visit(octets.start);
        }
        Ok(())
    })
}

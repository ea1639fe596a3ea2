//! Who owns a name, computed from the protocol's text and not by the code that it judges.

use xxhash_rust::xxh3::xxh3_64;

use crate::wire::Name;

/// The slot of a name in the default view: the top 16 bits of the hash of its lower-case wire form.
pub fn slot(name: &Name) -> u16 {
    u16::try_from(xxh3_64(name.lower().wire()) >> 48).expect("16 bits must fit")
}

/// The members in a name's order: by the hash of slot and member name, highest first, ties by name.
pub fn order(name: &Name, members: &[String]) -> Vec<usize> {
    let slot = slot(name).to_be_bytes();
    let score = |member: &String| xxh3_64(&[&slot, member.as_bytes()].concat());
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by(|&a, &b| score(&members[b]).cmp(&score(&members[a])).then_with(|| members[a].cmp(&members[b])));
    order
}

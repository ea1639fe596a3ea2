//! Writing records anew, when something had to be taken out of a packet. Linear in what is written (every suffix of a
//! name is hashed once, from its end).

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::message::{Malformed, Record};
use super::name;
use super::rdata::{self, Field};

/// First offset that a compression pointer cannot express (14 bits, RFC 1035 4.1.4).
const POINTER_END: usize = 0x4000;

/// Writes names and records behind what is already in the buffer.
pub(super) struct Encoder {
    out: Vec<u8>,
    /// Hash of a suffix -> the offset at which it was written. Seeded, so that nobody can prepare collisions.
    suffixes: HashMap<u64, u16>,
    seed: u64,
}

impl Encoder {
    /// Continues `out`, in which an uncompressed name (the question's) begins at `question`.
    pub(super) fn after(out: Vec<u8>, question: usize) -> Self {
        let mut encoder = Self { out, suffixes: HashMap::new(), seed: RandomState::new().hash_one(0_u8) };
        if let Ok((name, _)) = name::expand(&encoder.out, question) {
            let labels = Labels::of(name.as_bytes(), encoder.seed);
            encoder.remember(&labels, labels.count, question);
        }
        encoder
    }

    /// The packet as written.
    pub(super) fn finish(self) -> Vec<u8> {
        self.out
    }

    /// Writes `record` of `packet` with every name expanded and, where allowed, compressed anew.
    pub(super) fn record(&mut self, packet: &[u8], record: &Record) -> Result<(), Malformed> {
        self.name(packet, record.owner, true)?;
        let fixed = record.ttl_at - 4..record.ttl_at + 4;
        self.out.extend_from_slice(octets(packet, fixed)?);
        let length_at = self.out.len();
        self.out.extend_from_slice(&[0, 0]);
        match rdata::layout(record.rtype) {
            None => self.out.extend_from_slice(octets(packet, record.rdata.clone())?),
            Some(layout) => rdata::fields(packet, &record.rdata, layout, |field, range| match field {
                Field::Name => self.name(packet, range.start, layout.compress),
                Field::Fixed(_) | Field::Text | Field::Rest => {
                    self.out.extend_from_slice(octets(packet, range)?);
                    Ok(())
                }
            })?,
        }
        let length = u16::try_from(self.out.len() - length_at - 2).map_err(|_| Malformed::Rdata(record.rdata.start))?;
        if let Some(field) = self.out.get_mut(length_at..length_at + 2) {
            field.copy_from_slice(&length.to_be_bytes());
        }
        Ok(())
    }

    fn name(&mut self, packet: &[u8], at: usize, compress: bool) -> Result<(), Malformed> {
        let (name, _) = name::expand(packet, at).map_err(|error| Malformed::Name(at, error))?;
        let wire = name.as_bytes();
        if !compress {
            self.out.extend_from_slice(wire);
            return Ok(());
        }
        let labels = Labels::of(wire, self.seed);
        let start = self.out.len();
        // The longest suffix that already stands in the packet. Case counts: what was received is passed on.
        let known = (0..labels.count).find_map(|index| {
            let &offset = self.suffixes.get(&labels.hashes[index])?;
            let suffix = &wire[usize::from(labels.starts[index])..];
            self.stands_at(usize::from(offset), suffix).then_some((index, offset))
        });
        match known {
            Some((index, offset)) => {
                self.out.extend_from_slice(&wire[..usize::from(labels.starts[index])]);
                self.out.extend_from_slice(&(0xC000 | offset).to_be_bytes());
                self.remember(&labels, index, start);
            }
            None => {
                self.out.extend_from_slice(wire);
                self.remember(&labels, labels.count, start);
            }
        }
        Ok(())
    }

    /// Notes where the first `count` suffixes of a name written at `start` stand.
    fn remember(&mut self, labels: &Labels, count: usize, start: usize) {
        for (hash, offset) in labels.hashes.iter().zip(&labels.starts).take(count) {
            let offset = start + usize::from(*offset);
            if offset < POINTER_END
                && let Ok(offset) = u16::try_from(offset)
            {
                self.suffixes.entry(*hash).or_insert(offset);
            }
        }
    }

    fn stands_at(&self, offset: usize, suffix: &[u8]) -> bool {
        name::expand(&self.out, offset).is_ok_and(|(name, _)| name.as_bytes() == suffix)
    }
}

/// Where a name's labels begin, and a hash of the suffix from each.
struct Labels {
    count: usize,
    starts: [u8; Self::MAX],
    hashes: [u64; Self::MAX],
}

impl Labels {
    /// Most labels of a name, the root's not counted.
    const MAX: usize = 127;

    fn of(wire: &[u8], seed: u64) -> Self {
        let mut labels = Self { count: 0, starts: [0; Self::MAX], hashes: [0; Self::MAX] };
        let mut at = 0;
        for label in name::labels(wire).take(Self::MAX) {
            labels.starts[labels.count] = at as u8;
            labels.count += 1;
            at += 1 + label.len();
        }
        let mut hash = seed;
        let mut end = at;
        for index in (0..labels.count).rev() {
            let start = usize::from(labels.starts[index]);
            hash = xxh3_64_with_seed(&wire[start..end], hash);
            labels.hashes[index] = hash;
            end = start;
        }
        labels
    }
}

fn octets(packet: &[u8], range: std::ops::Range<usize>) -> Result<&[u8], Malformed> {
    let start = range.start;
    packet.get(range).ok_or(Malformed::Cut(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_name_points_at_its_longest_known_suffix() {
        let mut encoder = Encoder::after([&[0; 12][..], b"\x01a\x01b\x00\x00\x01\x00\x01"].concat(), 12);
        let source = [&[0; 12][..], b"\x01c\x01b\x00\x01c\x01B\x00"].concat();
        encoder.name(&source, 12, true).expect("the name must be sound");
        encoder.name(&source, 12, true).expect("the name must be sound");
        encoder.name(&source, 17, true).expect("the name must be sound");
        encoder.name(&source, 12, false).expect("the name must be sound");
        let out = encoder.finish();
        assert_eq!(&out[21..], b"\x01c\xC0\x0E\xC0\x15\x01c\x01B\x00\x01c\x01b\x00", "case counts");
    }
}

//! A set of slots: which part of the key space is meant.

use crate::ring::SLOTS;

/// Bytes of a set: one bit for each slot.
const SLOTS_BYTES: usize = SLOTS / 8;

/// Slots of the key space, one bit each; slot 0 is the lowest bit of the first byte.
#[derive(Clone, PartialEq, Eq)]
pub struct Slots(Box<[u8]>);

impl Slots {
    /// No slot.
    pub fn none() -> Self {
        Self(vec![0; SLOTS_BYTES].into())
    }

    /// Every slot.
    pub fn all() -> Self {
        Self(vec![0xff; SLOTS_BYTES].into())
    }

    /// Those for which `belongs` says yes.
    pub fn where_(belongs: impl Fn(u16) -> bool) -> Self {
        let mut slots = Self::none();
        (0..=u16::MAX).filter(|&slot| belongs(slot)).for_each(|slot| slots.insert(slot));
        slots
    }

    /// The set in its wire form; `None` when that has another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == SLOTS_BYTES).then(|| Self(bytes.into()))
    }

    /// The wire form.
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether `slot` is in the set.
    pub fn contains(&self, slot: u16) -> bool {
        self.0[usize::from(slot) / 8] & 1 << (slot % 8) != 0
    }

    /// Adds `slot`.
    pub fn insert(&mut self, slot: u16) {
        self.0[usize::from(slot) / 8] |= 1 << (slot % 8);
    }

    /// Adds all of `others`.
    pub fn insert_all(&mut self, others: &Self) {
        self.0.iter_mut().zip(&others.0).for_each(|(mine, other)| *mine |= other);
    }

    /// Takes all of `others` out.
    pub fn remove_all(&mut self, others: &Self) {
        self.0.iter_mut().zip(&others.0).for_each(|(mine, other)| *mine &= !other);
    }

    /// Takes all out that are not among `others`.
    pub fn retain_all(&mut self, others: &Self) {
        self.0.iter_mut().zip(&others.0).for_each(|(mine, other)| *mine &= other);
    }

    /// Whether no slot is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|&byte| byte == 0)
    }

    /// How many slots are in the set.
    pub fn len(&self) -> usize {
        self.0.iter().map(|byte| byte.count_ones() as usize).sum()
    }

    /// The slots, rising.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        (0..=u16::MAX).filter(|&slot| self.contains(slot))
    }
}

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} slots", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_in_and_travels() {
        let mut slots = Slots::where_(|slot| slot % 1_000 == 3);
        slots.insert(u16::MAX);
        assert_eq!(slots.iter().filter(|slot| slot % 1_000 == 3).count(), 66);
        assert_eq!(slots.len(), 67);
        assert_eq!(Slots::from_bytes(slots.as_bytes()), Some(slots.clone()));
        assert_eq!(Slots::from_bytes(&slots.as_bytes()[1..]), None);
        let mut rest = Slots::all();
        rest.remove_all(&slots);
        assert!(!rest.contains(3) && rest.contains(4));
        rest.insert_all(&slots);
        assert_eq!(rest, Slots::all());
        rest.retain_all(&slots);
        assert_eq!(rest, slots);
        rest.remove_all(&Slots::all());
        assert!(rest.is_empty());
    }
}

//! Queries on their way to a server over one socket, and which answer belongs to which.

use super::verify::{Expected, Wrong};
use super::workload::Asked;

/// Rooms for queries. A room's number is the lower part of the ID, how often it was used the upper part: an answer that comes
/// twice finds its room empty or with another ID.
pub(super) struct Slots(Vec<Slot>);

struct Slot {
    packet: Vec<u8>,
    used: u16,
    asked: Option<u32>,
}

impl Slots {
    pub(super) fn new(count: u32) -> Self {
        Self((0..count).map(|_| Slot { packet: Vec::new(), used: 0, asked: None }).collect())
    }

    /// Whether any query is on its way.
    pub(super) fn any_waits(&self) -> bool {
        self.0.iter().any(|slot| slot.asked.is_some())
    }

    /// Puts the next questions into free rooms, as long as there are both, and gives the numbers of those rooms.
    pub(super) fn fill(&mut self, asked: &[Asked], next: &mut impl FnMut() -> Option<u32>, fresh: &mut Vec<usize>) {
        let width = self.0.len() as u16;
        fresh.clear();
        for (number, slot) in self.0.iter_mut().enumerate().filter(|(_, slot)| slot.asked.is_none()) {
            let Some(index) = next() else { break };
            slot.asked = Some(index);
            slot.used = slot.used.wrapping_add(1);
            slot.packet.clone_from(&asked[index as usize].query);
            let id = slot.used.wrapping_mul(width).wrapping_add(number as u16);
            slot.packet[..2].copy_from_slice(&id.to_be_bytes());
            fresh.push(number);
        }
    }

    /// The query in a room.
    pub(super) fn packet(&self, number: usize) -> &[u8] {
        &self.0[number].packet
    }

    /// Checks an answer and frees its room.
    pub(super) fn take(&mut self, asked: &[Asked], expected: Expected, packet: &[u8]) -> Result<(), Wrong> {
        let id = packet.first_chunk::<2>().ok_or(Wrong::Length)?;
        let slot = self.0.iter_mut().find(|slot| slot.asked.is_some() && slot.packet.starts_with(id));
        let slot = slot.ok_or(Wrong::Id)?;
        let index = slot.asked.take().ok_or(Wrong::Id)?;
        expected.check(&asked[index as usize], packet)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::workload::{Kind, Workload};
    use super::*;

    #[test]
    fn an_answer_frees_the_room_of_its_query_and_no_other_once() {
        let workload = Workload::cached(Kind::Storm, 3, 1.0, 1).unwrap();
        let (mut slots, mut fresh) = (Slots::new(2), Vec::new());
        let mut questions = 0..3;
        slots.fill(workload.asked(), &mut || questions.next(), &mut fresh);
        assert_eq!((fresh.as_slice(), slots.any_waits()), ([0, 1].as_slice(), true), "no more than there is room for");
        let echoes: Vec<_> = fresh.iter().map(|&number| slots.packet(number).to_vec()).collect();
        assert_eq!(slots.take(workload.asked(), Expected::Echo, &echoes[1]), Ok(()));
        assert_eq!(slots.take(workload.asked(), Expected::Echo, &echoes[1]), Err(Wrong::Id), "it was answered");
        slots.fill(workload.asked(), &mut || questions.next(), &mut fresh);
        assert_eq!(fresh, [1]);
        assert_eq!(slots.take(workload.asked(), Expected::Echo, &echoes[1]), Err(Wrong::Id), "the room's last query");
        assert_eq!(slots.take(workload.asked(), Expected::Echo, &echoes[0]), Ok(()));
        let last = slots.packet(1).to_vec();
        assert_eq!(slots.take(workload.asked(), Expected::Echo, &last), Ok(()));
        assert!(!slots.any_waits());
    }
}

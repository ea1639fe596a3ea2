//! Names by the replica that owns them.

use super::super::workload::{Asked, Named, Subject};
use crate::ownership;
use crate::wire::Name;

/// TTL in seconds that outlives every run.
const TTL: u32 = 86_400;

/// A name's address with its query.
pub(super) struct Owned {
    /// The query, and what must come back.
    pub(super) asked: Asked,
    /// The name.
    pub(super) name: Name,
}

/// An endless supply of names that are never given twice.
#[derive(Debug, Default)]
pub(super) struct Supply {
    next: u64,
}

impl Supply {
    /// The next name, whoever owns it.
    pub(super) fn next(&mut self) -> Owned {
        let subject = Subject { name: Named::Once(self.next), qtype: 1, ttl: TTL };
        self.next += 1;
        Owned { asked: Asked::new(&subject), name: subject.question().name }
    }

    /// The next `count` names, whoever owns them.
    pub(super) fn take(&mut self, count: usize) -> Vec<Owned> {
        (0..count).map(|_| self.next()).collect()
    }

    /// The next `count` names that are owned by `owner` among `members`.
    pub(super) fn owned_by(&mut self, owner: usize, members: &[String], count: usize) -> Vec<Owned> {
        let mut names = Vec::with_capacity(count);
        while names.len() < count {
            let name = self.next();
            if ownership::order(&name.name, members)[0] == owner {
                names.push(name);
            }
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supply_gives_each_name_once_and_to_its_owner() {
        let members = ["replica-0".to_owned(), "replica-1".to_owned()];
        let mut supply = Supply::default();
        let mut names = supply.owned_by(1, &members, 50);
        assert!(names.iter().all(|name| ownership::order(&name.name, &members) == [1, 0]));
        names.extend(supply.take(50));
        let mut queries: Vec<_> = names.into_iter().map(|name| name.asked.query).collect();
        queries.sort();
        queries.dedup();
        assert_eq!(queries.len(), 100);
    }
}

//! Which requests wait, by the connection that they came over.

use std::collections::HashMap;

use foldhash::quality::RandomState;
use heimdall_shared::key::Key;

use super::LinkId;

/// Waiting requests of one connection.
type Requests = HashMap<u64, Key, RandomState>;

/// Finds a waiting request's key, and counts what waits per connection.
#[derive(Debug, Default)]
pub(super) struct Waits {
    links: HashMap<LinkId, Requests, RandomState>,
    total: usize,
}

impl Waits {
    pub(super) fn contains(&self, link: LinkId, request: u64) -> bool {
        self.links.get(&link).is_some_and(|requests| requests.contains_key(&request))
    }

    pub(super) fn on_link(&self, link: LinkId) -> usize {
        self.links.get(&link).map_or(0, HashMap::len)
    }

    pub(super) const fn len(&self) -> usize {
        self.total
    }

    pub(super) fn insert(&mut self, link: LinkId, request: u64, key: Key) {
        let previous = self.links.entry(link).or_default().insert(request, key);
        debug_assert!(previous.is_none(), "a request must not wait twice");
        self.total += 1;
    }

    pub(super) fn remove(&mut self, link: LinkId, request: u64) -> Option<Key> {
        let requests = self.links.get_mut(&link)?;
        let key = requests.remove(&request)?;
        if requests.is_empty() {
            self.links.remove(&link);
        }
        self.total -= 1;
        Some(key)
    }

    /// Takes out all that wait over `link`.
    pub(super) fn remove_link(&mut self, link: LinkId) -> Requests {
        let requests = self.links.remove(&link).unwrap_or_default();
        self.total -= requests.len();
        requests
    }
}

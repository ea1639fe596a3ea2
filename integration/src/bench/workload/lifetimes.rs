//! How many upstream queries a sequence of questions needs at least.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

/// Counts windows, each of which needs one upstream query: the ideal.
///
/// A key's first question begins a window at its own time, and the window lasts for the life of the answer. Questions up to and
/// including its last moment belong to it. The first question after that moment begins the next one, at the time of that
/// question: nothing is refreshed while nobody asks. So what it counts is the number of distinct (key × lifetime) windows that
/// have a question in them.
///
/// An answer without a life makes a window of a single moment: questions at exactly that time share it.
///
/// Questions are to be given in the order of their times. One that comes with an earlier time than the window's belongs to it too.
#[derive(Clone, Debug)]
pub struct Windows<K> {
    ends: HashMap<K, Duration>,
    count: u64,
}

impl<K: Eq + Hash> Windows<K> {
    /// No window yet.
    pub fn new() -> Self {
        Self { ends: HashMap::new(), count: 0 }
    }

    /// Somebody asks for `key` at `at`, whose answer lives for `life`. Whether that begins a window.
    pub fn asked(&mut self, at: Duration, key: K, life: Duration) -> bool {
        if self.ends.get(&key).is_some_and(|&end| at <= end) {
            return false;
        }
        self.ends.insert(key, at.saturating_add(life));
        self.count += 1;
        true
    }

    /// Windows so far.
    pub const fn count(&self) -> u64 {
        self.count
    }
}

impl<K: Eq + Hash> Default for Windows<K> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(asked: &[(u64, &str, u64)]) -> Vec<bool> {
        let mut windows = Windows::new();
        let begun: Vec<_> = asked
            .iter()
            .map(|&(at, key, life)| windows.asked(Duration::from_millis(at), key, Duration::from_millis(life)))
            .collect();
        assert_eq!(windows.count(), begun.iter().filter(|&&begun| begun).count() as u64);
        begun
    }

    #[test]
    fn a_window_begins_with_the_first_question_after_the_end_of_the_last() {
        assert_eq!(
            windows(&[
                (0, "a", 100),
                (100, "a", 100),
                (101, "a", 100),
                (150, "a", 100),
                (201, "a", 100),
                (202, "a", 100)
            ]),
            [true, false, true, false, false, true]
        );
    }

    #[test]
    fn keys_have_windows_of_their_own() {
        assert_eq!(
            windows(&[(0, "a", 100), (50, "b", 100), (120, "a", 100), (120, "b", 100)]),
            [true, true, true, false]
        );
    }

    #[test]
    fn an_answer_without_a_life_serves_those_of_its_moment() {
        assert_eq!(windows(&[(5, "a", 0), (5, "a", 0), (6, "a", 0)]), [true, false, true]);
    }

    #[test]
    fn a_question_that_comes_late_belongs_to_the_window_under_way() {
        assert_eq!(windows(&[(50, "a", 100), (40, "a", 100)]), [true, false]);
    }
}

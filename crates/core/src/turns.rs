//! Fair turns where many wait for one server: users take turns in a ring, and the waiters of one
//! user go in order of arrival.
//!
//! However many wait for one user, the first waiter of another user waits for at most one turn of
//! each.

use std::collections::{HashMap, VecDeque};

/// The waiters, each for one turn.
#[derive(Debug)]
pub struct Turns<T> {
    /// Users with a waiter, the next first.
    ring: VecDeque<u32>,
    waiting: HashMap<u32, VecDeque<T>>,
    /// The user whose turn it is or was: users who enter meanwhile go before it.
    last: Option<u32>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { ring: VecDeque::new(), waiting: HashMap::new(), last: None }
    }
}

impl<T> Turns<T> {
    /// Adds a waiter for a turn of this user.
    pub fn enter(&mut self, user: u32, who: T) {
        let queue = self.waiting.entry(user).or_default();
        queue.push_back(who);
        if queue.len() == 1 && self.last != Some(user) {
            self.ring.push_back(user);
        }
    }

    /// Gives this user a turn at once, because nobody waits. Other users who enter meanwhile go
    /// before its next turn.
    pub fn take(&mut self, user: u32) {
        self.last = Some(user);
    }

    /// Ends the current turn and returns the next waiter.
    pub fn give(&mut self) -> Option<T> {
        if let Some(last) = self.last.take() {
            if self.waiting.contains_key(&last) {
                self.ring.push_back(last);
            }
        }
        let user = self.ring.pop_front()?;
        let queue = self.waiting.get_mut(&user)?;
        let who = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(&user);
        }
        self.last = Some(user);
        who
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_of_another_user_comes_next_however_many_wait() {
        let mut turns = Turns::default();
        for number in 0..100 {
            turns.enter(7, (7, number));
        }
        assert_eq!(turns.give(), Some((7, 0)));
        // User 8 enters during a turn of user 7, and is always the next.
        for number in 0..3 {
            turns.enter(8, (8, number));
            assert_eq!(turns.give(), Some((8, number)));
            assert_eq!(turns.give(), Some((7, number + 1)));
        }
    }

    proptest! {
        /// The first waiter of a user waits for at most one turn of each other user. The waiters of
        /// one user go in order, and each gets a turn.
        #[test]
        fn nobody_waits_for_two_turns_of_another_user(
            steps in proptest::collection::vec(prop_oneof![(0_u32..5).prop_map(Some), Just(None)], 0..200)
        ) {
            let mut turns = Turns::default();
            // The waiters of each user, and the turns of others since each first waiter became
            // first.
            let mut expected: HashMap<u32, VecDeque<usize>> = HashMap::new();
            let mut since: HashMap<u32, HashMap<u32, usize>> = HashMap::new();
            let drain = std::iter::repeat_n(None, steps.len());
            for (number, step) in steps.clone().into_iter().chain(drain).enumerate() {
                if let Some(user) = step {
                    turns.enter(user, (user, number));
                    let queue = expected.entry(user).or_default();
                    queue.push_back(number);
                    if queue.len() == 1 {
                        since.insert(user, HashMap::new());
                    }
                    continue;
                }
                let waits = expected.values().any(|queue| !queue.is_empty());
                let Some((user, number)) = turns.give() else {
                    prop_assert!(!waits && turns.is_empty());
                    continue;
                };
                let first = expected.get_mut(&user).and_then(VecDeque::pop_front);
                prop_assert_eq!(first, Some(number));
                since.insert(user, HashMap::new());
                for (_, turns) in since.iter_mut().filter(|(other, _)| **other != user) {
                    *turns.entry(user).or_default() += 1;
                }
                for (waiting, turns) in &since {
                    let one = turns.values().all(|count| *count <= 1);
                    prop_assert!(one || expected[waiting].is_empty());
                }
            }
            prop_assert!(turns.is_empty());
        }
    }
}

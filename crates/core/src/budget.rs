//! How much a server keeps for its clients, in bytes or in descriptors: for all users together, and
//! for each.
//!
//! A user gets at most half of the limit, so no single user takes everything. Where the server
//! cannot take back what it keeps, a user gets a small part of what the others leave
//! ([`Budget::has_room`]), which leaves room for hundreds of users.

use std::collections::BTreeMap;

/// Where the server cannot take it back, a user gets one part in this many of what the others
/// leave.
const PART: usize = 32;

/// Where that part is smaller than this, a user gets this much, but at most the larger part of
/// [`LARGER_PART`]: a claim of a thousand listeners goes out at once where few others have
/// anything.
const ENOUGH: usize = 1024;

/// One part in this many of what the others leave, for [`ENOUGH`].
const LARGER_PART: usize = 8;

/// How many users keep an entry while they have nothing, because they often have something again.
const IDLE: usize = 64;

/// How much is kept, and for whom.
#[derive(Debug, Clone, Default)]
pub struct Budget {
    limit: usize,
    all: usize,
    users: BTreeMap<u32, usize>,
}

impl Budget {
    /// Sets the limit for all users together; what is already kept stays.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Changes what one holder of this user has from `was` to `now`. False if there is no room:
    /// then the holder must give up all it has, and report that with a `now` of 0. A decrease
    /// always fits.
    pub fn change(&mut self, uid: u32, was: usize, now: usize) -> bool {
        let user = self.users.entry(uid).or_default();
        *user = user.saturating_sub(was).saturating_add(now);
        self.all = self.all.saturating_sub(was).saturating_add(now);
        let fits = *user <= self.limit / 2 && self.all <= self.limit;
        if *user == 0 && self.users.len() > IDLE {
            self.users.remove(&uid);
        }
        fits || now <= was
    }

    /// Whether this user has no more than `bytes`: a single holder may exceed the share of its
    /// user.
    pub fn is_only(&self, uid: u32, bytes: usize) -> bool {
        self.users.get(&uid).is_none_or(|user| *user <= bytes)
    }

    /// Whether this user may have `more` of what the server cannot take back. A user that has
    /// nothing always may.
    pub fn has_room(&self, uid: u32, more: usize) -> bool {
        let user = self.users.get(&uid).copied().unwrap_or_default();
        let left = self.limit.saturating_sub(self.all.saturating_sub(user));
        let most = (left / PART).max(ENOUGH.min(left / LARGER_PART));
        user == 0 || user.saturating_add(more) <= most
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_cannot_be_had_back_leaves_room_for_many() {
        let mut budget = Budget::default();
        budget.set_limit(1 << 19);
        for uid in 0..100 {
            let mut has = 0;
            while budget.has_room(uid, 253) {
                budget.change(uid, has, has + 253);
                has += 253;
            }
            assert!((500..=(1 << 19) / PART).contains(&has), "{has} for {uid}");
        }
        assert!(budget.has_room(100, 253) && budget.all < 1 << 19);
        // With a small limit, one user may have a thousand, and dozens of others one message each.
        let mut budget = Budget::default();
        budget.set_limit(10_000);
        for uid in 0..12 {
            let mut has = 0;
            while budget.has_room(uid, 253) {
                budget.change(uid, has, has + 253);
                has += 253;
            }
            let most = if uid == 0 { 1012 } else { 253 };
            assert!((most..=1012).contains(&has), "{has} for {uid}");
        }
        assert!(budget.has_room(12, 253) && budget.all < 10_000, "{}", budget.all);
        // However small the limit is, the first message of a user may go.
        budget.set_limit(0);
        assert!(budget.has_room(100, 253) && !budget.has_room(0, 1));
    }

    #[test]
    fn few_users_stay_entered_when_they_have_nothing() {
        let mut budget = Budget::default();
        budget.set_limit(100);
        for uid in 0..1000 {
            assert!(budget.change(uid, 0, 1) && budget.change(uid, 1, 0));
            assert!(budget.users.len() <= IDLE && budget.is_only(uid, 0));
        }
    }

    proptest! {
        /// Holders that follow the answers never have more than the limit, a user never more than
        /// half of it, and nothing stays counted when all have gone.
        #[test]
        fn nobody_has_more_than_there_is(steps in proptest::collection::vec((0_u32..4, 0_usize..6, 0_usize..70), 0..200)) {
            let mut budget = Budget::default();
            budget.set_limit(100);
            let mut holders: BTreeMap<(u32, usize), usize> = BTreeMap::new();
            for (uid, holder, now) in steps {
                let was = holders.insert((uid, holder), now).unwrap_or(0);
                if !budget.change(uid, was, now) {
                    budget.change(uid, now, 0);
                    holders.remove(&(uid, holder));
                }
                let of = |wanted: u32| -> usize {
                    holders.iter().filter(|((uid, _), _)| *uid == wanted).map(|(_, kept)| *kept).sum()
                };
                prop_assert!((0..4).all(|uid| of(uid) <= 50));
                prop_assert_eq!(budget.all, holders.values().sum::<usize>());
                prop_assert!(budget.all <= 100);
            }
            for ((uid, _), kept) in holders {
                budget.change(uid, kept, 0);
            }
            prop_assert_eq!((budget.all, budget.users.values().sum::<usize>()), (0, 0));
        }
    }
}

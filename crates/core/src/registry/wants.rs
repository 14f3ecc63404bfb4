//! What a claim asks for. Of many elements no step may look at all, move all or free all: 34,000 take a millisecond and more.
//! So they lie in parts, their number is counted as they are added, and what is dropped goes to [`Spent`], which frees a part at a time.

use std::cell::RefCell;
use std::mem;
use std::rc::Rc;

use crate::listener::Wanted;

/// So many elements are in a part.
const PART: usize = 1024;

/// One element of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// Which listeners.
    pub wanted: Wanted,
    /// If this claim creates them, they are closed with their last lease unless
    /// something confirms them before.
    pub tentative: bool,
    /// An option that was said and differs from what is held is changed on the
    /// socket in place, instead of being a conflict.
    pub change: bool,
    /// Only what is held already is meant: its client may use it, and may not have it created.
    pub held: bool,
}

impl Want {
    /// How many listeners these are.
    pub fn count(&self) -> usize {
        match &self.wanted {
            Wanted::Named(_) => 1,
            Wanted::Listen(spec) => spec.count(),
        }
    }
}

/// The elements of a claim, and how many listeners these are.
#[derive(Debug, Clone, Default)]
pub struct Wants {
    /// All but the last are full.
    parts: Vec<Vec<Want>>,
    count: usize,
    /// Takes many that are dropped; without it they are freed at once.
    spent: Option<Rc<Spent>>,
}

impl Wants {
    /// None yet; `spent` takes those that are dropped.
    #[must_use]
    pub fn new(spent: &Rc<Spent>) -> Self {
        Self { parts: Vec::new(), count: 0, spent: Some(Rc::clone(spent)) }
    }

    /// Adds one.
    pub fn push(&mut self, want: Want) {
        self.count = self.count.saturating_add(want.count());
        match self.parts.last_mut() {
            Some(last) if last.len() < PART => last.push(want),
            // The first has often one element and no more.
            None => self.parts.push(vec![want]),
            Some(_) => {
                let mut part = Vec::with_capacity(PART);
                part.push(want);
                self.parts.push(part);
            }
        }
    }

    /// The one at this place.
    #[must_use]
    pub fn get(&self, place: usize) -> Option<&Want> {
        self.parts.get(place / PART)?.get(place % PART)
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Want> {
        self.parts.iter().flatten()
    }

    /// How many elements there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.last().map_or(0, |last| (self.parts.len() - 1) * PART + last.len())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// How many listeners they are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }
}

impl FromIterator<Want> for Wants {
    fn from_iter<I: IntoIterator<Item = Want>>(wants: I) -> Self {
        let mut all = Self::default();
        wants.into_iter().for_each(|want| all.push(want));
        all
    }
}

impl From<Vec<Want>> for Wants {
    fn from(wants: Vec<Want>) -> Self {
        wants.into_iter().collect()
    }
}

impl Drop for Wants {
    fn drop(&mut self) {
        if self.parts.len() > 1 {
            if let Some(spent) = &self.spent {
                spent.0.borrow_mut().append(&mut self.parts);
            }
        }
    }
}

/// Elements of claims that are decided, which are still to be freed.
#[derive(Debug, Default)]
pub struct Spent(RefCell<Vec<Vec<Want>>>);

impl Spent {
    /// Frees some. True if there are more.
    pub fn free_some(&self) -> bool {
        let mut all = self.0.borrow_mut();
        drop(all.pop());
        if all.is_empty() {
            drop(mem::take(&mut *all));
        }
        !all.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(text: &str) -> Want {
        let wanted: Wanted = text.parse().expect("a listener");
        Want { wanted, tentative: false, change: false, held: false }
    }

    #[test]
    fn what_many_claims_have_asked_for_is_freed_some_at_a_time() {
        let spent = Rc::new(Spent::default());
        for _ in 0..2 {
            let mut wants = Wants::new(&spent);
            for number in 0..10 * PART {
                wants.push(want(if number == 7 { ":1000-1009" } else { "web" }));
            }
            assert_eq!((wants.len(), wants.count()), (10 * PART, 10 * PART + 9));
            assert_eq!((wants.get(7).map(Want::count), wants.get(10 * PART)), (Some(10), None));
            assert_eq!(wants.iter().position(|want| want.count() == 10), Some(7));
        }
        let mut few = Wants::new(&spent);
        few.push(want("web"));
        drop(few);
        let kept = || spent.0.borrow().iter().map(Vec::len).collect::<Vec<_>>();
        for left in (0..20).rev() {
            assert_eq!(spent.free_some(), left != 0);
            assert_eq!(kept(), vec![PART; left]);
        }
        assert!(!spent.free_some());
    }

    /// Moved as a whole each time it has grown, a million bytes would be copied again and again, each time in one step.
    #[test]
    fn none_is_moved_when_another_is_added() {
        let mut wants: Wants = (0..PART).map(|_| want("web")).collect();
        let at = |wants: &Wants| std::ptr::from_ref(wants.get(PART - 1).expect("one")).addr();
        let before = at(&wants);
        (0..3 * PART).for_each(|_| wants.push(want("web")));
        assert_eq!(at(&wants), before);
    }
}

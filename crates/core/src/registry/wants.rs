//! The elements of a claim. No step may go through, move or free all of them: 34,000 take a
//! millisecond and more. So they are stored in parts, their listeners are counted as they are
//! added, and dropped ones go to [`Spent`], which frees one part at a time.

use std::cell::RefCell;
use std::mem;
use std::rc::Rc;

use crate::listener::Wanted;

/// How many elements are in a part.
const PART: usize = 1024;

/// One element of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// Which listeners.
    pub wanted: Wanted,
    /// Listeners that this claim creates are closed with their last lease, unless they are
    /// confirmed before.
    pub tentative: bool,
    /// An option that differs from that of the held listener is changed on its socket in place,
    /// instead of being a conflict.
    pub change: bool,
    /// Only held listeners are meant: the client may use them, and may not create any.
    pub held: bool,
}

impl Want {
    /// The number of listeners.
    pub fn count(&self) -> usize {
        match &self.wanted {
            Wanted::Named(_) => 1,
            Wanted::Listen(spec) => spec.count(),
        }
    }

    /// Whether it is, or has, a name.
    pub(super) fn is_named(&self) -> bool {
        match &self.wanted {
            Wanted::Named(_) => true,
            Wanted::Listen(spec) => spec.first.name.is_some(),
        }
    }
}

/// The elements of a claim, and the number of their listeners.
#[derive(Debug, Clone, Default)]
pub struct Wants {
    /// All parts but the last are full.
    parts: Vec<Vec<Want>>,
    count: usize,
    /// Takes dropped elements if there are many; without it they are freed at once.
    spent: Option<Rc<Spent>>,
}

impl Wants {
    /// No elements yet; `spent` takes dropped ones.
    #[must_use]
    pub fn new(spent: &Rc<Spent>) -> Self {
        Self { parts: Vec::new(), count: 0, spent: Some(Rc::clone(spent)) }
    }

    /// Adds an element.
    pub fn push(&mut self, want: Want) {
        self.count = self.count.saturating_add(want.count());
        match self.parts.last_mut() {
            Some(last) if last.len() < PART => last.push(want),
            // The first part often has only one element.
            None => self.parts.push(vec![want]),
            Some(_) => {
                let mut part = Vec::with_capacity(PART);
                part.push(want);
                self.parts.push(part);
            }
        }
    }

    /// The element at this place.
    #[must_use]
    pub fn get(&self, place: usize) -> Option<&Want> {
        self.parts.get(place / PART)?.get(place % PART)
    }

    /// All elements, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Want> {
        self.parts.iter().flatten()
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.last().map_or(0, |last| (self.parts.len() - 1) * PART + last.len())
    }

    /// Whether there is no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The number of listeners of all elements.
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

/// Elements of decided claims, yet to be freed.
#[derive(Debug, Default)]
pub struct Spent(RefCell<Vec<Vec<Want>>>);

impl Spent {
    /// Frees one part. True if there are more.
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

    /// If all elements moved at each growth, a million bytes would be copied again and again, each
    /// time in one step.
    #[test]
    fn none_is_moved_when_another_is_added() {
        let mut wants: Wants = (0..PART).map(|_| want("web")).collect();
        let at = |wants: &Wants| std::ptr::from_ref(wants.get(PART - 1).expect("one")).addr();
        let before = at(&wants);
        (0..3 * PART).for_each(|_| wants.push(want("web")));
        assert_eq!(at(&wants), before);
    }
}

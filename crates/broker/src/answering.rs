//! Requests being answered. Large ones wait for each other, the elements of a decided claim are
//! freed later, and answers are counted by method and result.

use std::collections::BTreeMap;
use std::rc::Rc;

use bindonce_core::registry::Spent;
use bindonce_wire::ErrorCode;
use bindonce_wire::call::METHODS;

use crate::large::LargeAnswers;

/// The requests of one broker.
#[derive(Debug, Default)]
pub(crate) struct Answering {
    /// Large answers in progress, at most one per user.
    pub(crate) large: Rc<LargeAnswers>,
    /// Elements of decided claims, freed some at a time.
    pub(crate) spent: Rc<Spent>,
    /// Answers by method and result, for metrics.
    counts: BTreeMap<(&'static str, &'static str), u64>,
}

impl Answering {
    /// Counts an answered request.
    pub(crate) fn count(&mut self, method: &str, failure: Option<ErrorCode>) {
        let known = METHODS.into_iter().find(|known| *known == method);
        let result = failure.map_or("ok", ErrorCode::word);
        *self.counts.entry((known.unwrap_or("other"), result)).or_default() += 1;
    }

    /// Each method and result seen so far, with its count.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        self.counts.iter().map(|((method, result), count)| (*method, *result, *count))
    }
}

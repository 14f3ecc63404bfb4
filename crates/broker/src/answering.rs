//! Requests while they are answered: large ones wait for each other, and what a claim asked for is freed after it. Each that was
//! answered is counted, by method and result.

use std::collections::BTreeMap;
use std::rc::Rc;

use bindonce_core::registry::Spent;
use bindonce_wire::ErrorCode;
use bindonce_wire::call::METHODS;

use crate::large::LargeAnswers;

/// The requests of one broker.
#[derive(Debug, Default)]
pub(crate) struct Answering {
    /// Large answers in progress: one at a time for each user.
    pub(crate) large: Rc<LargeAnswers>,
    /// The elements of decided claims, to be freed some at a time.
    pub(crate) spent: Rc<Spent>,
    /// Answers by method and result, for metrics.
    counts: BTreeMap<(&'static str, &'static str), u64>,
}

impl Answering {
    /// A request was answered.
    pub(crate) fn count(&mut self, method: &str, failure: Option<ErrorCode>) {
        let known = METHODS.into_iter().find(|known| *known == method);
        let result = failure.map_or("ok", ErrorCode::word);
        *self.counts.entry((known.unwrap_or("other"), result)).or_default() += 1;
    }

    /// Method, result and count of each that there was.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        self.counts.iter().map(|((method, result), count)| (*method, *result, *count))
    }
}

//! How many requests were answered, by method and by what came of them.

use std::collections::BTreeMap;

use bindonce_wire::ErrorCode;
use bindonce_wire::call::METHODS;

/// Counts of one broker, for metrics.
#[derive(Debug, Default)]
pub(crate) struct Answered(BTreeMap<(&'static str, &'static str), u64>);

impl Answered {
    /// A request was answered.
    pub(crate) fn request(&mut self, method: &str, failure: Option<ErrorCode>) {
        let known = METHODS.into_iter().find(|known| *known == method);
        let result = failure.map_or("ok", ErrorCode::word);
        *self.0.entry((known.unwrap_or("other"), result)).or_default() += 1;
    }

    /// Method, result and count of each that there was.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        self.0.iter().map(|((method, result), count)| (*method, *result, *count))
    }
}

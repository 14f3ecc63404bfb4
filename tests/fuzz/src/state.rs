//! The state that a supervisor saves for the next one.

use std::path::Path;

use bindonce_supervisor::upgrade;
use serde_json::Value;

/// No generation has a higher number, and no time is later.
const LAST: u64 = 1 << 53;

/// Reads a saved state. What is accepted is a JSON object whose numbers are those of generations and times.
pub(crate) fn state(data: &[u8]) {
    if upgrade::check(Path::new("state.json"), data, None).is_err() {
        return;
    }
    // What is in a member that nobody knows is not looked at.
    let Ok(state) = serde_json::from_slice::<Value>(data) else { return };
    // Of an object or of an array serde reads a struct.
    assert!(state.is_object() || state.is_array(), "{state}");
    let generations = state["generations"].as_array().into_iter().flatten();
    let numbers =
        generations.flat_map(|one| ["id", "since", "configuration"].map(|name| &one[name]));
    for number in numbers.chain([&state["next"]]).filter(|number| !number.is_null()) {
        assert!(number.as_u64().is_some_and(|number| number <= LAST), "{number}");
    }
}

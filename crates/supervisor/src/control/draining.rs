//! Older generations that a client waits for (`reload --wait drained`), and the fate of their
//! connections.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::generation::GenerationId;
use tokio::sync::Notify;

use crate::control::Answer;
use crate::replies::Drained;

/// The older generations of one reload.
#[derive(Debug, Default)]
pub(crate) struct Draining {
    left: RefCell<BTreeSet<GenerationId>>,
    idle_closed: Cell<u64>,
    cut: Cell<u64>,
    gone: Notify,
}

impl Draining {
    /// Starts with the generations `left`, and `cut` connections cut since the reload began.
    pub(crate) fn new(left: BTreeSet<GenerationId>, cut: u64) -> Rc<Self> {
        Rc::new(Self { left: RefCell::new(left), cut: Cell::new(cut), ..Self::default() })
    }

    /// Waits until these generations are gone, for `limit` at most, and adds the result to the
    /// answer.
    pub(crate) async fn answer(&self, mut answer: serde_json::Value, limit: Duration) -> Answer {
        let all_gone = async {
            loop {
                let next = self.gone.notified();
                if self.left.borrow().is_empty() {
                    return;
                }
                next.await;
            }
        };
        // `left` shows whether it was in time.
        let _ = bindonce_sys::patience::timeout(limit, all_gone).await;
        let left = self.left.borrow().iter().map(|id| id.0).collect();
        let drained = Drained { left, idle_closed: self.idle_closed.get(), cut: self.cut.get() };
        if let (Some(members), Ok(drained)) =
            (answer.as_object_mut(), serde_json::to_value(drained))
        {
            members.insert("drained".to_owned(), drained);
        }
        Ok(answer)
    }

    /// Whether any client still waits for it.
    pub(crate) fn is_awaited(self: &Rc<Self>) -> bool {
        Rc::strong_count(self) > 1
    }

    /// A generation is gone.
    pub(crate) fn gone(&self, id: GenerationId) {
        self.left.borrow_mut().remove(&id);
        self.gone.notify_waiters();
    }

    /// Counts closed idle connections of a generation.
    pub(crate) fn idle_closed(&self, id: GenerationId, count: u64) {
        if self.left.borrow().contains(&id) {
            self.idle_closed.update(|before| before + count);
        }
    }

    /// Counts connections that end with a generation.
    pub(crate) fn cut(&self, id: GenerationId, count: u64) {
        if self.left.borrow().contains(&id) {
            self.cut.update(|before| before + count);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn tells_what_became_of_those_that_are_waited_for() {
        let [one, two, other] = [1, 2, 3].map(GenerationId);
        let draining = Draining::new([one, two].into(), 5);
        draining.idle_closed(one, 20);
        draining.idle_closed(other, 7);
        draining.gone(one);
        let told = draining.answer(json!({"generation": 4}), Duration::ZERO).await.expect("told");
        let left = json!({"left": [2], "idle_closed": 20, "cut": 5});
        assert_eq!(told, json!({"generation": 4, "drained": left}));
        draining.cut(two, 3);
        let waits = draining.answer(json!({}), Duration::from_secs(60));
        let ends = async { draining.gone(two) };
        let (told, ()) = tokio::join!(waits, ends);
        assert_eq!(
            told.expect("told"),
            json!({"drained": {"left": [], "idle_closed": 20, "cut": 8}})
        );
    }
}

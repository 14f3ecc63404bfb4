//! Pages that are made one at a time. One page serves all requests that came before it was begun.
//! The next page waits long enough that pages of one kind take at most a tenth of the time. So
//! repeated requests delay nothing else.

use std::cell::Cell;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

/// The longest rest between two pages.
const REST: Duration = Duration::from_secs(1);

/// Pages of one kind.
#[derive(Debug, Default)]
pub struct Paced {
    last: Mutex<Last>,
    /// The number of requests that wait for a page.
    waiting: Cell<usize>,
}

/// The page that was made last.
#[derive(Debug, Default)]
struct Last {
    /// When the page was begun, and its text, while a request waits that it can answer.
    page: Option<(Instant, String)>,
    /// When the next page may be begun.
    rested: Option<Instant>,
}

/// A request that waits for a page, until this is dropped.
struct Waits<'a>(&'a Cell<usize>);

impl<'a> Waits<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Paced {
    /// A page from `make` that is not older than this call.
    pub async fn page<F: Future<Output = String>>(&self, make: impl FnOnce() -> F) -> String {
        let asked = Instant::now();
        let waits = Waits::new(&self.waiting);
        let mut last = self.last.lock().await;
        drop(waits);
        let (begun, text) = match last.page.take() {
            Some((begun, text)) if begun >= asked => (begun, text),
            _ => {
                if let Some(rested) = last.rested {
                    sleep_until(rested).await;
                }
                let begun = Instant::now();
                let text = make().await;
                last.rested = Some(Instant::now() + (begun.elapsed() * 9).min(REST));
                (begun, text)
            }
        };
        last.page = (self.waiting.get() > 0).then(|| (begun, text.clone()));
        text
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_page_serves_all_who_wait_and_is_not_kept() {
        let pages = Paced::default();
        let made = Cell::new(0);
        let ask = || {
            pages.page(|| async {
                made.set(made.get() + 1);
                yield_now().await;
                made.get().to_string()
            })
        };
        // The first page is begun before the others ask.
        let (first, second, third) = tokio::join!(ask(), ask(), ask());
        assert_eq!(second, third, "one page for both");
        assert_ne!(first, second, "not older than the question");
        let rest = Duration::from_millis(50);
        let asked = Instant::now();
        {
            let mut last = pages.last.lock().await;
            assert!(last.page.is_none() && last.rested.is_some());
            last.rested = Some(asked + rest);
        }
        ask().await;
        assert!(asked.elapsed() >= rest, "the page before is paid for first");
    }
}

//! Waits of tokio with a limit that counts only the time in which this process runs
//! ([`bindonce_core::patience`]).

use std::pin::pin;
use std::time::{Duration, Instant};

pub use bindonce_core::patience::{LAST_LOOK, Late, Patience};

/// As [`tokio::time::timeout`], but the limit applies to the time in which this process runs.
///
/// # Errors
/// If the work is not done in that time.
pub async fn timeout<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, Late> {
    let work = pin!(work);
    within(&mut Patience::new(limit), work).await
}

/// The same, in what is left of a limit. A limit that is over gives no other look.
///
/// # Errors
/// As [`timeout`].
pub async fn within<T>(patience: &mut Patience, work: impl Future<Output = T>) -> Result<T, Late> {
    let mut work = pin!(work);
    while let Some(wait) = patience.next_wait(Instant::now()) {
        if let Ok(done) = tokio::time::timeout(wait, &mut work).await {
            return Ok(done);
        }
    }
    Err(Late)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::task::Poll;

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn it_is_over_when_the_limit_is_and_not_when_the_process_was_stopped() {
        let (limit, begun) = (Duration::from_millis(50), Instant::now());
        assert!(timeout(limit, std::future::pending::<()>()).await.is_err());
        assert!(begun.elapsed() >= limit);
        assert_eq!(timeout(limit, async { 7 }).await.expect("done"), 7);
        assert!(timeout(Duration::ZERO, std::future::pending::<()>()).await.is_err());
        // Time passes without a check, as while the process is stopped.
        let limit = Duration::from_secs(2);
        let work = async {
            for _ in 0..10 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let (done, ()) = tokio::join!(timeout(limit, work), async {
            sleep(Duration::from_millis(20)).await;
            std::thread::sleep(limit + Duration::from_millis(200));
        });
        done.expect("it has had less than its limit");
    }

    /// What has come while the process was stopped is known to the runtime only after it has asked
    /// the kernel.
    #[tokio::test(flavor = "current_thread")]
    async fn after_the_limit_the_kernel_is_asked_once_more() {
        // As long as one part.
        let (limit, begun, looks) = (Duration::from_millis(5), Instant::now(), Cell::new(0));
        let work = std::future::poll_fn(|_| {
            looks.set(looks.get() + u32::from(begun.elapsed() >= limit));
            // The first of these looks ends the limit, the second begins the last wait.
            if looks.get() == 3 { Poll::Ready(()) } else { Poll::Pending }
        });
        timeout(limit, work).await.expect("it is there");
    }
}

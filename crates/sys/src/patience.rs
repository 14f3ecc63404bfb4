//! Waiting with a limit that counts only the time in which this process could run. While it is stopped (SIGSTOP, a frozen
//! container, a machine that sleeps) its threads do nothing either, and what others have answered meanwhile is not read: the first look
//! after it must not be the one that finds the time over.

use std::pin::pin;
use std::time::Duration;

use tokio::time::error::Elapsed;

/// A limit is counted in so many parts, of which one is lost to each stop.
const PARTS: u32 = 10;
/// No part is longer.
const LONGEST: Duration = Duration::from_secs(1);
/// Nor shorter.
const SHORTEST: Duration = Duration::from_millis(1);

/// As [`tokio::time::timeout`], for a limit on the time in which this process runs.
///
/// # Errors
/// If the work is not done in that time.
pub async fn timeout<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, Elapsed> {
    let part = (limit / PARTS).clamp(SHORTEST, LONGEST);
    let mut work = pin!(work);
    let mut left = limit;
    loop {
        let now = left.min(part);
        left -= now;
        match tokio::time::timeout(now, &mut work).await {
            Err(_) if !left.is_zero() => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn it_is_over_when_the_limit_is_and_not_when_the_process_was_stopped() {
        let (limit, begun) = (Duration::from_millis(50), Instant::now());
        assert!(timeout(limit, std::future::pending::<()>()).await.is_err());
        assert!(begun.elapsed() >= limit);
        assert_eq!(timeout(limit, async { 7 }).await.expect("done"), 7);
        assert!(timeout(Duration::ZERO, std::future::pending::<()>()).await.is_err());
        // Time passes in which nothing is looked at, as while it is stopped.
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
}

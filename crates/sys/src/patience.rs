//! A time limit that counts only the time in which this process can run. While the process is
//! stopped (SIGSTOP, a frozen container, a machine that sleeps) its threads do nothing, and answers
//! stay unread: the first check afterwards must not find the time over.

use std::pin::pin;
use std::time::Duration;

use tokio::time::error::Elapsed;

/// A limit is counted in this many parts; each stop costs at most one of them.
const PARTS: u32 = 10;
/// The longest part.
const LONGEST: Duration = Duration::from_secs(1);
/// The shortest part.
const SHORTEST: Duration = Duration::from_millis(1);

/// As [`tokio::time::timeout`], but the limit applies to the time in which this process runs.
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
}

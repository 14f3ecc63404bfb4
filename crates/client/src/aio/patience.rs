//! Waits with a limit that counts only the time in which this process runs
//! ([`bindonce_core::patience`]). The daemons have the same in `bindonce-sys`, which this library
//! does not use.

use std::pin::pin;
use std::time::{Duration, Instant};

use bindonce_core::patience::{Late, Patience};

/// As [`tokio::time::timeout`], without the time in which this process is stopped.
pub(crate) async fn timeout<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, Late> {
    let work = pin!(work);
    within(&mut Patience::new(limit), work).await
}

/// The same, in what is left of a limit.
pub(crate) async fn within<T>(
    patience: &mut Patience,
    work: impl Future<Output = T>,
) -> Result<T, Late> {
    let mut work = pin!(work);
    while let Some(wait) = patience.next_wait(Instant::now()) {
        if let Ok(done) = tokio::time::timeout(wait, &mut work).await {
            return Ok(done);
        }
    }
    Err(Late)
}

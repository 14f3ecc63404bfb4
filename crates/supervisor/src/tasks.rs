//! Tasks of this thread.

use std::pin::Pin;

use tracing::Instrument as _;

/// Runs a task on this thread, in whose log lines the service is named too.
pub(crate) fn spawn<T: 'static>(
    task: impl Future<Output = T> + 'static,
) -> tokio::task::JoinHandle<T> {
    // Boxed: tokio's part of a task is built once, and not for each kind of them.
    let task: Pin<Box<dyn Future<Output = T>>> = Box::pin(task);
    tokio::task::spawn_local(task.in_current_span())
}

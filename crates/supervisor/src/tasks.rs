//! Tasks of this thread.

use std::pin::Pin;

use tracing::Instrument as _;

/// Runs a task on this thread; its log lines name the service.
pub(crate) fn spawn<T: 'static>(
    task: impl Future<Output = T> + 'static,
) -> tokio::task::JoinHandle<T> {
    // Boxed: tokio's part of a task is compiled once, not once for each kind of task.
    let task: Pin<Box<dyn Future<Output = T>>> = Box::pin(task);
    tokio::task::spawn_local(task.in_current_span())
}

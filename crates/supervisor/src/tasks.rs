//! Tasks of this thread.

use tracing::Instrument as _;

/// Runs a task on this thread, in whose log lines the service is named too.
pub(crate) fn spawn<T: 'static>(
    task: impl Future<Output = T> + 'static,
) -> tokio::task::JoinHandle<T> {
    tokio::task::spawn_local(task.in_current_span())
}

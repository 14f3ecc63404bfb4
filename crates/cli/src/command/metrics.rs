//! The value of `--metrics`, for the broker and for a supervisor.

use bindonce_core::error::Invalid;
use bindonce_core::listener::Listener;

/// Parses a listener that takes connections.
pub(crate) fn listener(text: &str) -> Result<Listener, String> {
    let listener: Listener = text.parse().map_err(|error: Invalid| error.to_string())?;
    if listener.address.listens() {
        return Ok(listener);
    }
    Err("metrics are scraped over a connection: give a TCP address or a UNIX path".into())
}

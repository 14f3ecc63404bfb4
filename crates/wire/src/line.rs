//! Writes messages: JSON on a line of its own.

use serde::Serialize;

/// A notification with one parameter, ending in a line end.
pub(crate) fn notification<T: Serialize>(method: &str, param: &T) -> serde_json::Result<Vec<u8>> {
    #[derive(Serialize)]
    struct Envelope<'a, T> {
        jsonrpc: &'static str,
        method: &'a str,
        params: [&'a T; 1],
    }
    line(&Envelope { jsonrpc: "2.0", method, params: [param] })
}

/// A value, ending in a line end.
pub(crate) fn line<T: Serialize>(value: &T) -> serde_json::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    Ok(text)
}

//! The answers of the example servers, written by hand where no HTTP library does it.

use bindonce::Generation;

/// Whether the head of a request is complete.
pub(crate) fn is_complete(head: &[u8]) -> bool {
    head.windows(4).any(|window| window == b"\r\n\r\n")
}

/// A whole HTTP response that names the generation and its pid.
pub(crate) fn response(generation: &Generation) -> Vec<u8> {
    let (number, pid) = (generation.number(), std::process::id());
    let body = format!("generation {number}, pid {pid}\n");
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\nX-Generation: {number}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

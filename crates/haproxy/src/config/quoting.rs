//! Bytes of a configuration written so that haproxy reads them back, or so that a person can read them.

/// A word in double quotes that reads back as `value`, on one line.
pub(super) fn quoted(value: &[u8]) -> Vec<u8> {
    let mut out = vec![b'"'];
    escape_into(&mut out, value);
    out.push(b'"');
    out
}

/// Appends `value`, escaped for the inside of double quotes.
pub(super) fn escape_into(out: &mut Vec<u8>, value: &[u8]) {
    for &byte in value {
        match byte {
            b'"' | b'\\' | b'$' => out.extend([b'\\', byte]),
            b'\n' => out.extend(b"\\n"),
            b'\r' => out.extend(b"\\r"),
            _ => out.push(byte),
        }
    }
}

/// Bytes from a file or a variable as a person can read them in a message.
pub(super) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    for c in text.trim().chars().take(200) {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

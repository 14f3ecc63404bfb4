//! Escapes bytes of a configuration for haproxy to read back, or for a person to read.

/// A word in double quotes, on one line, that haproxy reads back as `value`.
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

/// Bytes from a file or a variable, made printable for a message: control characters escaped, 200
/// characters at most.
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

//! JSON text by hand, for what is written by the thousand in one request: the entries of a reply
//! and the records of a manifest. Everything else goes through serde.

/// Appends a JSON string with its quotes, as `serde_json` would.
pub fn string(text: &mut Vec<u8>, value: &str) {
    // No early end: so the compiler looks at many bytes at once.
    let plain = |byte: u8| (byte >= b' ') & (byte != b'"') & (byte != b'\\');
    if value.bytes().fold(true, |all, byte| all & plain(byte)) {
        text.push(b'"');
        text.extend_from_slice(value.as_bytes());
        text.push(b'"');
    } else {
        // Writing text to a vector does not fail.
        let _ = serde_json::to_writer(text, value);
    }
}

/// Appends a number.
pub fn number(text: &mut Vec<u8>, value: u64) {
    // Writing a number to a vector does not fail.
    let _ = serde_json::to_writer(text, &value);
}

/// Appends `true` or `false`.
pub fn truth(text: &mut Vec<u8>, value: bool) {
    text.extend_from_slice(if value { &b"true"[..] } else { b"false" });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn text_is_as_serde_writes_it(value: String, count: u64, said: bool) {
            let mut text = Vec::new();
            string(&mut text, &value);
            number(&mut text, count);
            truth(&mut text, said);
            let expected = format!("{}{count}{said}", serde_json::Value::from(value));
            prop_assert_eq!(text, expected.into_bytes());
        }
    }
}

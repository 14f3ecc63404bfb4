//! The file in which a broker and a supervisor keep their events.

/// Reads a file of events. Damaged lines are passed over; the others are written and read again as the same.
pub(crate) fn events(data: &[u8]) {
    let read = bindonce_daemon::parse(data);
    let mut text = Vec::new();
    for event in &read {
        text.extend(serde_json::to_vec(event).expect("an event is written"));
        text.push(b'\n');
    }
    assert_eq!(bindonce_daemon::parse(&text), read);
    // What is cut off anywhere loses the event that was cut, and no other.
    let cut = text.len().saturating_sub(1) / 2;
    let left = bindonce_daemon::parse(text.get(..cut).unwrap_or_default());
    assert_eq!(read.get(..left.len()), Some(left.as_slice()));
}

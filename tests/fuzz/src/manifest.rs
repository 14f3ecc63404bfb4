//! What a broker reads of its predecessor.

use bindonce_wire::manifest::Manifest;

/// Reads a manifest. What is accepted is read again as the same when it is written anew.
pub(crate) fn manifest(data: &[u8]) {
    let Ok(manifest) = Manifest::decode(data) else { return };
    for entry in &manifest.listeners {
        // Any text may stand there; what is a listener has a key.
        if let Ok(listener) = entry.listener() {
            let _ = listener.key();
        }
        let _ = entry.bound();
    }
    let text = manifest.encode();
    let again = Manifest::decode(&text).expect("what was written is read");
    assert_eq!(again.listeners, manifest.listeners);
    assert_eq!(again.connections, manifest.connections);
    assert_eq!(again.encode(), text);
}

//! The `cluster-secret` that a supervisor keeps for its service.

/// Reads a kept secret. What is accepted is one word of haproxy's configuration, and is read again as the same.
pub(crate) fn secret(data: &[u8]) {
    let Some(secret) = bindonce_supervisor::whole_secret(data.to_vec()) else { return };
    assert!(secret.len() == 32 && secret.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    assert_eq!(secret.as_bytes(), data);
}

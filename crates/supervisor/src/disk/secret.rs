//! The `cluster-secret` of a service whose configuration has none. haproxy derives from it the
//! tokens that it gives to QUIC clients. Without one, haproxy makes a new secret at each start, and
//! the next generation rejects the earlier tokens.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use bindonce_daemon::state;

/// The length: 128 bits in hexadecimal digits.
const LENGTH: usize = 32;

/// The secret stored at `path`, readable by its owner alone; a new one if there is none. It must
/// never be logged.
///
/// # Errors
/// Those of reading the kernel's random numbers.
pub(crate) fn cluster_secret(path: &Path) -> io::Result<String> {
    let kept = state::read(path, LENGTH as u64).ok().flatten();
    if let Some(secret) = kept.and_then(whole) {
        return Ok(secret);
    }
    let mut bytes = [0; LENGTH / 2];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let secret: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    if let Err(error) = state::replace(path, secret.as_bytes()) {
        tracing::warn!(
            path = %path.display(),
            %error,
            "the cluster-secret cannot be kept: the next generation has another, and resets \
             HTTP/3 connections whose clients it cannot know"
        );
    }
    Ok(secret)
}

/// The secret in a file, if it is valid: it becomes a line of haproxy's configuration.
pub fn whole(bytes: Vec<u8>) -> Option<String> {
    let digits = bytes.len() == LENGTH && bytes.iter().all(u8::is_ascii_hexdigit);
    String::from_utf8(bytes).ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn it_is_made_once_and_kept_for_its_owner() {
        let directory =
            std::env::temp_dir().join(format!("bindonce-secret-{}", std::process::id()));
        fs::create_dir(&directory).expect("directory");
        let path = directory.join("secret");
        let first = cluster_secret(&path).expect("a secret");
        assert_eq!(cluster_secret(&path).expect("the same"), first);
        let mode = fs::metadata(&path).expect("the file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(&path, "").expect("write");
        let second = cluster_secret(&path).expect("another");
        assert!(second.len() == LENGTH && second != first);
        // A secret is made even where it cannot be stored.
        assert!(cluster_secret(&directory.join("none/secret")).is_ok());
        fs::remove_dir_all(&directory).expect("remove");
    }
}

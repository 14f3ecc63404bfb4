//! Tells the service manager how things are (sd_notify(3)), without its library.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends `state` (such as `READY=1` or `STATUS=...`) to the socket that
/// `$NOTIFY_SOCKET` names, a path or `@` and an abstract name. False if there
/// is none, which is the case outside a service manager.
///
/// # Errors
/// Those of sending a datagram; an address that is neither form is `InvalidInput`.
pub fn send(state: &str) -> io::Result<bool> {
    let Some(target) = env::var_os("NOTIFY_SOCKET") else {
        return Ok(false);
    };
    let address = address(target.as_bytes())?;
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(true)
}

fn address(target: &[u8]) -> io::Result<SocketAddr> {
    match target {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(target)),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_a_path_or_an_abstract_name() {
        assert!(address(b"/run/systemd/notify").expect("path").as_pathname().is_some());
        assert_eq!(address(b"@a").expect("abstract").as_abstract_name(), Some(&b"a"[..]));
        assert!(address(b"vsock:1").is_err());
    }
}

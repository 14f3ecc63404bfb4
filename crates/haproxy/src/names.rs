//! Names of UNIX sockets: those that haproxy binds, and the private admin sockets.

/// The path at which a bound socket appears, and the pid of the process that bound it. haproxy
/// binds `PATH.PID.tmp` and renames it; the kernel keeps the first name. None for any other path.
pub fn renamed(bound: &str) -> Option<(&str, u32)> {
    let (path, pid) = bound.strip_suffix(".tmp")?.rsplit_once('.')?;
    // haproxy writes plain digits only.
    let digits = !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit());
    Some((path, pid.parse().ok().filter(|_| digits)?))
}

/// File name of a generation's private admin socket, in the directory of its service.
pub fn admin_socket(generation: u64) -> String {
    format!("admin-{generation}.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_name_leads_to_the_path() {
        assert_eq!(renamed("/run/app.sock.1204.tmp"), Some(("/run/app.sock", 1204)));
        let others = [
            "/run/app.sock",
            "/run/app.tmp",
            "/run/a.b.tmp",
            "/x.12.tmp.3",
            "/run/web..tmp",
            "/a.+8.tmp",
        ];
        for path in others {
            assert_eq!(renamed(path), None, "{path}");
        }
    }
}

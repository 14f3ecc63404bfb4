//! bind(2) that can create a socket's file in one directory alone.
//!
//! getsockname(2) returns exactly the path that was given to bind(2), and a program that knows its
//! sockets by path needs that path, which the kernel resolves again. If another user can exchange a
//! directory on the way, a separate thread does the bind and ends. Landlock (landlock(7)) prevents
//! that thread from creating a socket anywhere but beneath the opened directory.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::thread;

use nix::errno::Errno;
use nix::libc;
use socket2::{SockAddr, Socket};

use crate::directory::Directory;

/// LANDLOCK_ACCESS_FS_MAKE_SOCK and LANDLOCK_RULE_PATH_BENEATH (linux/landlock.h).
const MAKE_SOCK: u64 = 1 << 9;
const PATH_BENEATH: libc::c_int = 1;

/// struct landlock_path_beneath_attr, which is packed.
#[repr(C, packed)]
struct Beneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// Binds `socket` to `path`, so that its file is created beneath `directory` or not at all. On a
/// kernel without Landlock the bind goes through the directory's descriptor: as safe, but the
/// socket's name is then that path in /proc.
pub(super) fn bind(socket: &Socket, directory: &Directory, path: &Path) -> io::Result<()> {
    let ruleset = match ruleset(directory) {
        Ok(ruleset) => ruleset,
        Err(Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM) => {
            let name = path.file_name().ok_or(Errno::EISDIR)?;
            let way = format!("/proc/self/fd/{}", directory.fd.as_raw_fd());
            return socket.bind(&SockAddr::unix(Path::new(&way).join(name))?);
        }
        Err(errno) => return Err(errno.into()),
    };
    let address = SockAddr::unix(path)?;
    thread::scope(|scope| {
        let bind = || {
            nix::sys::prctl::set_no_new_privs()?;
            // SAFETY: the call takes a descriptor and a number, and no pointer. It restricts this
            // thread alone, which ends below.
            let done = unsafe {
                libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32)
            };
            Errno::result(done)?;
            socket.bind(&address)
        };
        let thread = thread::Builder::new().name("bind".to_owned()).spawn_scoped(scope, bind)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A ruleset that allows a thread to create sockets only beneath `directory`.
fn ruleset(directory: &Directory) -> Result<OwnedFd, Errno> {
    // The first version of struct landlock_ruleset_attr: the handled access rights.
    let handled: u64 = MAKE_SOCK;
    // SAFETY: the pointer and the size are those of `handled`, which the kernel only reads.
    let made = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const handled,
            mem::size_of_val(&handled),
            0_u32,
        )
    };
    let made = i32::try_from(Errno::result(made)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
    let ruleset = unsafe { OwnedFd::from_raw_fd(made) };
    let beneath = Beneath { allowed_access: MAKE_SOCK, parent_fd: directory.fd.as_raw_fd() };
    // SAFETY: the pointer is to the struct that the kernel expects for this kind of rule and only
    // reads; both descriptors are open.
    let added = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_raw_fd(),
            PATH_BENEATH,
            &raw const beneath,
            0_u32,
        )
    };
    Errno::result(added)?;
    Ok(ruleset)
}

//! bind(2) that can make a socket's file in one directory alone.
//!
//! The name that getsockname(2) gives is the very text that bind(2) was given, so a program that
//! knows its sockets by their paths needs that text, and the kernel resolves it again. Where another
//! user can exchange a directory on the way, a thread that Landlock (landlock(7)) keeps from making
//! a socket anywhere but beneath the directory that was opened binds it, and ends.

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

/// Binds `socket` to `path`, so that its file is beneath `directory` or nowhere. Where the kernel
/// has no Landlock the path goes by the directory's descriptor: as safe, but that is then the
/// name of the socket.
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
            // SAFETY: it takes a descriptor and a number, and no pointer. It holds for this thread,
            // which ends below.
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

/// What allows a thread to make sockets beneath `directory` alone.
fn ruleset(directory: &Directory) -> Result<OwnedFd, Errno> {
    // struct landlock_ruleset_attr, as long as its first version: what is handled.
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
    // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
    let ruleset = unsafe { OwnedFd::from_raw_fd(made) };
    let beneath = Beneath { allowed_access: MAKE_SOCK, parent_fd: directory.fd.as_raw_fd() };
    // SAFETY: the pointer is to what the kernel expects with this kind of rule, and only reads; both
    // descriptors are open.
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

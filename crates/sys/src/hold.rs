//! Holds a new program at its readiness signal, without a race (seccomp_unotify(2)).
//!
//! haproxy that is given `-sf PID` calls kill(PID, SIGUSR1) when it has bound everything and
//! before it accepts anything. A supervisor that answers this signal with SIGSTOP comes late now
//! and then, and in between two generations accept. So the shim asks the kernel, before it
//! becomes the program, to tell the supervisor of exactly this call instead of doing it
//! ([`install`]): the program stays inside kill() until the supervisor lets it go on
//! ([`Hold::release`]), to which the call has succeeded then; the signal itself is not sent.
//!
//! Only that one call is looked at: any other system call, any other signal, and SIGUSR1 to anybody
//! else pass, from a table of the kernel (Linux 5.11), which costs about 40 ns a call. Nothing
//! depends on the supervisor living on: when its last descriptor closes, kill() fails with ENOSYS,
//! and haproxy, to which telling the older process is a courtesy, continues by itself. Where the
//! kernel (before 5.0) or a container's own filter refuses, nothing is held; the supervisor then
//! gets no descriptor, and has to stop the process by SIGSTOP as soon as it hears of it.
//!
//! What it means for the program: its filter cannot be taken off again, and is inherited by
//! its children. A process without CAP_SYS_ADMIN must also give up irrevocably that executing a file
//! gives it rights (prctl(2) PR_SET_NO_NEW_PRIVS). haproxy does that by itself since 2.2, unless
//! its configuration says `insecure-setuid-wanted`; and it is not done to a program that gains
//! rights from its own file (set-user-ID or file capabilities).

use std::mem::offset_of;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc::{self, seccomp_data, sock_filter};

use crate::error::Error;

#[cfg(feature = "tokio")]
mod supervisor;

#[cfg(feature = "tokio")]
pub use supervisor::Hold;

/// How the kernel names this architecture in a filter (linux/audit.h).
const ARCHITECTURE: Option<u32> = if cfg!(all(target_arch = "x86_64", target_pointer_width = "64"))
{
    Some(0xC000_003E)
} else if cfg!(all(target_arch = "aarch64", target_endian = "little")) {
    Some(0xC000_00B7)
} else {
    None
};

/// Spares the process the mitigations of speculative execution that a filter of an untrusted
/// program would bring, and lets only signals that end it interrupt a call that is held.
const FLAGS: libc::c_ulong = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
    | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER
    | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;

/// Lets `supervisor` hold this thread, and what it executes, when it sends SIGUSR1 to it. Gives the
/// descriptor for [`Hold::new`], which is the supervisor's alone. For a process
/// with a single thread. `no_new_privs` says whether that may be set (it cannot be unset) where the kernel
/// demands it: see the module.
///
/// # Errors
/// [`Error::Call`] if there can be no hold: `ENOTSUP` on other architectures than x86_64 and
/// aarch64, else those of seccomp(2), such as `EACCES` without the right to do it, `EBUSY` if a
/// filter above this one has a supervisor already, and whatever a container answers.
pub fn install(supervisor: i32, no_new_privs: bool) -> Result<OwnedFd, Error> {
    install_with(supervisor, no_new_privs, FLAGS)
}

fn install_with(
    supervisor: i32,
    no_new_privs: bool,
    flags: libc::c_ulong,
) -> Result<OwnedFd, Error> {
    let program = filter(supervisor).map_err(|error| Error::call("seccomp", error))?;
    // Linux 5.19 brought the last flag; without it signals interrupt the call and it starts again.
    let without = flags & !libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    let set = || match set_filter(&program, flags) {
        Err(Errno::EINVAL) => set_filter(&program, without),
        set => set,
    };
    let set = match set() {
        Err(Errno::EACCES) if no_new_privs => {
            nix::sys::prctl::set_no_new_privs()
                .map_err(|error| Error::call("prctl(PR_SET_NO_NEW_PRIVS)", error))?;
            set()
        }
        set => set,
    };
    set.map_err(|error| Error::call("seccomp", error))
}

/// The classic BPF program: kill(supervisor, SIGUSR1) is told, all else is allowed.
fn filter(supervisor: i32) -> Result<[sock_filter; 10], Errno> {
    let architecture = ARCHITECTURE.ok_or(Errno::ENOTSUP)?;
    let operation = |code: u32, skip, k| {
        // All the codes of classic BPF fit into a byte.
        #[allow(clippy::cast_possible_truncation)]
        let code = code as u16;
        sock_filter { code, jt: 0, jf: skip, k }
    };
    let load = |offset: usize| {
        // An offset within the 64 bytes of seccomp_data.
        #[allow(clippy::cast_possible_truncation)]
        let offset = offset as u32;
        operation(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, offset)
    };
    // Goes on if equal, else skips so many: to the last line, in each case.
    let unless = |value, skip| operation(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, skip, value);
    let answer = |action| operation(libc::BPF_RET | libc::BPF_K, 0, action);
    // kill() takes two ints: the kernel looks at the lower half of an argument only, which comes
    // first on both architectures.
    let argument = |number: usize| offset_of!(seccomp_data, args) + number * size_of::<u64>();
    let number = u32::try_from(libc::SYS_kill).map_err(|_| Errno::ENOTSUP)?;
    Ok([
        load(offset_of!(seccomp_data, arch)),
        unless(architecture, 7),
        load(offset_of!(seccomp_data, nr)),
        unless(number, 5),
        load(argument(0)),
        unless(supervisor.cast_unsigned(), 3),
        load(argument(1)),
        unless(libc::SIGUSR1.cast_unsigned(), 1),
        answer(libc::SECCOMP_RET_USER_NOTIF),
        answer(libc::SECCOMP_RET_ALLOW),
    ])
}

/// seccomp(2) SECCOMP_SET_MODE_FILTER, with a new listener.
fn set_filter(program: &[sock_filter], flags: libc::c_ulong) -> Result<OwnedFd, Errno> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel reads `len` instructions at `filter`, which the slice behind it has,
    // copies them during the call and writes to neither.
    let listener = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    let listener = Errno::result(listener)?;
    let listener = RawFd::try_from(listener).map_err(|_| Errno::EBADF)?;
    // SAFETY: with SECCOMP_FILTER_FLAG_NEW_LISTENER, which `flags` always has, the call gives a
    // descriptor that was opened just now, close-on-exec, and that nothing else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(listener) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_of_the_filter_leads_to_allow() {
        let Ok(filter) = filter(4711) else { return };
        let last = filter.len() - 1;
        assert_eq!(filter[last].k, libc::SECCOMP_RET_ALLOW);
        assert_eq!(filter[last - 1].k, libc::SECCOMP_RET_USER_NOTIF);
        for (at, operation) in filter.iter().enumerate().filter(|(_, o)| o.jf != 0) {
            assert_eq!(at + 1 + usize::from(operation.jf), last, "line {at}");
            assert_eq!(operation.jt, 0, "line {at}");
        }
    }
}

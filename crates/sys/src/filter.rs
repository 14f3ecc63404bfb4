//! The filter (seccomp(2)) that makes a supervisor answer a few system calls of a program, and no
//! others.
//!
//! A task can have only one filter with a supervisor (a second is `EBUSY`), and a filter cannot be
//! removed. So one filter covers all calls to intercept: kill(supervisor, SIGUSR1), by which
//! haproxy signals readiness ([`crate::hold`]), and bind(2) and listen(2) ([`crate::intercept`]),
//! for haproxy bind(2) alone; for UNIX paths also unlink(2). All other calls pass through a table
//! of the kernel (Linux 5.11).
//!
//! bind and listen have other numbers for programs of another word size on the same kernel: i386
//! (which also has them behind socketcall(2)) and x32 beside x86-64, 32-bit ARM beside aarch64. The
//! filter covers these as well.

use std::mem::offset_of;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc::{self, seccomp_data, sock_filter};

use crate::error::Error;

/// The calls that a supervisor answers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watched {
    /// kill(this pid, SIGUSR1).
    pub(crate) readiness: Option<i32>,
    /// bind(2).
    pub(crate) binds: bool,
    /// listen(2).
    pub(crate) listens: bool,
    /// unlink(2), with which programs remove the file of a UNIX socket before they bind it, and
    /// when they end.
    pub(crate) unlinks: bool,
}

impl Watched {
    fn asks(&self, number: Number) -> bool {
        match number {
            Number::Bind | Number::BindInMemory => self.binds,
            Number::Listen | Number::ListenInMemory => self.listens,
            Number::Unlink | Number::UnlinkAt => self.unlinks,
            Number::Kill => self.readiness.is_some(),
        }
    }
}

/// The architecture ids in a filter (linux/audit.h).
const X86_64: u32 = 0xC000_003E;
const I386: u32 = 0x4000_0003;
const AARCH64: u32 = 0xC000_00B7;
const ARM: u32 = 0x4000_0028;

/// Flag in the system call number of an x32 program (asm/unistd.h).
const X32: u32 = 0x4000_0000;

/// The architecture of this binary.
const ARCHITECTURE: Option<u32> = if cfg!(all(target_arch = "x86_64", target_pointer_width = "64"))
{
    Some(X86_64)
} else if cfg!(all(target_arch = "aarch64", target_endian = "little")) {
    Some(AARCH64)
} else {
    None
};

/// An intercepted call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Number {
    /// bind(2), with its arguments in the registers.
    Bind,
    /// listen(2), with its arguments in the registers.
    Listen,
    /// bind(2) behind socketcall(2): its arguments are in memory.
    BindInMemory,
    /// listen(2) behind socketcall(2).
    ListenInMemory,
    /// unlink(2).
    Unlink,
    /// unlinkat(2).
    UnlinkAt,
    /// kill(2): the only other call in the filter.
    Kill,
}

/// The calls that create a listener or remove its file: architecture, number, and the first
/// argument if it tells them apart.
const SOCKETS: [(u32, u32, Option<u32>, Number); 17] = [
    (X86_64, 49, None, Number::Bind),
    (X86_64, 50, None, Number::Listen),
    (X86_64, 87, None, Number::Unlink),
    (X86_64, 263, None, Number::UnlinkAt),
    (X86_64, X32 | 49, None, Number::Bind),
    (X86_64, X32 | 50, None, Number::Listen),
    (X86_64, X32 | 87, None, Number::Unlink),
    (X86_64, X32 | 263, None, Number::UnlinkAt),
    (I386, 10, None, Number::Unlink),
    (I386, 301, None, Number::UnlinkAt),
    (I386, 361, None, Number::Bind),
    (I386, 363, None, Number::Listen),
    (I386, 102, Some(2), Number::BindInMemory),
    (I386, 102, Some(4), Number::ListenInMemory),
    (AARCH64, 35, None, Number::UnlinkAt),
    (AARCH64, 200, None, Number::Bind),
    (AARCH64, 201, None, Number::Listen),
];

/// The same for 32-bit ARM programs, on a kernel that supports them beside aarch64.
const ARM_SOCKETS: [(u32, u32, Option<u32>, Number); 4] = [
    (ARM, 10, None, Number::Unlink),
    (ARM, 282, None, Number::Bind),
    (ARM, 284, None, Number::Listen),
    (ARM, 328, None, Number::UnlinkAt),
];

/// Identifies the call that the kernel reports.
pub(crate) fn number(call: &seccomp_data) -> Number {
    let all = SOCKETS.iter().chain(&ARM_SOCKETS);
    let mut of_this = all.filter(|(architecture, number, argument, _)| {
        // The number is an int, in which x32 has a flag bit.
        (*architecture, *number) == (call.arch, call.nr.cast_unsigned())
            && argument.is_none_or(|argument| u64::from(argument) == call.args[0])
    });
    of_this.next().map_or(Number::Kill, |(.., number)| *number)
}

/// Spares the process the mitigations of speculative execution that a filter of an untrusted
/// program would enable, and lets only fatal signals interrupt a call that waits for its answer.
const FLAGS: libc::c_ulong = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
    | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER
    | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;

/// The same without the last flag, which came with Linux 5.19: without it signals interrupt the
/// call, and it restarts.
pub(crate) const INTERRUPTED: libc::c_ulong = FLAGS & !libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;

/// Makes the supervisor answer calls of this thread, and of everything that it executes and starts.
/// Returns the descriptor on which the kernel reports them. Only for a process with a single
/// thread. `no_new_privs` says whether that attribute may be set (it cannot be unset) if the kernel
/// demands it.
///
/// # Errors
/// [`Error::Call`]: `ENOTSUP` on architectures other than x86-64 and aarch64, otherwise errors from
/// seccomp(2), such as `EACCES` without the right to do it, `EBUSY` if a filter above this one has
/// a supervisor already, and whatever a container returns.
pub(crate) fn install(watched: Watched, no_new_privs: bool) -> Result<OwnedFd, Error> {
    match install_with(watched, no_new_privs, FLAGS) {
        Err(error) if error.errno() == Some(Errno::EINVAL as i32) => {
            install_with(watched, no_new_privs, INTERRUPTED)
        }
        done => done,
    }
}

pub(crate) fn install_with(
    watched: Watched,
    no_new_privs: bool,
    flags: libc::c_ulong,
) -> Result<OwnedFd, Error> {
    let program = program(watched).map_err(|error| Error::call("seccomp", error))?;
    let set = match set(&program, flags) {
        Err(Errno::EACCES) if no_new_privs => {
            nix::sys::prctl::set_no_new_privs()
                .map_err(|error| Error::call("prctl(PR_SET_NO_NEW_PRIVS)", error))?;
            set(&program, flags)
        }
        set => set,
    };
    set.map_err(|error| Error::call("seccomp", error))
}

/// The classic BPF program: the rules are independent; each falls through to the next one, and the
/// last to ALLOW.
fn program(watched: Watched) -> Result<Vec<sock_filter>, Errno> {
    let ours = ARCHITECTURE.ok_or(Errno::ENOTSUP)?;
    let mut program = Vec::new();
    if let Some(supervisor) = watched.readiness {
        let kill = u32::try_from(libc::SYS_kill).map_err(|_| Errno::ENOTSUP)?;
        let arguments = [Some(supervisor.cast_unsigned()), Some(libc::SIGUSR1.cast_unsigned())];
        rule(&mut program, ours, kill, &arguments);
    }
    let family = if ours == X86_64 { [X86_64, I386] } else { [AARCH64, ARM] };
    for (architecture, number, argument, call) in SOCKETS.iter().chain(&ARM_SOCKETS) {
        if family.contains(architecture) && watched.asks(*call) {
            rule(&mut program, *architecture, *number, &[*argument]);
        }
    }
    program.push(operation(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW));
    Ok(program)
}

/// A rule for one call. For int arguments the kernel uses only the lower half, which comes first on
/// all these architectures.
fn rule(program: &mut Vec<sock_filter>, architecture: u32, number: u32, arguments: &[Option<u32>]) {
    let argument = |at: usize| offset_of!(seccomp_data, args) + at * size_of::<u64>();
    let mut wanted = vec![
        (offset_of!(seccomp_data, arch), architecture),
        (offset_of!(seccomp_data, nr), number),
    ];
    let arguments = arguments.iter().enumerate();
    wanted.extend(arguments.filter_map(|(at, value)| Some((argument(at), (*value)?))));
    for (index, (offset, value)) in wanted.iter().enumerate() {
        // Offsets lie within the 64 bytes of seccomp_data.
        let offset = u32::try_from(*offset).unwrap_or_default();
        program.push(operation(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, offset));
        // Skips the rest of this rule: the remaining pairs, and its answer.
        let skip = u8::try_from(2 * (wanted.len() - index - 1) + 1).unwrap_or_default();
        program.push(operation(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, skip, *value));
    }
    program.push(operation(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_USER_NOTIF));
}

/// An instruction. A jump skips `skip` instructions if its condition is false.
fn operation(code: u32, skip: u8, k: u32) -> sock_filter {
    // All the codes of classic BPF fit into a byte.
    sock_filter { code: u16::try_from(code).unwrap_or_default(), jt: 0, jf: skip, k }
}

/// seccomp(2) SECCOMP_SET_MODE_FILTER, with a new listener.
fn set(program: &[sock_filter], flags: libc::c_ulong) -> Result<OwnedFd, Errno> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel reads `len` instructions at `filter`, which the slice behind it has,
    // copies them during the call and writes to neither.
    let listener = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    let listener = Errno::result(listener)?;
    let listener = RawFd::try_from(listener).map_err(|_| Errno::EBADF)?;
    // SAFETY: with SECCOMP_FILTER_FLAG_NEW_LISTENER, which `flags` always has, the call returns a
    // descriptor that was just opened, close-on-exec, and that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(listener) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's verdict, computed from the three instructions that the program consists of.
    fn run(program: &[sock_filter], call: &seccomp_data) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            match u32::from(code) {
                code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                    value = match k {
                        0 => call.nr.cast_unsigned(),
                        4 => call.arch,
                        // The lower half.
                        k => call.args[(k as usize - 16) / 8] as u32,
                    }
                }
                code if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => {
                    at += usize::from(if value == k { jt } else { jf });
                }
                code if code == libc::BPF_RET | libc::BPF_K => return k,
                code => panic!("code {code}"),
            }
        }
    }

    fn call(arch: u32, nr: u32, first: u64, second: u64) -> seccomp_data {
        let args = [first, second, 0, 0, 0, 0];
        seccomp_data { nr: nr.cast_signed(), arch, instruction_pointer: 0, args }
    }

    #[test]
    fn every_way_to_bind_and_listen_is_asked_about_and_nothing_else() {
        let readiness = Some(4711);
        let Ok(program) = program(Watched { readiness, binds: true, listens: true, unlinks: true })
        else {
            return;
        };
        let asked = |call: &seccomp_data| run(&program, call) == libc::SECCOMP_RET_USER_NOTIF;
        let ours = ARCHITECTURE.expect("one with a filter");
        let kill = u32::try_from(libc::SYS_kill).expect("its number");
        assert!(asked(&call(ours, kill, 4711, 10)));
        assert_eq!(number(&call(ours, kill, 4711, 10)), Number::Kill);
        assert!(!asked(&call(ours, kill, 4712, 10)) && !asked(&call(ours, kill, 4711, 15)));
        let family = if ours == X86_64 { [X86_64, I386] } else { [AARCH64, ARM] };
        let mut seen = 0;
        for arch in [X86_64, I386, AARCH64, ARM, 0x8000_0016] {
            for nr in (0..512).chain((0..512).map(|nr| X32 | nr)) {
                for first in 0..6 {
                    let call = call(arch, nr, first, 0);
                    let named = family.contains(&arch) && number(&call) != Number::Kill;
                    assert_eq!(asked(&call), named, "{arch:x} {nr} {first}");
                    seen += usize::from(named);
                }
            }
        }
        // Each number with six first arguments; two of them for socketcall.
        assert_eq!(seen, if ours == X86_64 { 12 * 6 + 2 } else { 7 * 6 });
        assert_eq!(libc::SYS_bind, if ours == X86_64 { 49 } else { 200 });
    }

    #[test]
    fn only_what_is_watched_is_asked_about() {
        let ours = ARCHITECTURE.unwrap_or_default();
        let bind = u32::try_from(libc::SYS_bind).expect("its number");
        for (binds, expected) in
            [(true, libc::SECCOMP_RET_USER_NOTIF), (false, libc::SECCOMP_RET_ALLOW)]
        {
            let watched = Watched { readiness: None, binds, listens: false, unlinks: false };
            let Ok(program) = program(watched) else { return };
            assert_eq!(run(&program, &call(ours, bind, 0, 0)), expected);
            let other = |number| u32::try_from(number).expect("its number");
            let others = [(libc::SYS_kill, 10), (libc::SYS_listen, 0), (libc::SYS_unlinkat, 0)];
            for (number, second) in others {
                let call = call(ours, other(number), 0, second);
                assert_eq!(run(&program, &call), libc::SECCOMP_RET_ALLOW);
            }
        }
    }
}

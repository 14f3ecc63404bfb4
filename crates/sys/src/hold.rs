//! Holds a new program at its readiness signal, without a race (seccomp_unotify(2)).
//!
//! With `-sf PID` haproxy calls kill(PID, SIGUSR1) when it has bound everything and before it
//! accepts anything. A supervisor that answers this signal with SIGSTOP is sometimes late, and
//! until then two generations accept. So before the shim becomes the program, it asks the kernel to
//! notify the supervisor of exactly this call instead of executing it
//! ([`crate::spawn::Intercepted::hold`]). The program stays inside kill() until the supervisor
//! releases it ([`Hold::release`]). The call then succeeds for the program, but the signal itself
//! is not sent.
//!
//! Only that one call is inspected. Other system calls, other signals, and SIGUSR1 to other
//! processes pass through a table of the kernel (Linux 5.11), which costs about 40 ns a call.
//! Nothing depends on the survival of the supervisor: when its last descriptor closes, kill() fails
//! with ENOSYS, and haproxy, which tells the older process only as a courtesy, continues by itself.
//! If the kernel (before 5.0) or a container's own filter refuses, nothing is held; the supervisor
//! then gets no descriptor, and has to stop the process by SIGSTOP as soon as it receives the
//! signal.
//!
//! Consequences for the program: the filter cannot be removed, and the program's children inherit
//! it. A process without CAP_SYS_ADMIN must also irrevocably give up gaining rights by executing a
//! file (prctl(2) PR_SET_NO_NEW_PRIVS). haproxy does that by itself since 2.2, unless its
//! configuration says `insecure-setuid-wanted`. It is not done to a program that gains rights from
//! its own file (set-user-ID or file capabilities).

mod supervisor;

pub use supervisor::Hold;

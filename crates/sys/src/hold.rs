//! Holds a new program at its readiness signal, without a race (seccomp_unotify(2)).
//!
//! haproxy that is given `-sf PID` calls kill(PID, SIGUSR1) when it has bound everything and
//! before it accepts anything. A supervisor that answers this signal with SIGSTOP comes late now
//! and then, and in between two generations accept. So the shim asks the kernel, before it
//! becomes the program, to tell the supervisor of exactly this call instead of doing it
//! ([`crate::spawn::Intercepted::hold`]): the program stays inside kill() until the supervisor lets it go on
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

mod supervisor;

pub use supervisor::Hold;

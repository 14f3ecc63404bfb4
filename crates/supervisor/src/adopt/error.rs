//! Why sockets cannot be taken, or a program cannot be ended.

use std::io;
use std::path::PathBuf;

use bindonce_core::address::Address;

/// What can go wrong in an adoption.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No haproxy answers at the stats socket.
    #[error("cannot ask the haproxy at {}", path.display())]
    StatsSocket {
        /// The path.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// haproxy hung up instead of handing sockets over.
    #[error("the haproxy at {} hands out no sockets", path.display())]
    NotExposed {
        /// The path.
        path: PathBuf,
    },
    /// The answer is not what haproxy sends.
    #[error("the answer at {} is not haproxy's: {what}", path.display())]
    Malformed {
        /// The path.
        path: PathBuf,
        /// What is wrong with the answer.
        what: &'static str,
    },
    /// There is no such process.
    #[error("there is no process {pid}")]
    NoProcess {
        /// The pid.
        pid: i32,
    },
    /// A descriptor could not be taken from the process.
    #[error("cannot take descriptor {number} of process {pid}")]
    NotTaken {
        /// The process.
        pid: i32,
        /// The number of the descriptor there.
        number: i32,
        /// The error of the system call.
        source: io::Error,
    },
    /// The listeners that its configuration names cannot be determined.
    #[error("cannot tell which listeners the configuration of process {pid} names: {why}")]
    Configuration {
        /// The process.
        pid: i32,
        /// Why.
        why: String,
    },
    /// Only haproxy is known to stop on SIGUSR1.
    #[error("process {pid} ({name}) is not haproxy")]
    NotHaproxy {
        /// The process.
        pid: i32,
        /// Its program.
        name: String,
    },
    /// Ending the process would leave an address where no other process accepts.
    #[error("nothing else serves on {address}")]
    NotServed {
        /// The address.
        address: Address,
    },
    /// Connections waiting in the process's own sockets would be reset.
    #[error(
        "{sockets} sockets of its own close with process {pid}, and the kernel does not move the \
         connections that wait in them: {why}"
    )]
    WouldReset {
        /// The process.
        pid: i32,
        /// Number of those sockets.
        sockets: usize,
        /// Why the kernel does not move the connections.
        why: String,
    },
    /// The process was told to stop and has not stopped.
    #[error("process {pid} still holds {address} after {waited}")]
    StillThere {
        /// The process.
        pid: i32,
        /// One of the addresses.
        address: Address,
        /// How long `retire` waited, in words.
        waited: String,
    },
    /// The socket belongs to a haproxy master, which has no listeners of its own.
    #[error(
        "{} is the CLI of a haproxy master (-S): the workers have the listening sockets, and a master \
         gives none away",
        path.display()
    )]
    Master {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The system could not be inspected.
    #[error(transparent)]
    System(#[from] bindonce_sys::Error),
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::StatsSocket { path, .. } => format!(
                "is {} the path of the `stats socket` line, and does haproxy run? --pid takes them \
                 from the process instead",
                path.display()
            ),
            Self::NotExposed { .. } => {
                "its `stats socket` line needs `level admin` and `expose-fd listeners`; without, \
                 --pid takes them from the process"
                    .to_owned()
            }
            Self::Malformed { .. } => "give the path of a `stats socket` of haproxy".to_owned(),
            Self::NoProcess { .. } => "`pidof haproxy` tells the pid".to_owned(),
            Self::NotTaken { .. } => "it needs root with CAP_SYS_PTRACE (in a container \
                 --cap-add SYS_PTRACE); a stats socket with `expose-fd listeners` needs neither"
                .to_owned(),
            Self::Configuration { .. } => {
                "give the command that it runs with, after --: `-- haproxy -f FILE`; or name the \
                 addresses"
                    .to_owned()
            }
            Self::NotHaproxy { .. } => {
                "stop it the way its manual says: connections in the accept queues are kept"
                    .to_owned()
            }
            Self::NotServed { .. } => {
                "start the next one first: `bindonce run -- haproxy -f FILE`".to_owned()
            }
            Self::WouldReset { .. } => {
                "run it as root on Linux 5.14 or later (net.ipv4.tcp_migrate_req); --lossy goes on \
                 all the same, and resets them"
                    .to_owned()
            }
            Self::Master { .. } => {
                "give the `stats socket` of its configuration (with `level admin` and \
                 `expose-fd listeners`), or --pid with the pid of the master"
                    .to_owned()
            }
            Self::StillThere { pid, .. } => {
                format!("`kill -TERM {pid}` ends it with its connections")
            }
            Self::System(error) => return error.hint(),
        })
    }
}

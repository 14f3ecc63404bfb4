//! Why sockets cannot be taken, or a program cannot be ended.

use std::io;
use std::path::PathBuf;

use bindonce_core::address::Address;

/// What can go wrong on the way in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody can be asked at the stats socket.
    #[error("cannot ask the haproxy at {}", path.display())]
    StatsSocket {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// haproxy hung up instead of handing sockets over.
    #[error("the haproxy at {} hands out no sockets", path.display())]
    NotExposed {
        /// The path.
        path: PathBuf,
    },
    /// What came is not what haproxy sends.
    #[error("the answer at {} is not haproxy's: {what}", path.display())]
    Malformed {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
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
        /// What the kernel said.
        source: io::Error,
    },
    /// What its configuration names cannot be told.
    #[error("cannot tell which listeners the configuration of process {pid} names: {why}")]
    Configuration {
        /// The process.
        pid: i32,
        /// Why.
        why: String,
    },
    /// Only haproxy is known to stop on SIGUSR1.
    #[error("process {pid} ({name}) is no haproxy")]
    NotHaproxy {
        /// The process.
        pid: i32,
        /// Its program.
        name: String,
    },
    /// Ending it would leave an address without anybody who accepts.
    #[error("nothing else serves on {address}")]
    NotServed {
        /// The address.
        address: Address,
    },
    /// Connections that wait in sockets of its own would be reset.
    #[error(
        "{sockets} sockets of its own close with process {pid}, and the kernel does not move the \
         connections that wait in them: {why}"
    )]
    WouldReset {
        /// The process.
        pid: i32,
        /// How many sockets.
        sockets: usize,
        /// What is in the way.
        why: String,
    },
    /// It was told to stop, and did not.
    #[error("process {pid} still holds {address} after {waited}")]
    StillThere {
        /// The process.
        pid: i32,
        /// One of the addresses.
        address: Address,
        /// How long was waited, for people.
        waited: String,
    },
    /// What answers there has no listeners of its own.
    #[error(
        "{} is the CLI of a haproxy master (-S): the workers have the listening sockets, and a master \
         gives none away",
        path.display()
    )]
    Master {
        /// The path of the socket.
        path: PathBuf,
    },
    /// A look at the system failed.
    #[error(transparent)]
    System(#[from] bindonce_sys::Error),
}

impl Error {
    /// What a person can do about it.
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
                "stop it the way its manual says: what waits on the adopted sockets stays"
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
                format!("`kill -TERM {pid}` ends it with its connections; then run this again")
            }
            Self::System(error) => return error.hint(),
        })
    }
}

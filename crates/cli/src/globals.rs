//! The options that every command has.

use std::path::PathBuf;

use crate::logging::{LogFormat, LogLevel};

/// What every command understands.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Globals {
    /// The broker's control socket [default: $BINDONCE_SOCKET, $MULTIBINDER_SOCK,
    /// /run/bindonce/bindonce.sock for root, else $XDG_RUNTIME_DIR/bindonce.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// The format of log lines
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value = "human")]
    pub(crate) log_format: LogFormat,
    /// The log level: error, warn, info, debug or trace; also per module, as in warn,bindonce_supervisor=debug
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info")]
    pub(crate) log_level: LogLevel,
}

impl Globals {
    /// The path on which the broker listens.
    pub(crate) fn socket_path(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(bindonce::default_socket)
    }

    /// Whether an option or a variable gave the path. If so, the broker must be there.
    pub(crate) fn socket_is_given(&self) -> bool {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        self.socket.is_some() || is_set("BINDONCE_SOCKET") || is_set("MULTIBINDER_SOCK")
    }
}

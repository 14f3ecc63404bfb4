//! What `bindonce run --as NAME` stands for: how a known program takes its sockets, reports that it
//! is ready, and is told to retire. docs/programs.md lists the versions that each was run with.

use std::time::Duration;

use bindonce_supervisor::program::{Readiness, TemplateError, Variable};
use bindonce_sys::signals::Signal;

/// A program that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Preset {
    /// NGINX='{fds:;};', SIGQUIT, ready when it has a worker
    Nginx,
    /// ANGIE='{fds:;};', SIGQUIT, ready when it has a worker
    Angie,
    /// SIGINT, ready after 500ms; needs server.systemd-socket-activation = "enable"
    Lighttpd,
    /// SERVER_STARTER_PORT='x={fds:;x=}', SIGTERM, ready after 500ms
    H2o,
    /// SIGINT, READY=1
    Pgbouncer,
    /// SIGTERM, READY=1
    Gunicorn,
    /// SIGTERM, ready after 1s; needs --fd 3
    Uvicorn,
    /// UNICORN_FD='{fds}', SIGQUIT, ready after 1s
    Unicorn,
    /// SIGTERM, ready after 1500ms
    Puma,
    /// SIGTERM, READY=1; listeners are named as the entry points
    Traefik,
}

impl Preset {
    /// The signal on which the program closes its listeners and finishes its connections.
    pub(super) fn retire(self) -> Signal {
        match self {
            Self::Nginx | Self::Angie | Self::Unicorn => Signal::SIGQUIT,
            Self::Lighttpd | Self::Pgbouncer => Signal::SIGINT,
            Self::H2o | Self::Gunicorn | Self::Uvicorn | Self::Puma | Self::Traefik => {
                Signal::SIGTERM
            }
        }
    }

    pub(super) fn readiness(self) -> Readiness {
        let after = |time| Readiness::Delay(Duration::from_millis(time));
        match self {
            Self::Pgbouncer | Self::Gunicorn | Self::Traefik => Readiness::Notify,
            // Workers start once the configuration is read and the sockets exist.
            Self::Nginx | Self::Angie => {
                Readiness::Check("grep -q . /proc/$BINDONCE_PID/task/$BINDONCE_PID/children".into())
            }
            Self::Lighttpd | Self::H2o => after(500),
            Self::Uvicorn | Self::Unicorn => after(1000),
            Self::Puma => after(1500),
        }
    }

    /// The variable that names the program's sockets; none for programs that read LISTEN_FDS.
    ///
    /// # Errors
    /// None: a test parses each.
    pub(super) fn variable(self) -> Result<Option<Variable>, TemplateError> {
        let text = match self {
            Self::Nginx => "NGINX={fds:;};",
            Self::Angie => "ANGIE={fds:;};",
            // h2o reads only the numbers, and asks the sockets for their addresses.
            Self::H2o => "SERVER_STARTER_PORT=x={fds:;x=}",
            Self::Unicorn => "UNICORN_FD={fds}",
            _ => return Ok(None),
        };
        text.parse().map(Some)
    }
}

#[cfg(test)]
mod tests {
    use bindonce_supervisor::program::Numbers;
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn each_variable_names_every_socket() {
        let name = |name: &str| name.parse().expect("a name");
        let descriptors = [(name("web"), 3), (name("admin"), 4)];
        let service = name("edge");
        let numbers = Numbers { descriptors: &descriptors, service: &service, generation: 1 };
        let mut found = Vec::new();
        for preset in Preset::value_variants() {
            if let Some(variable) = preset.variable().expect("it can be read") {
                let value = variable.value.fill(numbers).expect("it can be filled in");
                found.push(format!("{}={value}", variable.name));
            }
        }
        let expected =
            ["NGINX=3;4;", "ANGIE=3;4;", "SERVER_STARTER_PORT=x=3;x=4", "UNICORN_FD=3,4"];
        assert_eq!(found, expected);
    }
}

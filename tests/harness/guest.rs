//! The programs that a test supervises: haproxy, Debian's nginx, or a small server that systemd
//! could activate.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use super::{Haproxy, Scene, config, root, skip};

/// Turns each row, a function of a [`Guest`], into one test per guest, in a module of its name.
macro_rules! rows {
    ([$($module:ident: $guest:ident),*], $rows:tt) => {
        $($crate::harness::rows!(@ $module $guest $rows);)*
    };
    (@ $module:ident $guest:ident [$($row:ident),* $(,)?]) => {
        mod $module {
            $(#[test] fn $row() { super::$row($crate::harness::Guest::$guest) })*
        }
    };
}
pub(crate) use rows;

/// A program that answers every request with the tag of its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guest {
    Haproxy,
    /// nginx with two workers; it is ready when it has them.
    Nginx,
    /// `harness/server.py`.
    Activated,
    /// The same server, which leaves its listeners in its epoll set.
    Ghostly,
}

impl Guest {
    /// The program. None if it is missing, with the reason reported.
    pub(crate) fn program(self) -> Option<PathBuf> {
        match self {
            Self::Haproxy => Haproxy::system(),
            Self::Nginx => {
                let places = ["/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/bin/nginx"];
                let found = places.iter().map(PathBuf::from).find(|path| path.exists());
                if found.is_none() {
                    skip("no nginx is installed");
                }
                found
            }
            Self::Activated | Self::Ghostly => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                let places = std::env::split_paths(&path);
                let system = std::iter::once(PathBuf::from("/usr/bin"));
                let found = system
                    .chain(places)
                    .map(|place| place.join("python3"))
                    .find(|path| path.exists());
                if found.is_none() {
                    skip("no python3 is installed");
                }
                found
            }
        }
    }

    /// The name of its program, which identifies its processes.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Activated | Self::Ghostly => "server",
        }
    }

    /// Its configuration.
    pub(crate) fn file(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy.cfg",
            Self::Nginx => "nginx.conf",
            Self::Activated | Self::Ghostly => "server.tag",
        }
    }

    /// A configuration that answers with this tag.
    pub(crate) fn config(self, scene: &Scene, address: SocketAddr, tag: u64) -> String {
        match self {
            Self::Haproxy => config(address, tag),
            Self::Nginx => nginx(scene, address, tag),
            Self::Activated | Self::Ghostly => format!("{tag}\n"),
        }
    }

    /// The signal that tells it to stop accepting.
    pub(crate) fn retire_signal(self) -> Signal {
        match self {
            Self::Haproxy => Signal::SIGUSR1,
            Self::Nginx => Signal::SIGQUIT,
            Self::Activated | Self::Ghostly => Signal::SIGTERM,
        }
    }

    /// The number of processes of one generation.
    pub(crate) fn processes(self) -> usize {
        if self == Self::Nginx { 3 } else { 1 }
    }

    /// Whether a process with this command line belongs to a generation.
    pub(super) fn is(self, command: &str) -> bool {
        match self {
            Self::Haproxy => Scene::is_haproxy(command),
            Self::Nginx => command.contains("/nginx") || command.starts_with("nginx: "),
            Self::Activated | Self::Ghostly => command.contains("/server.py"),
        }
    }

    /// The options of `bindonce run` for it.
    pub(crate) fn arguments(self, address: SocketAddr) -> Vec<String> {
        let more: &[&str] = match self {
            Self::Haproxy => return Vec::new(),
            Self::Nginx => &["--as", "nginx"],
            Self::Activated | Self::Ghostly => &[],
        };
        let mut all = vec!["--listen".to_owned(), format!("web={address}")];
        all.extend(more.iter().map(ToString::to_string));
        all
    }

    /// The command: `program` on the configuration in `file`.
    pub(crate) fn command(self, program: &Path, file: &Path) -> Vec<OsString> {
        let script = root().join("tests/harness/server.py").into_os_string();
        let mut words = vec![program.as_os_str().to_owned()];
        match self {
            Self::Haproxy => words.push("-f".into()),
            Self::Nginx => words.extend(["-e", "stderr", "-c"].map(OsString::from)),
            Self::Activated | Self::Ghostly => words.push(script),
        }
        words.push(file.as_os_str().to_owned());
        if self == Self::Ghostly {
            words.push("ghost".into());
        }
        words
    }
}

fn nginx(scene: &Scene, address: SocketAddr, tag: u64) -> String {
    let here = scene.path("");
    let here = here.display();
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary: String =
        kinds.map(|kind| format!("    {kind}_temp_path {here}nginx-{kind};\n")).concat();
    format!(
        "pid {here}nginx.pid;\n\
         worker_processes 2;\n\
         events {{ worker_connections 500; }}\n\
         http {{\n\
         \x20   access_log off;\n\
         \x20   keepalive_timeout 0;\n\
         {temporary}\
         \x20   server {{\n\
         \x20       listen {address};\n\
         \x20       location / {{ add_header x-generation {tag}; return 200 \"ok\\n\"; }}\n\
         \x20   }}\n\
         }}\n"
    )
}

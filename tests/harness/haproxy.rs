//! Real haproxies: the system's own, and those fetched by `tests/haproxies`.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bindonce_load::Report;
use nix::sys::signal::Signal;

use super::{DEADLINE, Finished, Guest, Pause, Process, Scene, allow, finish, root, skip};

/// One haproxy, or another program, under a supervisor.
pub(crate) struct Haproxy {
    /// The running `bindonce run`.
    pub(crate) supervisor: Process,
    /// The name of the service.
    pub(crate) service: String,
}

impl Haproxy {
    /// The system's haproxy. None if it is missing, with the reason reported.
    pub(crate) fn system() -> Option<PathBuf> {
        let places = ["/usr/sbin/haproxy", "/usr/local/sbin/haproxy", "/usr/bin/haproxy"];
        let found = places.iter().map(PathBuf::from).find(|path| path.exists());
        if found.is_none() {
            skip("no haproxy is installed");
        }
        found
    }

    /// The haproxy of this version, fetched by `tests/haproxies`. None if it is missing, with the
    /// reason reported.
    pub(crate) fn fetched(version: &str) -> Option<PathBuf> {
        let fetched = root().join("target/haproxies");
        let path = fetched.join(version).join("haproxy");
        if path.exists() {
            return Some(path);
        }
        let suite = if version == "3.0" { "trixie" } else { "sid" };
        let why = std::fs::read_to_string(fetched.join(format!("{suite}.why"))).unwrap_or_default();
        let why = if why.is_empty() { "run tests/haproxies to fetch it" } else { why.trim() };
        skip(&format!("no haproxy {version}: {why}"));
        None
    }

    /// All haproxies, for behaviour that must be the same in every version.
    pub(crate) fn all() -> impl Iterator<Item = PathBuf> {
        let fetched = ["3.0", "3.2"].into_iter().filter_map(Self::fetched);
        Self::system().into_iter().chain(fetched)
    }

    /// Haproxies whose own master (`-W`) can execute them again: a wrapper without `--argv0`
    /// cannot.
    pub(crate) fn with_masters() -> impl Iterator<Item = PathBuf> {
        Self::all().filter(|program| {
            let text = std::fs::read(program).unwrap_or_default();
            let can = !text.starts_with(b"#!") || text.windows(7).any(|word| word == b"--argv0");
            if !can {
                skip(&format!("run tests/haproxies again: {} has no --argv0", program.display()));
            }
            can
        })
    }

    /// Starts `bindonce run` with this program and configuration and waits until
    /// its first generation serves.
    #[track_caller]
    pub(crate) fn start(scene: &Scene, program: &Path, config: &Path) -> Self {
        Self::start_with(scene, &[], program, config)
    }

    /// The same with more arguments for `bindonce run`.
    #[track_caller]
    pub(crate) fn start_with(
        scene: &Scene,
        arguments: &[&str],
        program: &Path,
        config: &Path,
    ) -> Self {
        let mut haproxy = Self::begin(scene, arguments, program, config);
        haproxy.wait_serving(scene);
        haproxy
    }

    /// The same, with a configuration in `haproxy.cfg` that answers with tag 1 at its own address.
    #[track_caller]
    pub(crate) fn start_at(
        scene: &Scene,
        arguments: &[&str],
        program: &Path,
    ) -> (SocketAddr, Self) {
        let address = scene.address();
        let file = scene.write("haproxy.cfg", &config(address, 1));
        (address, Self::start_with(scene, arguments, program, &file))
    }

    /// The same without the wait.
    #[track_caller]
    pub(crate) fn begin(scene: &Scene, arguments: &[&str], program: &Path, config: &Path) -> Self {
        Self::begin_command(scene, arguments, &Guest::Haproxy.command(program, config))
    }

    /// The same with any command.
    #[track_caller]
    pub(crate) fn begin_command(scene: &Scene, arguments: &[&str], words: &[OsString]) -> Self {
        let mut command = scene.bindonce("run");
        command.args(["--name", "web"]).args(arguments).arg("--").args(words);
        Self { supervisor: Process::start(&mut command), service: "web".to_owned() }
    }

    /// Waits until a generation serves, and returns its number and pid.
    #[track_caller]
    pub(crate) fn wait_serving(&mut self, scene: &Scene) -> (u64, i32) {
        let deadline = Instant::now() + DEADLINE;
        let mut pause = Pause::new();
        loop {
            if let Some(found) = self.serving(scene) {
                return found;
            }
            let story = |supervisor: &mut Process| supervisor.story();
            assert!(self.supervisor.is_running(), "ended: {}", story(&mut self.supervisor));
            assert!(Instant::now() < deadline, "does not serve: {}", story(&mut self.supervisor));
            pause.sleep();
        }
    }

    /// The number and pid of the serving generation, as the broker knows them. None during a
    /// handover, when the broker has heard of the newer generation and not yet of the older one:
    /// they use separate connections.
    pub(crate) fn serving(&self, scene: &Scene) -> Option<(u64, i32)> {
        let status = scene.wire().call("status", &serde_json::json!([]));
        let services = status["services"].as_array()?;
        let service = services.iter().find(|service| service["name"] == self.service.as_str())?;
        let serving: Vec<_> = service["generations"]
            .as_array()?
            .iter()
            .filter(|generation| generation["state"] == "serving")
            .collect();
        let [serving] = serving[..] else { return None };
        let pid = i32::try_from(serving["pid"].as_i64()?).ok()?;
        Some((serving["generation"].as_u64()?, pid))
    }

    /// Runs `bindonce reload` to its end.
    #[track_caller]
    pub(crate) fn reload(&self, scene: &Scene) -> Finished {
        finish(scene.bindonce("reload").args(["--name", &self.service]))
    }
}

impl Drop for Haproxy {
    /// Ends the service in order: a killed supervisor would leave its haproxy serving, as it
    /// should.
    fn drop(&mut self) {
        let supervisor = &mut self.supervisor;
        // The second signal ends the draining generations.
        for _ in 0..2 {
            let deadline = Instant::now() + allow(Duration::from_secs(5));
            if supervisor.is_running() {
                supervisor.signal(Signal::SIGTERM);
            }
            while supervisor.is_running() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// A configuration whose only frontend answers every request itself, with the tag in the header
/// that the load generator reads.
pub(crate) fn config(address: SocketAddr, tag: u64) -> String {
    format!(
        "global\n\
         \x20   maxconn 500\n\
         defaults\n\
         \x20   mode http\n\
         \x20   timeout connect 5s\n\
         \x20   timeout client 30s\n\
         \x20   timeout server 30s\n\
         frontend web\n\
         \x20   bind {address}\n\
         \x20   http-request return status 200 content-type text/plain hdr x-generation {tag} string ok\n"
    )
}

/// Sends a request to an address that a configuration of [`config`] serves, and expects this tag.
#[track_caller]
pub(crate) fn serves(address: SocketAddr, tag: u64) {
    let mut stream = TcpStream::connect(address).expect("connecting");
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("asking");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    assert!(text.contains(&format!("x-generation: {tag}\r\n")), "{text}");
}

/// Checks that no connection failed, and that no older generation answered a connection begun after
/// a newer one had answered.
#[track_caller]
pub(crate) fn assert_nothing_lost(report: &Report) {
    assert_eq!((report.failed(), report.local, report.stale), (0, 0, 0), "{report}");
}

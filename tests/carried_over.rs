//! State carried over to the next supervisor, or to the next image of this one: it restarts a dead
//! haproxy on the configuration that served, and reloads changes made while no supervisor watched.

use std::net::SocketAddr;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Guest, Haproxy, Process, Scene, config, eventually, serves};

const BROKEN: &str = "no-such-word\n";

/// A service and its configuration.
struct Service {
    haproxy: Haproxy,
    program: PathBuf,
    file: PathBuf,
    address: SocketAddr,
    _broker: Process,
    scene: Scene,
}

impl Service {
    fn new() -> Option<Self> {
        Self::watching(Scene::new(), &[])
    }

    fn watching(scene: Scene, arguments: &[&str]) -> Option<Self> {
        let program = Guest::Haproxy.program()?;
        let (broker, address) = (scene.broker(), scene.address());
        let file = scene.write("haproxy.cfg", &config(address, 1));
        let haproxy = Haproxy::start_with(&scene, arguments, &program, &file);
        Some(Self { haproxy, program, file, address, _broker: broker, scene })
    }

    fn configure(&self, text: &str) {
        std::fs::write(&self.file, text).expect("a file");
    }

    /// Kills the supervisor, runs `meanwhile` without one, and starts the next.
    #[track_caller]
    fn supervise_anew(&mut self, arguments: &[&str], meanwhile: impl FnOnce(&Self) -> PathBuf) {
        self.haproxy.supervisor.kill();
        let file = meanwhile(self);
        self.haproxy = Haproxy::begin(&self.scene, arguments, &self.program, &file);
        self.haproxy.supervisor.wait_line(": taken over: serving");
        // The files have been compared by then.
        self.haproxy.supervisor.wait_line(": serving generation=");
    }

    #[track_caller]
    fn wait_generation(&mut self, wanted: u64) {
        eventually("that generation", || {
            (self.haproxy.serving(&self.scene)?.0 == wanted).then_some(())
        });
    }

    /// Kills the serving generation, and waits for the next one.
    #[track_caller]
    fn die(&mut self) {
        let (generation, pid) = self.haproxy.wait_serving(&self.scene);
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("killing it");
        self.wait_generation(generation + 1);
    }
}

/// A person may edit the files at any time; the edits count when a reload is requested.
#[test]
fn a_haproxy_that_dies_is_started_on_what_served_whoever_supervises_it_by_then() {
    for upgrade in [true, false] {
        let Some(mut service) = Service::new() else { return };
        match upgrade {
            true => drop(service.scene.run("upgrade", &["--name", "web"]).ok()),
            false => service.supervise_anew(&[], |service| service.file.clone()),
        }
        service.configure(BROKEN);
        service.die();
        serves(service.address, 1);
        // Once more: by then this supervisor started the generation itself.
        std::fs::remove_file(&service.file).expect("removing it");
        service.die();
        serves(service.address, 1);
        service.configure(&config(service.address, 4));
        service.haproxy.reload(&service.scene).ok();
        serves(service.address, 4);
    }
}

/// Each start of a supervisor puts the files on disk into effect.
#[test]
fn a_supervisor_that_takes_over_reloads_what_has_changed_meanwhile() {
    let Some(mut service) = Service::new() else { return };
    service.supervise_anew(&[], |service| service.file.clone());
    serves(service.address, 1);
    service.supervise_anew(&[], |service| {
        service.configure(&config(service.address, 2));
        service.file.clone()
    });
    // The first supervisor took over without a reload.
    service.wait_generation(2);
    serves(service.address, 2);
    service.supervise_anew(&[], |service| {
        service.configure(BROKEN);
        service.file.clone()
    });
    service.haproxy.supervisor.wait_line("generation 2 still serves");
    serves(service.address, 2);
    service.supervise_anew(&[], |service| {
        service.scene.write("other.cfg", &config(service.address, 4))
    });
    service.wait_generation(4);
    serves(service.address, 4);
}

/// The watched files need not be the configuration, and neither image notices a change during an
/// upgrade.
#[test]
fn what_is_watched_is_compared_with_what_was_read_for_the_last_start() {
    let scene = Scene::new();
    let map = scene.write("a.map", "a 1\n");
    let arguments = ["--watch", map.to_str().expect("UTF-8")];
    let Some(mut service) = Service::watching(scene, &arguments) else { return };
    service.supervise_anew(&arguments, |service| service.file.clone());
    service.supervise_anew(&arguments, |service| {
        std::fs::write(&map, "a 2\n").expect("a map");
        service.file.clone()
    });
    service.wait_generation(2);
    service.scene.run("upgrade", &["--name", "web"]).ok();
    // Nothing has changed, so no generation is started.
    service.haproxy.reload(&service.scene).ok();
    service.wait_generation(3);
    serves(service.address, 1);
}

//! haproxy with its own master (`run --nested-master`): the worker accepts, not the process that
//! was started.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use bindonce_load::Plan;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{DEADLINE, Haproxy, Process, Scene, config, eventually};

/// Without this option the supervisor acts as the master, and generations have none.
const NESTED: &[&str] = &["--nested-master"];

#[test]
fn what_the_worker_of_a_master_binds_by_itself_is_told() {
    Haproxy::with_masters().for_each(|program| worker_is_told(&program));
}

fn worker_is_told(program: &Path) {
    let scene = Scene::new();
    let (address, stats) = (scene.address(), scene.address());
    let text = config(address, 1).replace(
        "global\n",
        &format!("global\n    master-worker\n    stats socket ipv4@{stats} level admin\n"),
    );
    let file = scene.write("haproxy.cfg", &text);
    let _broker = scene.broker();
    let mut haproxy = Haproxy::start_with(&scene, NESTED, program, &file);
    haproxy.supervisor.wait_line("has bound this by itself");
}

/// A service whose haproxy has its own master, and clients.
struct Nested {
    haproxy: Haproxy,
    address: SocketAddr,
    /// More lines of its global section.
    global: &'static str,
    _broker: Process,
    scene: Scene,
}

impl Nested {
    fn start(program: &Path, arguments: &[&str]) -> Self {
        Self::start_with(program, arguments, "")
    }

    fn start_with(program: &Path, arguments: &[&str], global: &'static str) -> Self {
        let scene = Scene::new();
        let address = scene.address();
        let file = scene.write("haproxy.cfg", &Self::config(address, global, 1));
        let broker = scene.broker();
        let haproxy = Haproxy::start_with(&scene, &[NESTED, arguments].concat(), program, &file);
        Self { haproxy, address, global, _broker: broker, scene }
    }

    fn config(address: SocketAddr, global: &str, tag: u64) -> String {
        config(address, tag).replace("global\n", &format!("global\n    master-worker\n{global}"))
    }

    fn configure(&self, tag: u64) {
        self.scene.write("haproxy.cfg", &Self::config(self.address, self.global, tag));
    }

    #[track_caller]
    fn serving(&mut self) -> (u64, Pid) {
        let (generation, pid) = self.haproxy.wait_serving(&self.scene);
        (generation, Pid::from_raw(pid))
    }

    /// Reloads; only the new generation answers afterwards.
    #[track_caller]
    fn reload(&self, tag: u64) {
        self.configure(tag);
        self.haproxy.reload(&self.scene).ok();
        let mut plan = Plan::new(self.address);
        (plan.clients, plan.connections) = (4, Some(60));
        let load = plan.start().expect("load");
        assert!(load.wait_over(DEADLINE), "no answers");
        let report = load.stop();
        let tags: Vec<_> = report.tokens.iter().map(|token| token.token.as_str()).collect();
        assert_eq!(tags, [tag.to_string()], "{report}");
    }
}

#[test]
fn a_reload_of_haproxys_own_master_becomes_one_of_ours() {
    Haproxy::with_masters().for_each(|program| becomes_one_of_ours(&program, &[]));
}

/// Only the configuration shows that there is a master.
#[test]
fn without_an_admin_socket_a_reload_of_its_own_master_becomes_one_of_ours() {
    Haproxy::with_masters().for_each(|program| becomes_one_of_ours(&program, &["--no-admin"]));
}

fn becomes_one_of_ours(program: &Path, arguments: &[&str]) {
    let mut nested = Nested::start(program, arguments);
    let (_, master) = nested.serving();
    nested.configure(2);
    // A master of 2.6.12 loses the signal just after its start; its output shows when it received
    // it.
    eventually("the master to reload", || {
        kill(master, Signal::SIGUSR2).expect("the master");
        std::thread::sleep(Duration::from_millis(200));
        let story = nested.haproxy.supervisor.story();
        (story.matches("ew worker (").count() > 1).then_some(())
    });
    eventually("another generation serves", || {
        nested.haproxy.serving(&nested.scene).filter(|(generation, _)| *generation > 1)
    });
    let story = nested.haproxy.supervisor.story();
    // On a busy machine the older worker may be gone before the newer one is seen.
    let told =
        ["haproxy's own master was told to reload", "no worker of haproxy's own master accepts"];
    assert!(told.iter().any(|told| story.contains(told)), "{story}");
    for tag in [3, 4] {
        nested.reload(tag);
    }
}

/// After the upgrade another image of the supervisor reads haproxy's output.
#[test]
fn after_an_upgrade_messages_still_name_the_users_file() {
    Haproxy::with_masters().for_each(|program| names_the_users_file(&program));
}

fn names_the_users_file(program: &Path) {
    let scene = Scene::new();
    let text = Nested::config(scene.address(), "", 1);
    let text = text + "    use_backend x if TRUE\n    http-request deny if FALSE\nbackend x\n";
    let warning = format!("haproxy.cfg:{}] : a 'http-request' rule", text.lines().count() - 1);
    let file = scene.write("haproxy.cfg", &text);
    let _broker = scene.broker();
    let mut haproxy = Haproxy::start_with(&scene, NESTED, program, &file);
    let users = format!("[{}", file.parent().expect("a directory").join(&warning).display());
    let (_, master) = haproxy.wait_serving(&scene);
    // haproxy reads the copy each time that it starts a worker.
    let told = |haproxy: &mut Haproxy| haproxy.supervisor.story().matches(&users).count();
    let before = eventually("the warning", || Some(told(&mut haproxy)).filter(|count| *count > 0));
    scene.run("upgrade", &["--name", "web"]).ok();
    eventually("the warning again", || {
        kill(Pid::from_raw(master), Signal::SIGUSR2).expect("the master");
        std::thread::sleep(Duration::from_millis(200));
        let again =
            haproxy.supervisor.story().matches(warning.trim_start_matches("haproxy.cfg")).count();
        (again > before).then_some(())
    });
    let story = haproxy.supervisor.story();
    assert!(!story.contains("generation-1/"), "a copy is named: {story}");
    assert!(told(&mut haproxy) > before, "{story}");
}

#[test]
fn an_older_master_that_is_reloaded_while_it_drains_is_told_to_stop_again() {
    Haproxy::with_masters().for_each(|program| is_told_again(&program));
}

fn is_told_again(program: &Path) {
    let mut nested = Nested::start(program, &[]);
    let (_, master) = nested.serving();
    let mut half = TcpStream::connect(nested.address).expect("connect");
    half.write_all(b"GET / HTTP/1.1\r\n").expect("half a request");
    // The first request is being served when a later one has been served.
    let mut whole = TcpStream::connect(nested.address).expect("connect");
    whole.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("a request");
    whole.read_to_string(&mut String::new()).expect("an answer");
    nested.reload(2);
    kill(master, Signal::SIGUSR2).expect("the master");
    nested.haproxy.supervisor.wait_line("it had closed its listeners and has them again");
    nested.reload(3);
    half.write_all(b"Host: x\r\nConnection: close\r\n\r\n").expect("the rest");
    let mut answer = String::new();
    half.read_to_string(&mut answer).expect("an answer");
    assert!(answer.contains("x-generation: 1\r\n"), "{answer}");
}

/// A worker of 3.1 and later waits for its master for 2 s; here it is held for longer.
#[test]
fn a_new_worker_waits_for_an_older_generation_that_closes_late() {
    let Some(program) = Haproxy::fetched("3.2") else { return };
    let mut nested = Nested::start_with(&program, &[], "    grace 2200ms\n");
    nested.serving();
    nested.reload(2);
}

/// `pidfile` names the supervisor through all generations; haproxy's own master would change with
/// each reload.
#[test]
fn the_file_of_a_pidfile_line_names_the_supervisor() {
    let keywords = ["master-worker", "daemon"];
    for (program, keyword) in
        Haproxy::with_masters().flat_map(|one| keywords.map(|k| (one.clone(), k)))
    {
        let scene = Scene::new();
        let path = scene.path("haproxy.pid");
        let lines = format!("global\n    {keyword}\n    pidfile {}\n", path.display());
        let text = config(scene.address(), 1).replace("global\n", &lines);
        let file = scene.write("haproxy.cfg", &text);
        let _broker = scene.broker();
        std::fs::write(&path, "1\n").expect("a file of an earlier haproxy");
        let haproxy = Haproxy::start(&scene, &program, &file);
        let supervisor = format!("{}\n", haproxy.supervisor.pid());
        let names_it = || {
            let text = std::fs::read_to_string(&path).ok();
            text.filter(|text| *text == supervisor).map(drop)
        };
        eventually("the file to name the supervisor", names_it);
        haproxy.reload(&scene).ok();
        eventually("one haproxy", || (scene.haproxies().len() < 3).then_some(()));
        assert!(names_it().is_some(), "{keyword}: {:?}", std::fs::read_to_string(&path));
    }
}

/// Its directory may be created, or get free space, only later.
#[test]
fn a_pidfile_that_cannot_be_written_is_tried_again() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let path = scene.path("later/haproxy.pid");
    let lines = format!("global\n    daemon\n    pidfile {}\n", path.display());
    let file = scene.write("haproxy.cfg", &config(scene.address(), 1).replace("global\n", &lines));
    let _broker = scene.broker();
    let mut haproxy = Haproxy::start(&scene, &program, &file);
    haproxy.supervisor.wait_line("the pidfile could not be written, and is tried again");
    std::fs::create_dir(scene.path("later")).expect("the directory");
    let supervisor = format!("{}\n", haproxy.supervisor.pid());
    eventually("the file to name the supervisor", || {
        std::fs::read_to_string(&path).ok().filter(|text| *text == supervisor)
    });
}

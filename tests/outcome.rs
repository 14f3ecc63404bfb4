//! The meaning of exit code 0 of `reload`: the configuration on disk serves. A configuration with
//! which no process accepts is refused in haproxy's words, and a file is never read half-written.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Haproxy, Process, Scene, config, eventually, finish, listening};

/// Every available haproxy.
fn programs() -> Vec<PathBuf> {
    [Haproxy::system(), Haproxy::fetched("3.0"), Haproxy::fetched("3.2")]
        .into_iter()
        .flatten()
        .collect()
}

/// The whole answer to one request.
#[track_caller]
fn answer(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).expect("connecting");
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("asking");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    text
}

/// Configurations with nothing to listen on, for which haproxy does not start.
fn without_listener(address: SocketAddr) -> Vec<(&'static str, String)> {
    let whole = config(address, 2);
    let (defaults, frontend) = whole.split_at(whole.find("frontend").expect("a frontend"));
    let backend = format!("{defaults}backend app\n    server one 127.0.0.1:1\n");
    vec![
        ("empty", String::new()),
        ("a comment", "# nothing here\n\n".to_owned()),
        ("only defaults", defaults.to_owned()),
        ("only a backend", backend.clone()),
        ("a disabled section", whole.replace("frontend web\n", "frontend web\n    disabled\n")),
        (
            "a condition that never holds",
            format!("{defaults}.if streq(a,b)\n{frontend}.endif\n{}", &backend[defaults.len()..]),
        ),
        ("peers that name nobody here", format!("{backend}peers p\n    bind {address}\n")),
    ]
}

#[test]
fn a_configuration_with_nothing_to_listen_on_is_refused_in_haproxys_words() {
    for program in programs() {
        let (scene, _broker) = Scene::with_broker();
        let address = scene.address();
        let file = scene.write("haproxy.cfg", &config(address, 1));
        let haproxy = Haproxy::start(&scene, &program, &file);
        for (what, text) in without_listener(address) {
            scene.write("haproxy.cfg", &text);
            let said = haproxy.reload(&scene).fails(1);
            assert!(said.contains("No enabled listener found"), "{what}: {said}");
            assert!(said.contains("add a `bind` line"), "{what}: {said}");
            assert!(said.contains("generation 1 still serves"), "{what}: {said}");
            assert!(answer(address).contains("x-generation: 1"), "{what}");
            let words = [program.as_os_str(), "-f".as_ref(), file.as_os_str()];
            let check = finish(scene.bindonce("check").arg("--").args(words));
            let said = check.fails(1);
            assert!(said.contains("listener"), "{what}: {said}");
        }
        // A good configuration is accepted afterwards.
        scene.write("haproxy.cfg", &config(address, 9));
        haproxy.reload(&scene).ok();
        assert!(answer(address).contains("x-generation: 9"));
    }
}

#[test]
fn nor_does_a_service_begin_with_it() {
    for program in programs() {
        let (scene, _broker) = Scene::with_broker();
        let address = scene.address();
        for (what, text) in without_listener(address) {
            let file = scene.write("haproxy.cfg", &text);
            let mut haproxy = Haproxy::begin(&scene, &[], &program, &file);
            assert_eq!(haproxy.supervisor.wait_exit().code(), Some(1), "{what}");
            let story = haproxy.supervisor.story();
            assert!(story.contains("No enabled listener found"), "{what}: {story}");
            assert!(story.contains("add a `bind` line"), "{what}: {story}");
        }
    }
}

#[test]
fn an_admin_socket_alone_takes_over_only_where_that_is_allowed() {
    for program in programs() {
        let (scene, _broker) = Scene::with_broker();
        let address = scene.address();
        let stats = scene.path("stats.sock");
        let file = scene.write("haproxy.cfg", &config(address, 1));
        let haproxy = Haproxy::start(&scene, &program, &file);
        let text = format!("global\n    stats socket {}\n", stats.display());
        scene.write("haproxy.cfg", &text);
        let said = haproxy.reload(&scene).fails(1);
        assert!(said.contains(&format!("1 listener serves now: {address}")), "{said}");
        assert!(said.contains("--allow-empty"), "{said}");
        assert!(answer(address).contains("x-generation: 1"));
        assert!(!stats.exists(), "nothing of it was started");
        let said = scene.run("reload", &["--name", "web", "--allow-empty"]).ok();
        assert!(said.contains("none of the listeners that served before"), "{said}");
        assert!(stats.exists());
        eventually("the listener to be closed", || listening(address).is_empty().then_some(()));
    }
}

#[test]
fn a_reload_that_is_refused_allows_the_next_one_nothing() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, haproxy) = Haproxy::start_at(&scene, &["--no-admin"], &program);
    let stats = scene.path("stats.sock");
    scene.write("haproxy.cfg", &format!("global\n    stats socket {}\n", stats.display()));
    let options = ["--name", "web", "--allow-empty", "--drain-idle", "5s"];
    let said = scene.run("reload", &options).fails(1);
    assert!(said.contains("leave out --drain-idle"), "{said}");
    let said = haproxy.reload(&scene).fails(1);
    assert!(said.contains(&format!("1 listener serves now: {address}")), "{said}");
    assert!(answer(address).contains("x-generation: 1"));
}

#[test]
fn a_reload_that_drops_every_listener_for_others_says_so() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, other) = (scene.address(), scene.address());
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let haproxy = Haproxy::start(&scene, &program, &file);
    scene.write("haproxy.cfg", &config(other, 2));
    let said = haproxy.reload(&scene).ok();
    let expected = format!(
        "none of the listeners that served before is in the configuration any more: {address}"
    );
    assert!(said.contains(&expected), "{said}");
}

#[test]
fn a_pipe_serves_once_and_a_reload_says_why_it_cannot_be_read_again() {
    let Some(program) = Haproxy::system() else { return };
    for shell in [
        "exec \"$B\" run --socket \"$S\" --name web -- \"$H\" -f <(cat haproxy.cfg)",
        "cat haproxy.cfg | exec \"$B\" run --socket \"$S\" --name web -- \"$H\" -f /dev/stdin",
    ] {
        let (scene, _broker) = Scene::with_broker();
        let address = scene.address();
        scene.write("haproxy.cfg", &config(address, 1));
        let mut command = scene.command("bash");
        command.args(["-c", shell]).env("B", crate::harness::bindonce());
        command.env("S", scene.socket()).env("H", &program);
        let supervisor = Process::start(&mut command);
        let mut haproxy = Haproxy { supervisor, service: "web".to_owned() };
        haproxy.wait_serving(&scene);
        let said = haproxy.reload(&scene).fails(1);
        assert!(said.contains("it is a pipe, which was read when the service began"), "{said}");
        assert!(answer(address).contains("x-generation: 1"));
        // Its generation can be restarted all the same.
        let (_, pid) = haproxy.serving(&scene).expect("it serves");
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("killing it");
        eventually("the next generation", || haproxy.serving(&scene).filter(|(_, p)| *p != pid));
        assert!(answer(address).contains("x-generation: 1"));
        if shell.starts_with("cat") {
            // The shell is the first process of that pipeline, not the supervisor.
            let pid = haproxy.serving(&scene).map(|(_, pid)| pid).expect("it serves");
            let parent = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("its parent");
            let parent = parent.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1));
            let parent = parent.and_then(|text| text.parse().ok()).expect("its parent");
            kill(Pid::from_raw(parent), Signal::SIGTERM).expect("ending it");
        }
    }
}

#[test]
fn a_file_that_is_being_written_is_taken_when_it_is_complete() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, other) = (scene.address(), scene.address());
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let haproxy = Haproxy::start(&scene, &program, &file);
    // haproxy would accept half of it: another listener, without the first.
    let whole = format!(
        "{}frontend other\n    bind {other}\n    http-request return status 200\n",
        config(address, 2)
    );
    let half = config(other, 3);
    let mut writer = File::create(&file).expect("truncating it");
    writer.write_all(half.as_bytes()).expect("writing a half");
    let mut command = scene.bindonce("reload");
    command.args(["--name", "web"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let reload = command.spawn().expect("a reload");
    eventually("the reload to begin", || {
        let events = scene.run("events", &["--name", "web"]).out;
        events.contains("a client asked for it").then_some(())
    });
    writer.set_len(0).expect("beginning anew");
    let mut again = File::options().append(true).open(&file).expect("opening it");
    again.write_all(whole.as_bytes()).expect("writing it all");
    drop((writer, again));
    assert!(reload.wait_with_output().expect("its end").status.success());
    assert!(answer(address).contains("x-generation: 2"));
    assert_eq!(listening(other).len(), 1);
    // A file that stays open is refused, with the process that has it open.
    let kept = File::options().write(true).open(&file).expect("opening it");
    let said = haproxy.reload(&scene).fails(1);
    let expected = format!("it is being written by pid {}", std::process::id());
    assert!(said.contains(&expected), "{said}");
    drop(kept);
    haproxy.reload(&scene).ok();
}

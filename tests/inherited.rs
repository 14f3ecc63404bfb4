//! Descriptors that haproxy inherits (`fd@N`), from a socket unit or from its starter: the same
//! sockets reach every generation, whichever process ends meanwhile.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use bindonce_load::{Load, Plan};
use nix::sys::signal::Signal;

use crate::harness::{
    DEADLINE, Haproxy, Process, Scene, assert_nothing_lost, config, eventually, finish,
};

/// Opens descriptors as a service manager does, and becomes the command. Words before `--` are
/// NUMBER=WHAT.
const STARTER: &str = r#"
import os, socket, sys
at = sys.argv.index("--")
for word in sys.argv[1:at]:
    number, what = word.split("=", 1)
    if what == "pair":
        opened = socket.socketpair()[0]
    elif what.startswith("/"):
        opened = socket.socket(socket.AF_UNIX)
        opened.bind(what)
        opened.listen(7)
    else:
        kind, port = what.split(":")
        opened = socket.socket(type=socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
        opened.bind(("127.0.0.1", int(port)))
        if kind == "tcp":
            opened.listen(7)
    os.dup2(opened.detach(), int(number))
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[at + 1], sys.argv[at + 1:])
"#;

struct Place {
    broker: Process,
    program: PathBuf,
    scene: Scene,
}

impl Place {
    fn new(program: &Path) -> Self {
        let scene = Scene::new();
        std::os::unix::fs::symlink(crate::harness::bindonce(), scene.path("haproxy"))
            .expect("a link");
        Self { broker: scene.broker(), program: program.to_owned(), scene }
    }

    fn configure(&self, tag: u64) {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let text = config(nowhere, tag).replace(&format!("bind {nowhere}"), "bind fd@60");
        let admin = "global\n    stats socket \"fd@${ADMIN}\" level admin\n";
        let text = text.replace("global\n", admin);
        self.scene.write("haproxy.cfg", &text);
    }

    /// `haproxy WORDS`, by the link, with these descriptors.
    fn haproxy(&self, descriptors: &[String], words: &str) -> Command {
        let mut command = self.scene.command("python3");
        command.env("BINDONCE_HAPROXY", &self.program).env("BINDONCE_SOCKET", self.scene.socket());
        command.env("ADMIN", "61").args(["-c", STARTER]).args(descriptors).arg("--");
        command.arg(self.scene.path("haproxy")).args(words.split_whitespace());
        command
    }

    fn ask(&self, socket: &str, what: &str) -> String {
        let mut stream = UnixStream::connect(self.scene.path(socket)).expect("connecting");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.write_all(what.as_bytes()).expect("asking");
        stream.shutdown(Shutdown::Write).expect("the end");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    #[track_caller]
    fn load(&self, at: SocketAddr, tag: u64) -> Load {
        eventually("it listens", || std::net::TcpStream::connect(at).ok());
        let mut plan = Plan::new(at);
        (plan.clients, plan.rate) = (4, Some(200));
        let load = plan.start().expect("load");
        wait_tag(&load, tag);
        load
    }

    /// The listeners of the broker.
    fn addresses(&self) -> Vec<String> {
        let listed = self.scene.wire().call("list", &serde_json::json!([]));
        let all = listed["listeners"].as_array().cloned().unwrap_or_default();
        all.iter().filter_map(|entry| entry["address"].as_str().map(str::to_owned)).collect()
    }
}

#[track_caller]
fn wait_tag(load: &Load, tag: u64) {
    assert!(load.wait_for_token(&tag.to_string(), DEADLINE), "generation {tag} never answered");
}

#[test]
fn inherited_listeners_reach_every_generation() {
    for (number, program) in Haproxy::all().enumerate() {
        let mut place = Place::new(&program);
        place.configure(1);
        let (at, other) = (place.scene.address(), place.scene.address());
        let descriptors = |at: SocketAddr| {
            let path = |name: &str| place.scene.path(name).display().to_string();
            [
                format!("60=tcp:{}", at.port()),
                format!("61={}", path("a")),
                format!("62={}", path("m")),
            ]
        };
        let words = "-W -db -f haproxy.cfg -p pid -S fd@62";
        let mut haproxy = Process::start(&mut place.haproxy(&descriptors(at), words));
        let load = place.load(at, 1);
        place.configure(2);
        haproxy.signal(Signal::SIGUSR2);
        wait_tag(&load, 2);
        let mut listed = place.addresses();
        listed.sort();
        let path = |name: &str| format!("unix@{}", place.scene.path(name).display());
        assert_eq!(listed, [at.to_string(), path("a"), path("m")]);

        let entries = std::fs::read_dir(place.scene.path("")).expect("the directory");
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let service = names.filter_map(|name| name.strip_suffix(".d").map(str::to_owned)).next();
        let upgrade = ["--name", &service.expect("a service")];
        finish(place.scene.bindonce("upgrade").args(upgrade)).ok();
        place.configure(3);
        assert!(place.ask("m", "reload\n").starts_with("Success=1\n"));
        wait_tag(&load, 3);
        // The name by which killall(1) and pgrep(1) search.
        let name = std::fs::read_to_string(format!("/proc/{}/comm", haproxy.pid()));
        assert_eq!(name.expect("it runs"), "haproxy\n");

        // What a killed supervisor leaves is the same with every version.
        if number == 0 {
            // Only the broker still has those descriptors.
            haproxy.kill();
            haproxy = Process::start(&mut place.haproxy(&[], words));
            haproxy.wait_line("taken over: serving");
            place.configure(4);
            assert!(place.ask("m", "reload\n").starts_with("Success=1\n"));
            wait_tag(&load, 4);

            // And here only the generation.
            place.broker.kill();
            haproxy.kill();
            place.broker = place.scene.broker();
            haproxy = Process::start(&mut place.haproxy(&[], words));
            haproxy.wait_line("taken over: serving");
            place.configure(5);
            haproxy.signal(Signal::SIGUSR2);
            wait_tag(&load, 5);
        }
        assert!(place.ask("a", "show info\n").contains("Pid: "), "the admin socket");
        assert_nothing_lost(&load.stop());

        // Another caller brings another socket for the same number.
        place.configure(6);
        let brought =
            [format!("60=tcp:{}", other.port()), format!("61={}", path("b").replace("unix@", ""))];
        let words = format!("-f haproxy.cfg -p pid -sf {}", haproxy.pid());
        finish(&mut place.haproxy(&brought, &words)).ok();
        drop(place.load(other, 6).stop());
        eventually("the address of before to be released", || {
            (!place.addresses().contains(&at.to_string())).then_some(())
        });
        haproxy.signal(Signal::SIGTERM);
        assert_eq!(haproxy.wait_exit().code(), Some(0), "{}", haproxy.story());
    }
}

#[test]
fn a_descriptor_that_is_no_listener_is_refused_in_haproxys_words() {
    let Some(program) = Haproxy::system() else { return };
    let place = Place::new(&program);
    place.configure(1);
    let port = place.scene.address().port();
    let admin = format!("61={}", place.scene.path("a").display());
    for (descriptors, why) in [
        (vec![], "cannot use file descriptor '60' : Bad file descriptor"),
        (vec!["60=pair".to_owned()], "cannot use file descriptor '60' : it is not bound"),
        (vec![format!("60=bound:{port}")], "and does not listen"),
        (vec![format!("60=udp:{port}")], "takes a datagram socket as quic+fd@ alone"),
    ] {
        let _ = std::fs::remove_file(place.scene.path("a"));
        let descriptors: Vec<_> = descriptors.into_iter().chain([admin.clone()]).collect();
        let said = finish(&mut place.haproxy(&descriptors, "-W -f haproxy.cfg")).fails(1);
        assert!(said.contains("haproxy.cfg:10") && said.contains(why), "{said}");
        assert_eq!(place.addresses(), Vec::<String>::new(), "{why}");
    }
    let _ = std::fs::remove_file(place.scene.path("a"));
    let good = [admin, format!("60=tcp:{port}")];
    let said = finish(&mut place.haproxy(&good, "-W -f haproxy.cfg -S fd@62")).fails(1);
    assert!(said.contains("cannot use file descriptor '62' : Bad file descriptor."), "{said}");
}

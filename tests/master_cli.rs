//! The master CLI (haproxy's `-S`), served by the supervisor: the protocol of haproxy's own master,
//! and the behaviour that its callers rely on.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{DEADLINE, Haproxy, Process, Scene, config, eventually};
use crate::stand_in::Caller;

/// With two other words, the maximum number of words in a command, from 3.2 on.
macro_rules! many {
    () => {
        "x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x"
    };
}

/// Conversations that must match byte for byte, except for pids, times and counts.
const CONVERSATIONS: &[&str] = &[
    "help\n",
    "help show\n",
    "help blah\n",
    "\n",
    "show version",
    "show version\nshow version\n",
    "show cli sockets; show cli level\n",
    "show proc\n",
    "show proc x\n",
    "show activity\n",
    "blah\n",
    "sho ver\n",
    "relod\n",
    "hard\n",
    "get weight\n",
    "clear table x\n",
    "set foo bar\n",
    "echo a  b\\ c; echo d\n",
    "show env HAPROXY_MASTER_CLI\n",
    "@1 show env HAPROXY_MASTER_CLI\n",
    "operator;show cli level;user;show cli level;@1 show cli level\n",
    "user;reload\n",
    "user;show proc\n",
    "user;expert-mode on\n",
    "operator;@1 disable agent x/y\n",
    "@1 show version;@1 show version\n",
    "@ show version;@master show version;@0 show version\n",
    "@2 show info\n",
    "@!99 show info\n",
    "@x show info\n",
    "@1 nonsense\n",
    "@1 quit\n",
    "prompt\n@1\nshow version\n@\nshow version\n",
    "prompt;quit;show version\n",
    "prompt x\n",
    "prompt timed\n",
    "prompt i\nshow version\nshow version\n",
    "prompt;expert-mode on;experimental-mode on;mcli-debug-mode on;expert-mode off\n",
    "expert-mode on;@1 debug dev hash x\n",
    "@1 add acl #0 <<\na\nb\n\nshow version\n",
    "prompt\n@1 add acl #0 <<\na\nb\n\nshow version\n",
    "prompt\n@1 add acl #0 <<EOF\na\n\nEOF\nshow version\n",
    "@@1 show version;show version\n",
    "user;@@1 show cli level\n",
    "prompt;@@1 show version\nshow version\n",
    "@@2\n",
    "show ver\0sion\nshow version\n",
    "show\0version;\0show \0version\n",
    "prompt\nshow version\0\n@1 show\0version\nshow version\n",
    concat!("show version ", many!(), "\n"),
    concat!("show version ", many!(), " x;show version\n"),
    concat!("@1 show version ", many!(), " x;show version\n"),
    concat!("prompt\nshow version ", many!(), " x\nshow version\n"),
];

/// A socket of a master CLI.
struct Cli(PathBuf);

impl Cli {
    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.0).expect("the master CLI");
        stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        stream
    }

    /// Sends a text, and returns the answer until the connection ends.
    #[track_caller]
    fn ask(&self, text: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(text.as_bytes()).expect("sending");
        stream.shutdown(std::net::Shutdown::Write).expect("the end");
        rest(&mut stream)
    }

    /// The parsed `show proc`, as callers read it.
    #[track_caller]
    fn processes(&self) -> Processes {
        let text = self.ask("show proc\n");
        let row = |line: &str| -> Vec<String> {
            // Columns of 16 bytes.
            line.as_bytes()
                .chunks(16)
                .map(|column| String::from_utf8_lossy(column).trim().to_owned())
                .collect()
        };
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("#<PID>          <type>          <reloads> "), "{text}");
        assert_eq!(lines[2], "# workers", "{text}");
        let (master, worker) = (row(lines[1]), row(lines[3]));
        assert_eq!((master[1].as_str(), worker[1].as_str()), ("master", "worker"), "{text}");
        let old = lines.iter().skip_while(|line| **line != "# old workers").skip(1);
        let old = old.take_while(|line| line.contains(" worker ")).map(|line| row(line)[0].clone());
        Processes {
            reloads: master[2].clone(),
            worker: worker[0].clone(),
            old: old.collect(),
            text,
        }
    }

    /// The result of `reload`, as callers read it: whether it succeeded, and the messages.
    #[track_caller]
    fn reload(&self) -> (bool, String) {
        let text = self.ask("reload\n");
        let (status, messages) = text.split_once("\n--\n").unwrap_or_else(|| panic!("{text}"));
        assert!(["Success=0", "Success=1"].contains(&status), "{text}");
        (status == "Success=1", messages.to_owned())
    }
}

#[derive(Debug)]
struct Processes {
    /// The master's column.
    reloads: String,
    worker: String,
    old: Vec<String>,
    text: String,
}

fn rest(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    let mut bytes = [0; 4096];
    // A connection that was closed with unread input is reset after its answer.
    while let Ok(read @ 1..) = stream.read(&mut bytes) {
        answer.extend_from_slice(&bytes[..read]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// One service with a master CLI.
struct Service {
    haproxy: Haproxy,
    cli: Cli,
    address: SocketAddr,
    program: PathBuf,
    options: &'static str,
    _broker: Process,
    scene: Scene,
}

impl Service {
    fn start(program: &Path, options: &'static str) -> Self {
        let scene = Scene::new();
        let address = scene.address();
        let file = scene.write("haproxy.cfg", &config(address, 1));
        let (broker, cli) = (scene.broker(), Cli(scene.path("master.sock")));
        let haproxy = Self::begin(&scene, program, &file, &cli, options);
        let program = program.to_owned();
        let mut service = Self { haproxy, cli, address, program, options, _broker: broker, scene };
        service.haproxy.wait_serving(&service.scene);
        service
    }

    fn begin(scene: &Scene, program: &Path, file: &Path, cli: &Cli, options: &str) -> Haproxy {
        let socket = format!("{}{options}", cli.0.display());
        let words = ["-db".into(), "-f".into(), file.into(), "-S".into(), socket.into()];
        let words: Vec<_> = std::iter::once(program.into()).chain(words).collect();
        Haproxy::begin_command(scene, &[], &words)
    }

    fn configure(&self, text: &str) {
        self.scene.write("haproxy.cfg", &(config(self.address, 2) + text));
    }

    /// A client that has sent half a request: its generation drains until the client is gone.
    fn half_a_request(&self) -> TcpStream {
        let mut client = TcpStream::connect(self.address).expect("a client");
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n").expect("half a request");
        eventually("haproxy to have it", || {
            self.cli.ask("@1 show info\n").contains("\nCurrConns: 1\n").then_some(())
        });
        client
    }
}

#[test]
fn it_speaks_as_haproxys_own_master_of_each_version() {
    Haproxy::with_masters().for_each(|program| speaks_the_same(&program));
}

fn speaks_the_same(program: &Path) {
    let service = Service::start(program, "");
    let real = Cli(service.scene.path("r.sock"));
    let file = service.scene.write("real.cfg", &config(service.scene.address(), 1));
    let mut command = service.scene.command(program);
    command.args(["-W", "-db", "-f"]).arg(&file).arg("-S").arg(&real.0);
    let _master = Process::start(&mut command);
    eventually("haproxy's own master", || {
        let mut stream = UnixStream::connect(&real.0).ok()?;
        // Before there is a worker the real master answers with an error, and keeps the connection.
        stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
        stream.write_all(b"@1 show version;quit\n").ok()?;
        rest(&mut stream).starts_with(|c: char| c.is_ascii_digit()).then_some(())
    });
    for conversation in CONVERSATIONS {
        let ours = normal(&service.cli.ask(conversation), &service.cli.0);
        // The real master does not end every connection.
        let mut stream = real.connect();
        stream.write_all(conversation.as_bytes()).expect("sending");
        stream.shutdown(std::net::Shutdown::Write).expect("the end");
        stream.set_nonblocking(true).expect("non-blocking");
        let mut said = String::new();
        let mut theirs = String::new();
        eventually(&format!("as much from haproxy as from us of {conversation:?}"), || {
            let mut bytes = Vec::new();
            let ended = stream.read_to_end(&mut bytes).is_ok();
            said.push_str(&String::from_utf8_lossy(&bytes));
            theirs = normal(&said, &real.0);
            (ended || theirs.len() >= ours.len()).then_some(())
        });
        assert_eq!(ours, theirs, "{}: {conversation:?}", program.display());
    }
}

/// Removes the differences between two services.
fn normal(text: &str, socket: &Path) -> String {
    let text = text.replace(&socket.display().to_string(), "SOCKET");
    let mut out = String::new();
    let mut digits = false;
    for c in text.chars() {
        // Columns keep their width whatever their contents.
        match c.is_ascii_digit() {
            true if digits => {}
            true => out.push('N'),
            false if c == ' ' && out.ends_with("N ") => {}
            false if c == ' ' && out.ends_with("  ") => {}
            false => out.push(c),
        }
        digits = c.is_ascii_digit();
    }
    out
}

#[test]
fn a_reload_tells_its_outcome_as_callers_read_it() {
    Haproxy::all().for_each(|program| tells_its_outcome(&program));
}

fn tells_its_outcome(program: &Path) {
    let mut service = Service::start(program, "");
    let mode = service.cli.0.metadata().expect("the socket").permissions().mode();
    let at_start = service.cli.processes();
    assert_eq!(at_start.reloads, "0 [failed: 0]", "{}", at_start.text);

    // Success, while a client keeps the older generation alive.
    let client = service.half_a_request();
    let (success, messages) = service.cli.reload();
    assert!(success && messages.contains("Loading success."), "{messages}");
    let now = service.cli.processes();
    assert_eq!((now.reloads.as_str(), &now.old), ("1 [failed: 0]", &vec![at_start.worker.clone()]));
    assert_ne!(now.worker, at_start.worker);
    let old = &at_start.worker;
    let info = service.cli.ask(&format!("@!{old} show info\n"));
    assert!(
        info.contains("\nStopping: 1\n") && info.contains(&format!("\nPid: {old}\n")),
        "{info}"
    );
    let level =
        service.cli.ask(&format!("operator;@!{old} show cli level;user;@!{old} show cli level\n"));
    assert_eq!(level, "operator\n\nuser\n\n");
    assert_eq!(service.cli.ask(&format!("@!{old} show cli level\n")), "admin\n\n");
    let number =
        service.cli.ask(&format!("set severity-output number;@!{old} disable server a/b\n"));
    assert_eq!(number, "[3]: No such backend.\n\n");
    assert_eq!(service.cli.ask(&format!("@!{old} disable server a/b\n")), "No such backend.\n\n");
    // What concerns one connection does nothing to the shared one.
    for own in ["quit", "operator", "prompt", "set timeout cli 1"] {
        service.cli.ask(&format!("@!{old} {own}\n"));
        assert_eq!(service.cli.ask(&format!("@!{old} show cli level\n")), "admin\n\n", "{own}");
    }
    let payload = service.cli.ask(&format!("@!{old} add acl #9 <<\nx\n\n"));
    assert!(payload.contains("ACL") && !payload.contains("+ "), "{payload}");

    // Failure: the user's file, and the serving generation is unaffected.
    service.configure("    nonsense\n");
    let (success, messages) = service.cli.reload();
    assert!(!success && messages.contains("haproxy.cfg:"), "{messages}");
    assert!(messages.contains("nonsense") && !messages.contains("generation-"), "{messages}");
    assert_eq!(service.cli.ask("show startup-logs\n"), messages);
    let failed = service.cli.processes();
    assert_eq!((failed.reloads.as_str(), &failed.worker), ("2 [failed: 1]", &now.worker));
    let prompt = service.cli.ask("prompt\n");
    assert_eq!(prompt.lines().last(), Some("master[ReloadFailed]> "));

    // The same after an upgrade, and the counts continue.
    service.scene.run("upgrade", &["--name", "web"]).ok();
    assert_eq!(service.cli.processes().reloads, "2 [failed: 1]");
    assert_eq!(service.cli.ask("show startup-logs\n"), messages);
    assert_eq!(service.cli.ask(&format!("@!{old} show cli level\n")), "admin\n\n");

    // And after the supervisor was killed, perhaps in the middle of a command: the older generation
    // can be reached again.
    service.configure("");
    let before = service.cli.processes();
    for _ in 0..2 {
        let mut asking = service.cli.connect();
        asking.write_all(format!("@!{old} show info\n").as_bytes()).expect("sending");
        service.haproxy.supervisor.kill();
        let file = service.scene.path("haproxy.cfg");
        service.haproxy =
            Service::begin(&service.scene, &service.program, &file, &service.cli, service.options);
        service.haproxy.supervisor.wait_line("taken over: serving");
        let after = eventually("the master CLI", || {
            UnixStream::connect(&service.cli.0).ok()?;
            Some(service.cli.processes())
        });
        assert_eq!(
            (&after.reloads, &after.worker, &after.old),
            (&before.reloads, &before.worker, &before.old)
        );
        for (lowered, level) in [("", "admin"), ("operator;", "operator"), ("user;", "user")] {
            let answer = service.cli.ask(&format!("{lowered}@!{old} show cli level\n"));
            assert_eq!(answer, format!("{level}\n\n"));
        }
    }
    let again = service.cli.0.metadata().expect("the socket").permissions().mode();
    assert_eq!(again, mode);

    // Ten reloads at once; each gets an answer.
    let all: Vec<_> = std::thread::scope(|scope| {
        let ask = || scope.spawn(|| service.cli.reload().0);
        let all: Vec<_> = (0..10).map(|_| ask()).collect();
        all.into_iter().map(|one| one.join().expect("a client")).collect()
    });
    assert_eq!(all, [true; 10]);
    let prompt = service.cli.ask("prompt\n");
    assert_eq!(prompt.lines().last(), Some("master> "));
    let reloads = service.cli.processes().reloads;
    let hard = service.cli.ask("hard-reload\n");
    assert!(hard.starts_with("Success=1\n--\n"), "{hard}");
    assert_ne!(service.cli.processes().reloads, reloads);
    eventually("older generations to end", || service.cli.processes().old.is_empty().then_some(()));
    drop(client);
}

/// What it ends are the older generations of its own reload, not those of another that is in progress.
#[test]
fn a_hard_reload_that_waits_cuts_nothing_of_the_one_before_it() {
    let Some(program) = Haproxy::system() else { return };
    let caller = Caller::new(&program);
    let cli = Cli(caller.scene.path("m.sock"));
    let words = format!("-W -f haproxy.cfg -S {}", cli.0.display());
    let slow = caller.gated("[23]");
    let mut service = Process::start(caller.haproxy(&words).env("BINDONCE_HAPROXY", slow));
    service.wait_line("serving");
    let mut client = TcpStream::connect(caller.address()).expect("it listens");
    client.write_all(b"GET / HTTP/1.0\r\n").expect("half a request");
    // Connections are accepted in order: with an answer to a later one, this one is in progress.
    drop(caller.load().stop());
    caller.configure("", 2);
    service.signal(Signal::SIGHUP);
    service.wait_line("reload requested");
    let mut hard = cli.connect();
    hard.write_all(b"hard-reload\n").expect("sending");
    caller.wait_waiting(1);
    caller.open_gate();
    service.wait_line("serving");
    // The next one has begun.
    caller.wait_waiting(0);
    client.write_all(b"\r\n").expect("the rest");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    assert!(answer.contains("x-generation: 1"), "{answer}");
    caller.open_gate();
    let answer = rest(&mut hard);
    assert!(answer.starts_with("Success=1\n--\n"), "{answer}");
    eventually("older generations to end", || cli.processes().old.is_empty().then_some(()));
    service.terminate();
    caller.wait_none();
}

#[test]
fn a_client_may_do_what_the_option_says() {
    let Some(program) = Haproxy::system() else { return };
    let service = Service::start(&program, ",mode,600,level,user");
    let mode = service.cli.0.metadata().expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(service.cli.ask("reload\n"), "Permission denied\n\n");
    assert_eq!(service.cli.ask("@1 show cli level;operator\n"), "user\n\nPermission denied!\n");
    assert_eq!(service.cli.processes().reloads, "0 [failed: 0]");
}

/// The first generation may answer its own clients before the supervisor knows that it serves.
#[test]
fn a_command_for_the_first_generation_waits_until_it_has_started() {
    let Some(program) = Haproxy::system() else { return };
    let caller = Caller::new(&program);
    let gate = caller.scene.path("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let (gate, haproxy) = (gate.display(), program.display());
    let waits = format!("case \"$*\" in *-db*) read -r go <{gate};; esac");
    let script =
        caller.scene.write("slow", &format!("#!/bin/sh\n{waits}\nexec {haproxy} \"$@\"\n"));
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("its mode");
    let cli = Cli(caller.scene.path("m.sock"));
    let words = format!("-W -f haproxy.cfg -S {}", cli.0.display());
    let mut service = Process::start(caller.haproxy(&words).env("BINDONCE_HAPROXY", script));
    service.wait_line("started");
    let mut asked = cli.connect();
    asked.write_all(b"@1 show version\n").expect("sending");
    // Other clients are answered meanwhile.
    let processes = cli.ask("show proc\n");
    assert!(processes.contains(" master ") && !processes.contains(" worker "), "{processes}");
    fs::write(caller.scene.path("gate"), "go\n").expect("somebody reads it");
    let answer = rest(&mut asked);
    assert!(answer.starts_with("2.") || answer.starts_with("3."), "{answer}");
    service.terminate();
    caller.wait_none();
}

/// A generation has few connections for them, and closes none: its `stats timeout` is long.
#[test]
fn clients_that_are_joined_with_a_process_and_say_nothing_delay_nobody() {
    let Some(program) = Haproxy::fetched("3.2") else { return };
    let service = Service::start(&program, "");
    let text = config(service.address, 2).replace("global\n", "global\n    stats timeout 1h\n");
    service.scene.write("haproxy.cfg", &text);
    assert!(service.cli.reload().0);
    let joined: Vec<_> = (0..6)
        .map(|_| {
            let mut client = service.cli.connect();
            client.write_all(b"prompt\n@@1 prompt\nshow version\n").expect("sending");
            let (mut answer, mut bytes) = (String::new(), [0; 512]);
            // That of the process.
            while !answer.contains("3.2.") {
                let read = client.read(&mut bytes).expect("an answer");
                assert!(read > 0, "closed after {answer:?}");
                answer.push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
            client
        })
        .collect();
    let info = service.cli.ask("@1 show info\n");
    assert!(info.contains("\nPid: "), "{info}");
    drop(joined);
}

#[test]
fn a_client_that_hangs_or_floods_delays_nobody() {
    let Some(program) = Haproxy::system() else { return };
    let service = Service::start(&program, "");
    let mut long = service.cli.connect();
    // The connection is cut off in the middle of the line.
    let _ = long.write_all(&vec![b'a'; 1 << 20]);
    assert_eq!(rest(&mut long), "The line is too long: at most 16384 bytes.\n\n");
    assert_eq!(service.cli.ask("@1 add acl #0 <<\nno end\n"), "");
    let mut payload = service.cli.connect();
    let _ =
        payload.write_all(&[b"@1 add acl #0 <<\n".as_slice(), &b"x y\n".repeat(1 << 18)].concat());
    assert!(rest(&mut payload).starts_with("The payload is too long"));

    let flood = service.cli.connect();
    flood.set_nonblocking(true).expect("non-blocking");
    while (&flood).write(b"help\nshow proc\n@1 show info\nprompt\n").is_ok() {}
    let mut hanging: Vec<_> = (0..100).map(|_| service.cli.connect()).collect();
    for half in hanging.iter_mut().step_by(2) {
        let _ = half.write_all(b"@1 add acl #0 <<\nx\n");
    }
    let begun = Instant::now();
    for _ in 0..20 {
        let info = service.cli.ask("@1 show info;show proc\n");
        assert!(info.contains("\nPid: ") && info.contains(" worker "), "{info}");
    }
    assert!(service.cli.reload().0);
    // No timeout was waited out: a client may be silent for a minute.
    assert!(begun.elapsed() < DEADLINE);
    service.haproxy.supervisor.signal(Signal::SIGHUP);
    eventually("a reload by a signal to be counted", || {
        (service.cli.processes().reloads == "2 [failed: 0]").then_some(())
    });
}

//! Problems of a broker that holds listeners: it reports each until it is solved, and continues.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Process, Scene, Wire, bindonce, eventually, finish};

fn problems(scene: &Scene) -> Vec<Value> {
    let list = scene.wire().call("list", &json!([]));
    list["problems"].as_array().cloned().unwrap_or_default()
}

fn base36(number: u64) -> String {
    match number {
        0..36 => char::from_digit(number as u32, 36).expect("a digit").to_string(),
        _ => base36(number / 36) + &base36(number % 36),
    }
}

#[test]
fn a_broker_that_holds_something_starts_whatever_its_configuration_says() {
    let scene = Scene::new();
    let (held, taken, free) = (scene.address(), scene.address(), scene.address());
    let config = format!("listen = ['web={taken}', 'other={free}']\n");
    let config = scene.write("bindonce.toml", &config).display().to_string();
    let occupied = TcpListener::bind(taken).expect("an address that is taken");
    // Without a socket that would close with it, the broker does not start, and nothing is bound.
    let refused = scene.run("serve", &["--config", &config]);
    let said = refused.fails(1);
    assert!(said.contains(&taken.to_string()), "{said}");
    TcpListener::bind(free).expect("nothing is bound");

    // As a service manager passes sockets that it has kept.
    let kept = TcpListener::bind(held).expect("a socket");
    fcntl(&kept, FcntlArg::F_SETFD(FdFlag::empty())).expect("inherited");
    let number = kept.as_raw_fd();
    let inode = fs::metadata(format!("/proc/self/fd/{number}")).expect("stat").ino();
    let script = format!(
        "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES={} exec \"$@\" 3<&{number}",
        base36(inode)
    );
    let mut command = scene.command("bash");
    command.args(["-c", &script, "serve"]).arg(bindonce());
    command.arg("serve").arg("--socket").arg(scene.socket()).args(["--config", &config]);
    let mut broker = Process::start(&mut command);
    scene.wait_broker(&mut broker);
    drop(kept);
    TcpStream::connect(held).expect("what it holds is kept");
    TcpStream::connect(free).expect("what can be bound is bound");
    let said = problems(&scene);
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(said[0]["kind"], "listener-not-bound");
    assert_eq!(said[0]["subject"], format!("web={taken}"));
    for verb in ["list", "status"] {
        let text = scene.run(verb, &[]).ok();
        assert!(text.contains(&format!("web={taken} of the configuration is not bound")), "{text}");
    }
    let doctor = finish(scene.bindonce("doctor").args(["--json"]));
    assert!(doctor.out.contains("\"kind\": \"broker\""), "{}", doctor.out);

    drop(occupied);
    broker.signal(Signal::SIGHUP);
    eventually("the listener to be bound", || TcpStream::connect(taken).ok());
    assert_eq!(problems(&scene), [] as [Value; 0]);
    broker.terminate();
}

#[test]
fn a_listener_that_was_moved_is_bound_when_the_old_one_is_released() {
    let scene = Scene::new();
    let (old, new) = (scene.address(), scene.address());
    let config = scene.write("bindonce.toml", &format!("listen = ['web={old}']\n"));
    let serve = || {
        let mut command = scene.bindonce("serve");
        command.arg("--config").arg(&config);
        Process::start(&mut command)
    };
    let mut first = serve();
    scene.wait_broker(&mut first);
    let (_, fds) = scene.wire().bind(&["web"]);
    first.kill();
    fs::write(&config, format!("listen = ['web={new}']\n")).expect("an ordinary edit");
    let mut second = serve();
    eventually("the next broker", || {
        Wire::try_connect(&scene.socket())?;
        // Until then the old listener is not recovered yet, and is reported as such.
        problems(&scene).iter().any(|it| it["kind"] == "listener-not-bound").then_some(())
    });
    drop(fds);
    TcpStream::connect(old).expect("the old one is held");
    scene.run("release", &["web"]).ok();
    TcpStream::connect(new).expect("the new one is bound");
    assert_eq!(problems(&scene), [] as [Value; 0]);
    second.terminate();
}

/// What the broker before it left in use has been closed when it starts.
#[test]
fn one_bad_line_leaves_no_other_unbound_when_the_recovery_ends_with_nothing() {
    let (scene, mut first) = Scene::with_broker();
    let (used, good, taken) = (scene.address(), scene.address(), scene.address());
    let mut user = scene.wire();
    let (_, fds) = user.bind(&[&used.to_string()]);
    assert!(first.terminate().success(), "{}", first.story());
    drop((user, fds));
    let occupied = TcpListener::bind(taken).expect("an address that is taken");
    let mut command = scene.bindonce("serve");
    let mut second = Process::start(command.args([
        "--listen",
        &good.to_string(),
        "--listen",
        &taken.to_string(),
    ]));
    eventually("the good line to be bound", || TcpStream::connect(good).ok());
    let said = eventually("the bad one to be reported", || {
        Some(problems(&scene)).filter(|said| !said.is_empty())
    });
    assert_eq!((said.len(), &said[0]["kind"]), (1, &json!("listener-not-bound")), "{said:?}");
    drop(occupied);
    second.signal(Signal::SIGHUP);
    eventually("the listener to be bound", || TcpStream::connect(taken).ok());
    second.terminate();
}

/// As on a full disk: the file may not grow, and then it may.
#[test]
fn a_state_file_that_could_not_be_written_is_written_as_soon_as_it_can_be() {
    let scene = Scene::new();
    let mut command = scene.command("sh");
    // In blocks of 512 bytes; a write beyond the limit fails with EFBIG.
    command.args(["-c", "trap '' XFSZ; ulimit -S -f 8; exec \"$@\"", "serve"]).arg(bindonce());
    command.arg("serve").arg("--socket").arg(scene.socket());
    let mut first = Process::start(&mut command);
    scene.wait_broker(&mut first);
    let mut wire = scene.wire();
    let mut wanted = Vec::new();
    let said = loop {
        let said = problems(&scene);
        if !said.is_empty() {
            break said;
        }
        assert!(wanted.len() < 100, "the state file is never too long: {}", first.story());
        wanted.push(scene.address().to_string());
        wire.bind(&[wanted.last().expect("an address")]);
    };
    assert_eq!(said[0]["kind"], "state-not-written", "{said:?}");

    let limit = nix::sys::resource::RLIM_INFINITY;
    let pid = first.pid().to_string();
    finish(scene.command("prlimit").args(["--pid", &pid, &format!("--fsize={limit}:{limit}")]))
        .ok();
    // No client asks for anything: the write is retried all the same.
    eventually("the state file", || {
        let state = fs::read_to_string(scene.path("broker.sock.state")).ok()?;
        // The file already has half a record, without its end.
        let whole = state.ends_with('\n');
        (whole && wanted.iter().all(|address| state.contains(address))).then_some(())
    });
    assert_eq!(problems(&scene), [] as [Value; 0]);
    first.kill();
    let mut second = scene.broker();
    let (again, _) = scene.wire().bind(&wanted.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(again.iter().all(|entry| entry["created"] == false), "{again:?}");
    second.terminate();
}

/// As under a limit on pids: work that needs a thread holds up neither the end of a connection nor
/// that of its leases.
#[test]
fn a_broker_that_can_make_no_thread_answers_and_loses_no_lease() {
    const USER: u32 = 65_532;
    if !nix::unistd::geteuid().is_root() {
        return crate::harness::skip("root, to become a user with a limit of its own");
    }
    let scene = Scene::new();
    let (held, taken) = (scene.address(), scene.address());
    let _occupied = TcpListener::bind(taken).expect("an address that is taken");
    let run = scene.path("run");
    fs::create_dir(&run).expect("a directory");
    std::os::unix::fs::chown(&run, Some(USER), Some(USER)).expect("its owner");
    let binary = scene.path("bindonce");
    fs::copy(bindonce(), &binary).expect("a copy that the user can execute");
    let socket = run.join("b.sock");
    let id = USER.to_string();
    let mut command = scene.command("setpriv");
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
    command.args(["prlimit", "--nproc=1"]).arg(&binary).arg("serve").arg("--socket").arg(&socket);
    let mut broker = Process::start(&mut command);
    broker.wait_line("broker serves");
    let connect = || Wire::try_connect(&socket).expect("connecting");
    let mut holder = connect();
    holder.bind(&[&held.to_string()]);
    let refused = holder.error("bind", &json!([{"listen": taken.to_string()}]));
    assert_eq!(refused["code"], -32005, "{refused}");
    let many = format!("127.0.0.1:{}-{}", 20_000, 20_999);
    let refused = holder.request("bind", &json!([{"listen": many}]));
    assert!(refused["result"].is_object(), "{refused}");
    drop(holder);
    let released = connect().call("release", &json!([held.to_string()]));
    assert_eq!(released["released"], json!([held.to_string()]));
    // The closed connections end a moment later.
    eventually("only the connection that asks is left", || {
        let status = connect().call("status", &json!([]));
        (status["broker"]["connections"] == 1).then_some(())
    });
    broker.terminate();
}

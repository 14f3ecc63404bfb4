//! `bindonce run` around a real haproxy: unmodified configurations, the broker that it starts
//! itself, and an orderly end.

use std::fs;
use std::path::Path;

use bindonce_load::Plan;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{
    DEADLINE, Haproxy, Process, Scene, Wire, assert_nothing_lost, bindonce, config, eventually,
    finish, listening, serves, skip,
};

/// Debian's own file: daemon, chroot, user, group, a stats socket.
const DEBIAN: &str = "/etc/haproxy/haproxy.cfg";

#[test]
fn debians_own_configuration_plus_a_frontend_works_unmodified() {
    let Some(program) = Haproxy::system() else {
        return;
    };
    let Ok(debian) = fs::read_to_string(DEBIAN) else {
        return skip(&format!("no {DEBIAN}"));
    };
    if !nix::unistd::geteuid().is_root() {
        return skip("chroot and user need root");
    }
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    // The stats socket goes to the test's directory: the system's may be in use.
    let debian = debian.replace("/run/haproxy/", &format!("{}/", scene.path("").display()));
    let with_frontend = |tag: u64| {
        format!(
            "{debian}\nfrontend web\n    bind {address}\n    http-request return status 200 \
             content-type text/plain hdr x-generation {tag} string ok\n"
        )
    };
    let file = scene.write("haproxy.cfg", &with_frontend(1));
    let haproxy = Haproxy::start(&scene, &program, &file);
    let mut plan = Plan::new(address);
    (plan.clients, plan.rate) = (10, Some(1000));
    let load = plan.start().expect("load");
    for tag in 2..=5 {
        scene.write("haproxy.cfg", &with_frontend(tag));
        haproxy.reload(&scene).ok();
        assert!(load.wait_for_token(&tag.to_string(), DEADLINE), "generation {tag} answers");
    }
    let report = load.stop();
    assert_nothing_lost(&report);
}

#[test]
fn listeners_come_and_go_with_the_configuration() {
    let Some(program) = Haproxy::system() else {
        return;
    };
    let (scene, _broker) = Scene::with_broker();
    let (first, second) = (scene.address(), scene.address());
    let file = scene.write("haproxy.cfg", &config(first, 1));
    let haproxy = Haproxy::start(&scene, &program, &file);
    let inode = listening(first)[0].inode;
    scene.write("haproxy.cfg", &config(first, 2).replace("bind ", &format!("bind {second},")));
    haproxy.reload(&scene).ok();
    assert_eq!(listening(first)[0].inode, inode);
    assert_eq!(listening(second).len(), 1);
    for address in [first, second] {
        let mut plan = Plan::new(address);
        plan.connections = Some(200);
        let load = plan.start().expect("load");
        assert!(load.wait_over(DEADLINE));
        let report = load.stop();
        assert_eq!((report.ok, report.tokens[0].token.as_str()), (200, "2"), "{report}");
    }
}

#[test]
fn files_and_directories_are_read_in_haproxys_order() {
    let Some(program) = Haproxy::system() else {
        return;
    };
    let (scene, _broker) = Scene::with_broker();
    let (first, second) = (scene.address(), scene.address());
    fs::create_dir(scene.path("conf.d")).expect("a directory");
    let text = config(first, 1);
    let (head, frontend) = text.split_at(text.find("frontend").expect("a frontend"));
    scene.write("global.cfg", head);
    scene.write("conf.d/10-first.cfg", frontend);
    let other = frontend
        .replace("frontend web", "frontend other")
        .replace(&first.to_string(), "\"$HOST:$PORT\"");
    scene.write("conf.d/20-second.cfg", &other);
    scene.write("conf.d/ignored.txt", "no-such-word\n");
    let mut command = scene.bindonce("run");
    command.env("HOST", "127.0.0.1").env("PORT", second.port().to_string());
    command.args(["--name", "web", "--"]).arg(&program);
    command.arg("-f").arg(scene.path("global.cfg")).arg("-f").arg(scene.path("conf.d"));
    let mut haproxy =
        Haproxy { supervisor: Process::start(&mut command), service: "web".to_owned() };
    haproxy.wait_serving(&scene);
    assert_eq!((listening(first).len(), listening(second).len()), (1, 1));
}

#[test]
fn a_configuration_that_names_its_descriptors_works_with_listen() {
    let Some(program) = Haproxy::system() else {
        return;
    };
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let text = config(address, 1).replace(&format!("bind {address}"), "bind \"fd@${web}\"");
    let file = scene.write("haproxy.cfg", &text);
    let mut command = scene.bindonce("run");
    command.args(["--name", "web", "--listen", &format!("web={address}"), "--"]).arg(program);
    let process = Process::start(command.arg("-f").arg(&file));
    let mut haproxy = Haproxy { supervisor: process, service: "web".to_owned() };
    haproxy.wait_serving(&scene);
    haproxy.reload(&scene).ok();
    assert_eq!(listening(address).len(), 1);
}

/// As when each release of an application has its own directory, and older ones are removed.
#[test]
fn a_removed_current_directory_fails_a_reload_and_no_restart() {
    for program in Haproxy::all() {
        let scene = Scene::new();
        let _broker = scene.broker();
        let address = scene.address();
        let here = scene.path("release");
        std::fs::create_dir(&here).expect("a directory");
        std::fs::write(here.join("haproxy.cfg"), config(address, 1)).expect("a file");
        let mut run = scene.bindonce("run");
        run.current_dir(&here).args(["--name", "web", "--"]).arg(&program);
        let mut run = Process::start(run.args(["-f", "haproxy.cfg"]));
        let pid =
            |line: &str| line.rsplit_once("pid=").and_then(|(_, pid)| pid.trim().parse().ok());
        let first: i32 = pid(&run.wait_line(" serving generation=1")).expect("its pid");
        std::fs::remove_dir_all(&here).expect("removing it");
        let said = scene.run("reload", &["--name", "web"]).fails(1);
        assert!(said.contains("the current directory"), "{said}");
        kill(Pid::from_raw(first), Signal::SIGKILL).expect("killing it");
        run.wait_line(" serving generation=");
        serves(address, 1);
        run.terminate();
    }
}

#[test]
fn an_orderly_end_leaves_the_address_to_the_broker() {
    let Some(program) = Haproxy::system() else {
        return;
    };
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let mut haproxy = Haproxy::start(&scene, &program, &file);
    let inode = listening(address)[0].inode;
    assert!(haproxy.supervisor.terminate().success(), "{}", haproxy.supervisor.story());
    assert_eq!(scene.haproxies(), [0; 0]);
    assert_eq!(listening(address)[0].inode, inode, "clients wait in the queue for the next start");
    let status = scene.wire().call("status", &json!([]));
    assert_eq!(status["services"], json!([]), "{status:#}");
    // The next start serves the clients that waited meanwhile.
    let mut plan = Plan::new(address);
    plan.clients = 3;
    plan.connections = Some(30);
    let load = plan.start().expect("load");
    let _haproxy = Haproxy::start(&scene, &program, &file);
    assert!(load.wait_over(DEADLINE));
    let report = load.stop();
    assert_eq!(report.ok, 30, "{report}");
}

#[test]
fn a_second_supervisor_of_the_same_name_is_refused() {
    let Some(program) = Haproxy::system() else {
        return;
    };
    let (scene, _broker) = Scene::with_broker();
    let file = scene.write("haproxy.cfg", &config(scene.address(), 1));
    let mut haproxy = Haproxy::start(&scene, &program, &file);
    let mut command = scene.bindonce("run");
    let command = command.args(["--name", "web", "--"]).arg(&program).arg("-f").arg(&file);
    let said = finish(command).fails(1);
    assert!(said.contains("web"), "{said}");
    assert!(haproxy.supervisor.is_running());
    assert_eq!(scene.haproxies().len(), 1);
}

#[test]
fn without_a_broker_run_starts_one_that_outlives_it() {
    let Some(program) = Haproxy::system() else {
        return;
    };
    if !nix::unistd::geteuid().is_root() {
        return skip("a private /run needs root");
    }
    let scene = Scene::new();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let mut supervisor = with_a_run_directory_of_its_own(&scene, &program, &file);
    eventually("haproxy to serve behind a broker of its own", || {
        assert!(supervisor.is_running(), "{}", supervisor.story());
        std::net::TcpStream::connect(address).ok()
    });
    supervisor.wait_line("serving");
    let socket = format!("/proc/{}/root/run/bindonce/bindonce.sock", supervisor.pid());
    assert!(Path::new(&socket).exists(), "{}", supervisor.story());
    let broker = broker(&scene);
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
    assert_eq!(listening(address).len(), 1, "the broker holds the address on");
    let session = nix::unistd::getsid(Some(broker)).expect("its session");
    assert_eq!(session, broker, "the broker has a session of its own");
    // `pkill bindonce` and `ps` use this name.
    let name = fs::read_to_string(format!("/proc/{broker}/comm")).expect("its name");
    assert_eq!(name, "bindonce\n");
    kill(broker, Signal::SIGTERM).expect("ending it");
    eventually("the broker to end", || listening(address).is_empty().then_some(()));
}

#[test]
fn a_broker_that_run_starts_again_has_the_listeners_back_before_it_is_ready() {
    let Some(program) = Haproxy::system() else {
        return;
    };
    if !nix::unistd::geteuid().is_root() {
        return skip("a private /run needs root");
    }
    let scene = Scene::new();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let mut supervisor = with_a_run_directory_of_its_own(&scene, &program, &file);
    supervisor.wait_line("serving");
    let first = broker(&scene);
    let socket = format!("/proc/{}/root/run/bindonce/bindonce.sock", supervisor.pid());
    kill(first, Signal::SIGKILL).expect("killing it");
    let process = format!("/proc/{first}");
    eventually("its end", || (!Path::new(&process).exists()).then_some(()));
    // The broker answers a release only after it has recovered what it can.
    let mut wire = eventually("the next broker", || Wire::try_connect(Path::new(&socket)));
    let used = wire.error("release", &json!([address.to_string()]));
    assert_eq!(used["code"], -32007, "{used}");
    drop(wire);
    let second = broker(&scene);
    assert_ne!(first, second);
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
    kill(second, Signal::SIGTERM).expect("ending it");
    eventually("the broker to end", || listening(address).is_empty().then_some(()));
}

/// A supervisor without a broker. Root's default path is under /run, and this supervisor has its
/// own /run.
fn with_a_run_directory_of_its_own(scene: &Scene, program: &Path, file: &Path) -> Process {
    let script = "mount -t tmpfs tmpfs /run && exec \"$@\"";
    let mut command = scene.command("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(bindonce());
    Process::start(command.args(["run", "--"]).arg(program).arg("-f").arg(file))
}

/// The broker that a supervisor started.
fn broker(scene: &Scene) -> Pid {
    eventually("the broker", || {
        let mut processes = scene.processes().into_iter();
        processes.find(|(_, command)| command.contains("serve")).map(|(pid, _)| Pid::from_raw(pid))
    })
}

#[test]
fn with_a_path_given_the_broker_must_exist() {
    let Some(program) = Haproxy::system() else {
        return;
    };
    let scene = Scene::new();
    let file = scene.write("haproxy.cfg", &config(scene.address(), 1));
    let mut command = scene.bindonce("run");
    let said = finish(command.arg("--").arg(&program).arg("-f").arg(&file)).fails(1);
    assert!(said.contains(&scene.socket().display().to_string()), "{said}");
    assert_eq!(scene.haproxies(), [0; 0]);
}

#[test]
fn a_template_of_multibinder_runs() {
    let Some(program) = Haproxy::system() else {
        return;
    };
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let tag = format!("<%= bind_tcp('{}', {}) %>", address.ip(), address.port());
    let text = config(address, 1).replace(&address.to_string(), &tag);
    let file = scene.write("haproxy.cfg.erb", &text);
    let _haproxy = Haproxy::start(&scene, &program, &file);
    assert_eq!(listening(address).len(), 1);
}

#[test]
fn what_a_service_manager_says_reaches_nothing_that_is_started() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let names = ["LISTEN_PIDFDID", "LISTEN_FDNAMES", "MAINPID", "WATCHDOG_PID", "FDSTORE"];
    let named = |environment: &str| {
        let lines = environment.split(['\0', '\n']).filter_map(|line| line.split_once('='));
        let ours = lines.filter(|(name, value)| names.contains(name) && *value == "77");
        ours.map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
    };
    let file = scene.write("haproxy.cfg", &config(scene.address(), 1));
    let mut run = scene.bindonce("run");
    run.args(["--name", "web", "--"]).arg(program).arg("-f").arg(file);
    let supervisor = Process::start(run.envs(names.map(|name| (name, "77"))));
    let mut haproxy = Haproxy { supervisor, service: "web".to_owned() };
    let (_, pid) = haproxy.wait_serving(&scene);
    let environment = fs::read(format!("/proc/{pid}/environ")).expect("its environment");
    assert_eq!(named(&String::from_utf8_lossy(&environment)), [""; 0]);
    // A program, and the check of its readiness.
    let (theirs, checks) = (scene.path("program.env"), scene.path("check.env"));
    let whole = |path: &Path| format!("env >{}.new && mv {0}.new {0}", path.display());
    let (check, script) = (whole(&checks), format!("{}; exec sleep 1000", whole(&theirs)));
    let mut run = scene.bindonce("run");
    run.args(["--name", "sleep", "--listen", &format!("a={}", scene.address())]);
    run.args(["--ready-check", &check, "--", "sh", "-c", &script]);
    let supervisor = Process::start(run.envs(names.map(|name| (name, "77"))));
    let mut program = Haproxy { supervisor, service: "sleep".to_owned() };
    program.wait_serving(&scene);
    for path in [theirs, checks] {
        // The check may succeed before the program has written its file.
        let text = eventually("an environment", || fs::read_to_string(&path).ok());
        assert_eq!(named(&text), [""; 0]);
    }
    let mut exec = scene.bindonce("exec");
    // Its own number, or none on a kernel without such numbers.
    let script = "import os\n\
                  own = str(os.fstat(os.pidfd_open(os.getpid())).st_ino)\n\
                  print(os.environ['LISTEN_FDS'], os.environ.get('LISTEN_PIDFDID', own) == own)";
    exec.args(["--listen", &format!("b={}", scene.address()), "--", "python3", "-c", script]);
    let said = finish(exec.env("LISTEN_PIDFDID", "77").env("LISTEN_PID", "1")).ok();
    assert!(said.contains("1 True"), "{said}");
}

//! The servers in C and in Python take over from each other as those in Rust do, on the library as `./deploy/capi`
//! makes it, and survive their clients.

#![cfg(test)]

mod backend;
#[path = "../../client/tests/support/server.rs"]
mod server;
#[path = "../../client/tests/support/mod.rs"]
mod support;

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use backend::Backend;
use rustix::fs::{FlockOperation, flock};
use server::{RATE, Server, begin, finish, storm, storm_of, survives, survives_of};
use support::Broker;

/// Where the library lies, as below /.
struct Built {
    out: PathBuf,
    /// Locked: no other run builds it anew while this process uses it.
    _used: File,
}

impl Built {
    /// The server in C.
    fn c(&self) -> PathBuf {
        self.out.join("server")
    }

    /// The proxy in C.
    fn proxy(&self) -> PathBuf {
        self.out.join("proxy")
    }

    /// The server in Python, by a script that says where the library is.
    fn python(&self) -> PathBuf {
        self.out.join("server.py")
    }
}

fn run(command: &mut Command) {
    let output = command.output().expect("it starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
}

/// Built once for each run of tests, below the build's own directory. Under nextest each test is a
/// process: the first of a run builds, and the others wait for it.
static BUILT: LazyLock<Built> = LazyLock::new(|| {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (out, of_run) = (place.join("capi"), place.join("capi/run"));
    let file = |name: &str| File::create(place.join(name)).expect("a file");
    let (building, used) = (file("capi.building"), file("capi.used"));
    flock(&building, FlockOperation::LockExclusive).expect("the lock");
    let this_run = std::env::var("NEXTEST_RUN_ID").ok();
    if this_run.is_none() || std::fs::read_to_string(&of_run).ok() != this_run {
        // Waits for processes of another run.
        flock(&used, FlockOperation::LockExclusive).expect("the lock");
        let _ = std::fs::remove_dir_all(&out);
        build(&out);
        std::fs::write(&of_run, this_run.unwrap_or_default()).expect("write");
    }
    flock(&used, FlockOperation::LockShared).expect("the lock");
    Built { out, _used: used }
});

/// Builds the library, and the programs in C on it.
fn build(out: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    run(Command::new(root.join("deploy/capi")).arg("--debug").arg(out));
    let (lib, include) = (out.join("usr/lib"), out.join("usr/include"));
    let examples = root.join("crates/capi/examples");
    for program in ["server", "proxy"] {
        run(Command::new("cc")
            .args(["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(out.join(program))
            .arg(examples.join(program).with_extension("c"))
            .arg(format!("-I{}", include.display()))
            .arg(format!("-L{}", lib.display()))
            .arg(format!("-Wl,-rpath,{}", lib.display()))
            .arg("-lbindonce"));
    }
    let script = format!(
        "#!/bin/sh\nLD_LIBRARY_PATH='{}' exec python3 '{}' \"$1\"\n",
        lib.display(),
        examples.join("server.py").display()
    );
    std::fs::write(out.join("server.py"), script).expect("write");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(out.join("server.py"), mode).expect("chmod");
}

#[test]
fn a_server_in_c_restarts_fifty_times_and_survives_its_clients() {
    storm(&BUILT.c(), 50);
    survives(&BUILT.c());
}

/// Starts generation after generation of the proxy, each with a backend of its own, whose answers have the
/// generation's number: so a client hears which one has served it.
fn proxies(program: PathBuf) -> impl FnMut(&Broker) -> Server {
    let mut backends: Vec<Backend> = Vec::new();
    move |broker| {
        let number = backends.len() + 1;
        let backend = Backend::start(number);
        let address = backend.address.to_string();
        backends.push(backend);
        let server = Server::given(&program, &["web=127.0.0.1:0", &address], broker);
        assert_eq!(server.generation, number.to_string());
        server
    }
}

#[test]
fn a_proxy_in_c_restarts_fifty_times_and_survives_its_clients() {
    storm_of(proxies(BUILT.proxy()), 50, RATE);
    survives_of(proxies(BUILT.proxy()));
}

#[test]
fn a_server_in_python_restarts_fifteen_times() {
    let program = BUILT.python();
    // An interpreter starts slowly and answers fewer clients.
    storm_of(|broker| Server::start(&program, broker), 15, 200);
}

#[test]
fn a_server_in_python_survives_its_clients_and_takes_over_from_one_in_c() {
    survives(&BUILT.python());
    let broker = Broker::start();
    let c = Server::start(&BUILT.c(), &broker);
    let draining = begin(c.address);
    assert!(finish(begin(c.address)).contains(&format!("generation {},", c.generation)));
    let python = Server::start(&BUILT.python(), &broker);
    assert!(finish(draining).contains(&format!("generation {},", c.generation)));
    c.ends();
    assert!(finish(begin(python.address)).contains(&format!("generation {},", python.generation)));
}

//! The servers in C and in Python take over from each other as those in Rust do, on the library as `./deploy/capi`
//! makes it, and survive their clients.

#![cfg(test)]

mod backend;
#[path = "../../client/tests/support/server.rs"]
mod server;
#[path = "../../client/tests/support/mod.rs"]
mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use backend::Backend;
use server::{Server, begin, finish, storm, storm_of, survives, survives_of};
use support::Broker;

/// Where the library lies, as below /.
struct Built(PathBuf);

impl Built {
    /// The server in C.
    fn c(&self) -> PathBuf {
        self.0.join("server")
    }

    /// The proxy in C.
    fn proxy(&self) -> PathBuf {
        self.0.join("proxy")
    }

    /// The server in Python, by a script that says where the library is.
    fn python(&self) -> PathBuf {
        self.0.join("server.py")
    }
}

fn run(command: &mut Command) {
    let output = command.output().expect("it starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
}

/// Built once for each process of tests, below the build's own directory.
static BUILT: LazyLock<Built> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("capi-{}", std::process::id()));
    run(Command::new(root.join("deploy/capi")).arg("--debug").arg(&out));
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
    Built(out)
});

/// Has what was built removed when the test is over.
struct Use(&'static Built);

impl Use {
    fn new() -> Self {
        Self(&BUILT)
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        // Each test is a process of its own under nextest; under cargo test the build is left in the target directory.
        if std::env::var_os("NEXTEST").is_some() {
            let _ = std::fs::remove_dir_all(&self.0.0);
        }
    }
}

#[test]
fn a_server_in_c_restarts_fifty_times_and_survives_its_clients() {
    let built = Use::new();
    storm(&built.0.c(), 50);
    survives(&built.0.c());
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
    let built = Use::new();
    storm_of(proxies(built.0.proxy()), 50);
    survives_of(proxies(built.0.proxy()));
}

#[test]
fn a_server_in_python_restarts_fifty_times() {
    storm(&Use::new().0.python(), 50);
}

#[test]
fn a_server_in_python_survives_its_clients_and_takes_over_from_one_in_c() {
    let built = Use::new();
    survives(&built.0.python());
    let broker = Broker::start();
    let c = Server::start(&built.0.c(), &broker);
    let draining = begin(c.address);
    assert!(finish(begin(c.address)).contains(&format!("generation {},", c.generation)));
    let python = Server::start(&built.0.python(), &broker);
    assert!(finish(draining).contains(&format!("generation {},", c.generation)));
    c.ends();
    assert!(finish(begin(python.address)).contains(&format!("generation {},", python.generation)));
}

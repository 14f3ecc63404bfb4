//! Programs of docs/programs.md that Debian ships and that start fast: each is reloaded under load
//! as its line of the table says, and no client fails. The server in Go is the code of that page.

use std::fs;
use std::path::Path;
use std::process::Command;

use bindonce_load::Plan;

use crate::harness::{DEADLINE, Process, Scene, eventually, finish, root, skip};

const RELOADS: u64 = 3;

struct Known {
    /// Options of `run`.
    options: &'static [&'static str],
    /// Files, in which @DIR@ stands for their directory and @PORT@ for the port.
    files: &'static [(&'static str, &'static str)],
    /// The command, with the same placeholders.
    command: &'static [&'static str],
    /// Whether its answers have the generation's number.
    numbered: bool,
}

const LIGHTTPD: Known = Known {
    options: &["--as", "lighttpd"],
    files: &[
        (
            "lighttpd.conf",
            r#"server.document-root = "@DIR@"
server.bind = "127.0.0.1"
server.port = @PORT@
server.systemd-socket-activation = "enable"
server.modules = ("mod_setenv")
index-file.names = ("index.html")
setenv.add-response-header = ("X-Generation" => env.BINDONCE_GENERATION)
"#,
        ),
        ("index.html", "hello\n"),
    ],
    command: &["lighttpd", "-D", "-f", "@DIR@/lighttpd.conf"],
    numbered: true,
};

const H2O: Known = Known {
    options: &["--as", "h2o"],
    files: &[
        (
            "h2o.conf",
            "user: root\nlisten:\n  host: 127.0.0.1\n  port: @PORT@\nhosts:\n  default:\n    paths:\n      /:\n        file.dir: @DIR@\n",
        ),
        ("index.html", "hello\n"),
    ],
    command: &["h2o", "-c", "@DIR@/h2o.conf"],
    numbered: false,
};

const GUNICORN: Known = Known {
    options: &["--as", "gunicorn"],
    files: &[(
        "app.py",
        r#"import os
def app(environ, start):
    start("200 OK", [("Content-Length", "6"), ("X-Generation", os.environ["BINDONCE_GENERATION"])])
    return [b"hello\n"]
"#,
    )],
    command: &["gunicorn", "--chdir", "@DIR@", "app:app"],
    numbered: true,
};

const NODE: Known = Known {
    options: &["--ready-delay", "500ms"],
    files: &[(
        "server.js",
        r#"const server = require("http").createServer((request, response) => {
    response.setHeader("X-Generation", process.env.BINDONCE_GENERATION);
    response.end("hello\n");
});
server.listen({ fd: 3 });
process.on("SIGTERM", () => server.close());
"#,
    )],
    command: &["node", "@DIR@/server.js"],
    numbered: true,
};

const GO: Known = Known { options: &[], files: &[], command: &["@DIR@/server"], numbered: true };

/// The code around the page's lines.
const GO_HEAD: &str = r#"package main

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Generation", os.Getenv("BINDONCE_GENERATION"))
		io.WriteString(w, "hello\n")
	})}
"#;

impl Known {
    /// Reloads the program under load. Every answer is good, and after a reload none is from an
    /// older generation.
    fn is_reloaded(&self, prepare: impl FnOnce(&Path)) {
        let program = self.command[0];
        if !program.starts_with('@')
            && !["/usr/sbin", "/usr/bin", "/usr/local/bin"]
                .iter()
                .any(|place| Path::new(place).join(program).exists())
        {
            return skip(&format!("no {program} is installed"));
        }
        let scene = Scene::new();
        let address = scene.address();
        let directory = scene.path("served");
        fs::create_dir(&directory).expect("a directory");
        let place = directory.to_str().expect("text");
        let filled = |text: &str| {
            text.replace("@DIR@", place).replace("@PORT@", &address.port().to_string())
        };
        for (name, text) in self.files {
            fs::write(directory.join(name), filled(text)).expect("write");
        }
        prepare(&directory);
        let _broker = scene.broker();
        let claim = format!("web={address}");
        // Bound before the first client connects.
        scene.run("bind", &[&claim]).ok();
        let mut command = scene.bindonce("run");
        command.args(["--name", "web", "--listen", &claim]).args(self.options).arg("--");
        command.args(self.command.iter().map(|word| filled(word)));
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin");
        let mut supervisor = Process::start(&mut command);
        let serves = |number: u64| {
            eventually(&format!("{program} {number} to serve"), || {
                let said = scene.run("status", &[]).ok();
                said.lines()
                    .any(|line| {
                        line.contains("serving")
                            && line.split_whitespace().any(|word| word == number.to_string())
                    })
                    .then_some(())
            });
        };
        serves(1);
        let plan = Plan { clients: 4, rate: Some(200), ..Plan::new(address) };
        let load = plan.start().expect("load");
        assert!(load.wait_for(20, DEADLINE), "it answers nobody: {}", supervisor.story());
        for number in 2..2 + RELOADS {
            finish(scene.bindonce("reload").args(["--name", "web"])).ok();
            let mut few = Plan::new(address);
            (few.clients, few.connections) = (4, Some(20));
            let few = few.start().expect("load");
            assert!(few.wait_over(DEADLINE), "no answers");
            let report = few.stop();
            assert_eq!(report.ok, 20, "{report}");
            if self.numbered {
                let tokens: Vec<_> = report.tokens.iter().map(|seen| seen.token.clone()).collect();
                assert_eq!(tokens, [number.to_string()], "{report}");
            }
            serves(number);
        }
        let report = load.stop();
        println!("{program}: {} connections, {} failed", report.connections, report.failed());
        assert_eq!(report.failed(), 0, "{:#}", report.to_json());
        assert!(supervisor.terminate().success(), "{}", supervisor.story());
    }
}

#[test]
fn lighttpd_is_reloaded() {
    LIGHTTPD.is_reloaded(|_| {});
}

#[test]
fn h2o_is_reloaded() {
    H2O.is_reloaded(|_| {});
}

#[test]
fn gunicorn_is_reloaded() {
    GUNICORN.is_reloaded(|_| {});
}

#[test]
fn node_is_reloaded() {
    NODE.is_reloaded(|_| {});
}

#[test]
fn a_server_in_go_of_the_documentation_is_reloaded() {
    if Command::new("go").arg("version").output().is_err() {
        return skip("no go is installed");
    }
    GO.is_reloaded(|directory| {
        let page = fs::read_to_string(root().join("docs/programs.md")).expect("the page");
        let (_, rest) = page.split_once("```go\n").expect("lines of Go");
        let (lines, _) = rest.split_once("```").expect("their end");
        let source = directory.join("server.go");
        fs::write(&source, format!("{GO_HEAD}{lines}}}\n")).expect("write");
        let mut build = Command::new("go");
        build.args(["build", "-o"]).arg(directory.join("server")).arg(&source);
        build.env("GOCACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/go-cache"));
        build.env("GOFLAGS", "-mod=mod").env("HOME", directory);
        build.env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "local");
        // Without a deadline of its own: the first build compiles net/http too.
        let built = build.current_dir(directory).output().expect("go");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    });
}

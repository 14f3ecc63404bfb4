//! Programs of Debian, as they are.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{only, pid_of, reload, run};
use crate::harness::{Guest, Scene, eventually, skip};

#[test]
fn nginx_binds_and_reloads_by_itself_also_after_an_upgrade_of_the_supervisor() {
    let Some(nginx) = Guest::Nginx.program() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (one, other) = (scene.address(), scene.address());
    let configuration = |other: SocketAddr| {
        let text = Guest::Nginx.config(&scene, one, 1);
        let text = text.replace("    keepalive", &format!(
            "    server {{ listen {other} reuseport; location / {{ return 200; }} }}\n    keepalive"
        ));
        scene.write("nginx.conf", &format!("daemon off;\n{text}"))
    };
    let file = configuration(other);
    let (nginx, file) = (nginx.to_str().expect("a path"), file.to_str().expect("a path"));
    let retire = ["--retire-signal", "SIGQUIT"];
    let program = [nginx, "-e", "stderr", "-c", file];
    let Some(mut supervisor) = run(&scene, &retire, &program) else { return };
    let inode = only(one);
    // Each worker binds it with SO_REUSEPORT, and all get the same.
    only(other);
    reload(&scene);
    assert_eq!(only(one), inode);
    scene.run("upgrade", &["--name", "web"]).ok();
    let third = scene.address();
    configuration(third);
    // Not by its pid file, which the older one removes when it ends.
    kill(Pid::from_raw(pid_of(&mut supervisor, 2)), Signal::SIGHUP).expect("kill");
    eventually("what it binds after the upgrade to be the broker's", || {
        let held = scene.run("list", &[]).ok();
        held.contains(&third.to_string()).then_some(())
    });
    only(third);
    assert_eq!(only(one), inode);
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
}

#[test]
fn other_programs_of_debian_share_one_socket() {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let port = address.port().to_string();
    let here = scene.path("");
    let modules = "/usr/lib/apache2/modules";
    let apache = scene.write("apache.conf", &format!(
        "ServerRoot {here}\nPidFile {here}/pid.${{BINDONCE_GENERATION}}\nListen {address}\nServerName x\n\
         LoadModule mpm_event_module {modules}/mod_mpm_event.so\nErrorLog /dev/stderr\n\
         LoadModule authz_core_module {modules}/mod_authz_core.so\n",
        here = here.display()
    ));
    let node = scene.write(
        "server.js",
        &format!(
            "require('http').createServer((q, r) => r.end()).listen({port}, '127.0.0.1');\n\
         process.on('SIGTERM', () => process.exit(0));\n"
        ),
    );
    let (apache, node) = (apache.display().to_string(), node.display().to_string());
    for (retire, program) in [
        ("SIGTERM", &["python3", "-m", "http.server", &port, "--bind", "127.0.0.1"][..]),
        ("SIGWINCH", &["apache2", "-DFOREGROUND", "-f", &apache]),
        ("SIGTERM", &["node", &node]),
    ] {
        if !has(program[0]) {
            continue;
        }
        let Some(mut supervisor) = run(&scene, &["--retire-signal", retire], program) else {
            return;
        };
        let inode = only(address);
        let said = reload(&scene);
        assert!(said.contains(" serves"), "{program:?}: {said}");
        if program[0] == "apache2" {
            // It closes and binds by itself.
            let generation = said.split("generation ").nth(1).expect("a generation");
            let generation = generation.split(' ').next().and_then(|text| text.parse().ok());
            let pid = pid_of(&mut supervisor, generation.expect("a number"));
            let resumed = "resuming normal operations";
            // Before, the signal ends it.
            eventually("apache2 to hear signals", || {
                (supervisor.story().matches(resumed).count() == 2).then_some(())
            });
            kill(Pid::from_raw(pid), Signal::SIGHUP).expect("kill");
            eventually("apache2 to have reloaded by itself", || {
                (supervisor.story().matches(resumed).count() == 3).then_some(())
            });
            TcpStream::connect(address).expect("connect");
        }
        assert_eq!(only(address), inode, "{program:?}");
        assert!(supervisor.terminate().success(), "{}", supervisor.story());
        scene.run("release", &[&address.to_string()]).ok();
    }
}

fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
    let found = found.is_ok_and(|found| found.status.success());
    if !found {
        skip(&format!("no {program} is installed"));
    }
    found
}

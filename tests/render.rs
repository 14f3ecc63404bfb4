//! `bindonce render`: the rendered configuration that a person sees. The rules themselves have
//! their golden tests in crates/haproxy.

use crate::harness::{Haproxy, Scene, eventually, finish, listening};

#[test]
fn only_the_address_word_changes() {
    let scene = Scene::new();
    let text = "# a comment\nglobal\n    maxconn 100\nfrontend web\n    bind 127.0.0.1:8080 name first # end\n\
                \x20   mode http\n\n";
    let file = scene.write("haproxy.cfg", text);
    let out = scene.run("render", &[file.to_str().unwrap()]).ok();
    assert!(out.contains("fd@${BINDONCE_"), "{out}");
    for line in text.lines().filter(|line| !line.contains("bind ") && !line.is_empty()) {
        assert!(out.lines().any(|rendered| rendered == line), "{line:?} is not in\n{out}");
    }
    let bind =
        out.lines().find(|line| line.trim_start().starts_with("bind ")).expect("a bind line");
    assert!(bind.contains("name first") && !bind.contains(":8080"), "{bind}");
}

#[test]
fn explain_gives_the_reason_for_each_line_left_alone() {
    let scene = Scene::new();
    let text = "global\n    stats socket /run/x.sock\nfrontend web\n    bind 127.0.0.1:8080\n    \
                bind mptcp@127.0.0.1:8443 ssl crt /x.pem\n    bind fd@7\n";
    let file = scene.write("haproxy.cfg", text);
    let said = finish(scene.bindonce("render").arg("--explain").arg(&file)).ok();
    for part in ["mptcp@127.0.0.1:8443", "fd@7", "stats socket", ":5", ":6", ":2"] {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
}

#[test]
fn two_lines_on_one_address_are_refused_with_both_places() {
    let scene = Scene::new();
    let text = "frontend a\n    bind 127.0.0.1:8080\nfrontend b\n    bind 127.0.0.1:8080\n";
    let file = scene.write("haproxy.cfg", text);
    let said = scene.run("render", &[file.to_str().unwrap()]).fails(1);
    let path = file.display();
    assert!(said.contains(&format!("{path}:2")) && said.contains(&format!("{path}:4")), "{said}");
}

#[test]
fn a_rendered_configuration_is_one_that_haproxy_takes() {
    let Some(haproxy) = Haproxy::system() else {
        return;
    };
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &crate::harness::config(address, 1));
    finish(scene.bindonce("check").arg("--").arg(&haproxy).arg("-f").arg(&file)).ok();
    // The broker notices the end of `check` itself.
    eventually("what it has bound to be closed", || listening(address).is_empty().then_some(()));
    let broken =
        scene.write("broken.cfg", "frontend web\n    bind 127.0.0.1:8080\n    no-such-word\n");
    let said =
        finish(scene.bindonce("check").arg("--").arg(&haproxy).arg("-f").arg(&broken)).fails(1);
    assert!(said.contains(&format!("{}:3", broken.display())), "{said}");
}

/// Facts that only haproxy knows, with each available haproxy: the claims depend on that haproxy.
#[test]
fn the_haproxy_of_the_command_decides() {
    let scene = Scene::new();
    let text = ".if version_atleast(3.1)\nfrontend new\n    bind 127.0.0.1:8081\n.else\nfrontend old\n    \
                bind 127.0.0.1:8082\n.endif\nfrontend f\n    bind \"127.0.0.1:${P-8083}\"\nglobal\n    setenv P 8084\n";
    let file = scene.write("haproxy.cfg", text);
    for (version, ahead) in [("3.0", false), ("3.2", true)] {
        let Some(haproxy) = Haproxy::fetched(version) else { continue };
        let mut render = scene.bindonce("render");
        let said = finish(render.args(["--explain", "--"]).arg(&haproxy).arg("-f").arg(&file)).ok();
        let (branch, variable) = if ahead { (":8081", ":8084") } else { (":8082", ":8083") };
        assert!(said.contains(branch) && said.contains(variable), "{version}: {said}");
    }
    let mut render = scene.bindonce("render");
    let said = finish(render.args(["--", "/nonexistent/haproxy", "-f"]).arg(&file)).fails(1);
    assert!(said.contains("/nonexistent/haproxy does not answer"), "{said}");
}

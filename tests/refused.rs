//! Reloads that must fail: the error has haproxy's own words with the user's file and line, the old
//! generation keeps serving, and nothing is left bound.

use std::net::{SocketAddr, TcpListener};

use bindonce_load::Plan;
use serde_json::json;

use crate::harness::{
    DEADLINE, Haproxy, Process, Scene, assert_nothing_lost, config, eventually, finish, listening,
};

/// A running haproxy, and load that must not notice anything. Fields are dropped in this order.
struct Stage {
    load: bindonce_load::Load,
    haproxy: Haproxy,
    _broker: Process,
    scene: Scene,
    address: SocketAddr,
}

fn stage() -> Option<Stage> {
    let program = Haproxy::system()?;
    let (scene, broker) = Scene::with_broker();
    let (address, haproxy) = Haproxy::start_at(&scene, &[], &program);
    let mut plan = Plan::new(address);
    (plan.clients, plan.rate) = (4, Some(1000));
    let load = plan.start().expect("starting the load");
    assert!(load.wait_for(50, DEADLINE));
    Some(Stage { scene, _broker: broker, haproxy, address, load })
}

impl Stage {
    /// Reloads with this configuration, which must fail; returns the output.
    #[track_caller]
    fn refuse(&self, text: &str) -> String {
        self.scene.write("haproxy.cfg", text);
        self.haproxy.reload(&self.scene).fails(1)
    }

    /// Checks that the old generation alone keeps serving, that only its listener is bound, and
    /// that a good configuration is accepted afterwards.
    #[track_caller]
    fn unharmed(self) {
        let Self { scene, haproxy, address, load, .. } = &self;
        assert!(load.wait_for(50, DEADLINE), "no more answers");
        eventually("the failed generation to be gone", || {
            (scene.haproxies().len() == 1).then_some(())
        });
        eventually("its listeners to be gone", || {
            let listed = scene.wire().call("list", &json!([]));
            let tcp = listed["listeners"].as_array()?.iter();
            let tcp: Vec<_> = tcp
                .filter_map(|entry| entry["address"].as_str())
                .filter(|a| !a.contains('@'))
                .collect();
            (tcp == [address.to_string()]).then_some(())
        });
        scene.write("haproxy.cfg", &config(*address, 2));
        haproxy.reload(scene).ok();
        assert!(load.wait_for_token("2", DEADLINE), "the next good configuration is not taken");
        let report = self.load.stop();
        assert_nothing_lost(&report);
    }
}

#[test]
fn a_configuration_error() {
    let Some(stage) = stage() else { return };
    let other = stage.scene.address();
    let text = config(stage.address, 9)
        + &format!("frontend other\n    bind {other}\n    no-such-word here\n");
    let line = text.lines().count();
    let said = stage.refuse(&text);
    let place = format!("{}:{line}", stage.scene.path("haproxy.cfg").display());
    assert!(said.contains(&place) && said.contains("no-such-word"), "{place} is not in:\n{said}");
    eventually("the new listener to be closed", || listening(other).is_empty().then_some(()));
    stage.unharmed();
}

/// Each generation would have a master, and each master a copy of the program.
#[test]
fn a_program_section_under_a_master() {
    let Some(stage) = stage() else { return };
    let ran = stage.scene.path("ran");
    let program = format!("program side\n    command /bin/touch {}\n", ran.display());
    let text = config(stage.address, 9) + &program + "global\n    master-worker\n";
    let line = text.lines().position(|line| line == "program side").expect("the section") + 1;
    let told = |said: &str| {
        for part in [&*format!("haproxy.cfg:{line}: "), "program side", "a service of its own"] {
            assert!(said.contains(part), "{part} is not in:\n{said}");
        }
    };
    told(&stage.refuse(&text));
    let file = stage.scene.path("haproxy.cfg");
    let haproxy = Haproxy::system().expect("haproxy");
    for (command, options) in
        [("check", &[][..]), ("render", &["--explain"]), ("run", &["--name", "other"])]
    {
        let mut command = stage.scene.bindonce(command);
        told(&finish(command.args(options).arg("--").arg(&haproxy).arg("-f").arg(&file)).fails(1));
    }
    assert!(!ran.exists(), "the program has been run");
    stage.unharmed();
}

#[test]
fn a_port_in_use() {
    let Some(stage) = stage() else { return };
    let squatter = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let taken = squatter.local_addr().expect("its address");
    let text = config(stage.address, 9) + &format!("frontend other\n    bind {taken}\n");
    let line = text.lines().count();
    let said = stage.refuse(&text);
    assert!(said.contains(&taken.to_string()), "{said}");
    assert!(said.contains(&format!("haproxy.cfg:{line}")), "{said}");
    stage.unharmed();
}

#[test]
fn a_missing_certificate() {
    let Some(stage) = stage() else { return };
    let other = stage.scene.address();
    let missing = stage.scene.path("missing.pem");
    let text = config(stage.address, 9)
        + &format!("frontend other\n    bind {other} ssl crt {}\n", missing.display());
    let line = text.lines().count();
    let said = stage.refuse(&text);
    assert!(said.contains(&missing.display().to_string()), "{said}");
    assert!(said.contains(&format!("haproxy.cfg:{line}")), "{said}");
    stage.unharmed();
}

#[test]
fn one_address_twice() {
    let Some(stage) = stage() else { return };
    let text = config(stage.address, 9) + &format!("frontend other\n    bind {}\n", stage.address);
    let said = stage.refuse(&text);
    let last = text.lines().count();
    assert!(
        said.contains("haproxy.cfg:9") && said.contains(&format!("haproxy.cfg:{last}")),
        "{said}"
    );
    stage.unharmed();
}

#[test]
fn a_file_that_is_gone() {
    let Some(stage) = stage() else { return };
    let file = stage.scene.path("haproxy.cfg");
    std::fs::remove_file(&file).expect("removing the configuration");
    let said = stage.haproxy.reload(&stage.scene).fails(1);
    assert!(said.contains(&file.display().to_string()), "{said}");
    stage.unharmed();
}

#[test]
fn a_first_start_that_fails_leaves_nothing_bound() {
    let Some(program) = Haproxy::system() else {
        return;
    };
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &(config(address, 1) + "    no-such-word\n"));
    let mut command = scene.bindonce("run");
    let command = command.args(["--name", "web", "--"]).arg(program).arg("-f").arg(&file);
    let said = crate::harness::finish(command).fails(1);
    assert!(said.contains(&format!("{}:11", file.display())), "{said}");
    eventually("its listener to be closed", || listening(address).is_empty().then_some(()));
}

#[test]
fn a_reload_without_a_service_says_so() {
    let scene = Scene::new();
    let said = scene.run("reload", &["--name", "nobody"]).fails(1);
    assert!(said.contains("nobody"), "{said}");
}

//! The Debian package on a Debian of its own, with a real systemd as PID 1: what its scripts, its
//! units and its drop-in for haproxy.service promise (tests/measure/package.py).

use std::fs;
use std::io::ErrorKind;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Scene, bindonce, finish, root, skip};

#[test]
fn the_package_is_installed_upgraded_and_purged_under_load_and_loses_nothing() {
    let load = bindonce().with_file_name("bindonce-load");
    if !load.exists() {
        return skip("no bindonce-load beside bindonce: cargo build --workspace makes it");
    }
    let output = Command::new("python3")
        .arg(root().join("tests/measure/package.py"))
        .arg("--binary")
        .arg(bindonce())
        .arg("--load")
        .arg(load)
        .output()
        .expect("python3");
    let text = String::from_utf8_lossy(&output.stdout);
    let seen: Value = serde_json::from_str(&text).unwrap_or_else(|error| {
        panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr))
    });
    if let Some(why) = seen["skipped"].as_str() {
        return skip(why);
    }
    assert!(output.status.success(), "{text}");

    // Installed: the broker runs as its own user, and nothing of Debian's is touched.
    assert_eq!(seen["broker"], json!(["active", "bindonce", "enabled"]), "{text}");
    assert_eq!(seen["control"], json!(["bindonce:bindonce 755", "bindonce:bindonce 660"]));
    assert_eq!([&seen["plain"], &seen["untouched"]], [true, true], "{text}");
    assert_eq!(seen["verify"], json!([]), "systemd-analyze verify");
    assert!(seen["exposure"].as_f64().is_some_and(|exposure| exposure <= 2.0), "{text}");
    // With the drop-in haproxy.service is a supervisor, whose pid is in haproxy's file.
    let pid = &seen["supervised"][0];
    assert_eq!(seen["supervised"], json!([pid, "/usr/bin/bindonce", pid]), "{text}");

    // Reloads, restarts of both, upgrades: nobody noticed.
    let load = &seen["load"];
    assert_eq!([&load["failed"], &load["stale"]], [0, 0], "{load}");
    assert!(load["ok"].as_u64() > Some(1000), "{load}");
    assert!(seen["tokens"].as_u64() >= Some(10), "generations that answered: {text}");

    // An upgrade: the same processes, of the new file. One that cannot work: the same processes.
    assert_eq!(seen["version"], "0.1.0-2 ii", "{text}");
    for when in ["before_upgrade", "after_upgrade", "after_repair"] {
        let pid = |at: usize| seen["before_upgrade"][at][0].clone();
        let same = json!([[pid(0), "/usr/bin/bindonce"], [pid(1), "/usr/bin/bindonce"]]);
        assert_eq!(seen[when], same, "{when}: {text}");
    }
    let said = seen["broken"][1].as_str().unwrap_or_default();
    assert_eq!(
        seen["broken"][0], 0,
        "an installation that cannot upgrade what runs succeeds: {said}"
    );
    for who in ["the broker", "the supervisor of \"haproxy\""] {
        assert!(said.contains(&format!("warning: {who} was not upgraded in place")), "{said}");
    }
    assert_eq!([&seen["still_answers"], &seen["configuration"]], [true, true], "{text}");

    // Gone: haproxy.service is Debian's again, and no file is left; the user is, as in Debian.
    assert_eq!(seen["plain_again"], json!(["/usr/sbin/haproxy", true]), "{text}");
    for none in ["left", "lost", "changed"] {
        assert_eq!(seen[none], json!([]), "{none} after the purge");
    }
    assert_eq!([&seen["units_left"], &seen["user_left"]], [&json!(""), &json!(true)], "{text}");
    assert_eq!(seen["failed"], json!([]), "units that failed: {text}");
}

/// What the package has beside the binary: pages that groff(1) has nothing against, and
/// completions that the shells read.
#[test]
fn pages_and_completions_are_what_their_readers_expect() {
    let writer = bindonce().with_file_name("bindonce-package");
    if !writer.exists() {
        return skip("no bindonce-package beside bindonce: cargo build --workspace makes it");
    }
    let scene = Scene::new();
    let out = scene.path("package");
    finish(Command::new(writer).arg(&out).env("SOURCE_DATE_EPOCH", "1700000000")).ok();
    let mut pages = 0;
    for page in fs::read_dir(out.join("man")).expect("pages") {
        let page = page.expect("a page").path();
        let mut groff = Command::new("groff");
        groff.args(["-man", "-Tutf8", "-ww", "-z"]).arg(&page);
        match groff.output() {
            Err(error) if error.kind() == ErrorKind::NotFound => return skip("no groff here"),
            read => {
                let said = String::from_utf8_lossy(&read.expect("groff").stderr).into_owned();
                assert_eq!(said, "", "{}", page.display());
            }
        }
        pages += 1;
    }
    assert!(pages >= 14, "{pages} pages");
    let completed = "source \"$1\"; COMP_WORDS=(bindonce rel); COMP_CWORD=1; \
                     _bindonce bindonce rel bindonce; echo \"${COMPREPLY[*]}\"";
    let mut bash = Command::new("bash");
    bash.args(["-c", completed, "bash"]).arg(out.join("completions/bindonce.bash"));
    assert_eq!(finish(&mut bash).ok().trim(), "reload release");
    for (shell, file) in [("zsh", "_bindonce"), ("fish", "bindonce.fish")] {
        match Command::new(shell).arg("-n").arg(out.join("completions").join(file)).output() {
            Err(_) => skip(&format!("no {shell} here")),
            Ok(read) => {
                assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
            }
        }
    }
}

//! The Debian package on a separate Debian with a real systemd as PID 1: the promises of its
//! scripts, its units and its drop-in for haproxy.service (tests/measure/package.py).

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

    // Installed: the broker runs as its own user, and nothing of Debian's is changed.
    assert_eq!(seen["broker"], json!(["active", "bindonce", "enabled"]), "{text}");
    assert_eq!(seen["control"], json!(["bindonce:bindonce 755", "bindonce:bindonce 660"]));
    assert_eq!([&seen["plain"], &seen["untouched"]], [true, true], "{text}");
    assert_eq!(seen["verify"], json!([]), "systemd-analyze verify");
    assert!(seen["exposure"].as_f64().is_some_and(|exposure| exposure <= 2.0), "{text}");
    // With the drop-in, haproxy.service is a supervisor, whose pid is in haproxy's file.
    let pid = &seen["supervised"][0];
    assert_eq!(seen["supervised"], json!([pid, "/usr/bin/bindonce", pid]), "{text}");

    // Reloads, restarts of both, upgrades: no client noticed.
    let load = &seen["load"];
    assert_eq!([&load["failed"], &load["stale"]], [0, 0], "{load}");
    assert!(load["ok"].as_u64() > Some(200), "{load}");
    // There were seven; a busy machine's clients may miss one that serves for a tenth of a second.
    assert!(seen["tokens"].as_u64() >= Some(5), "generations that answered: {text}");

    // An upgrade: the same processes, with the new file. A failed upgrade: the same processes.
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

    // Removed: haproxy.service is Debian's again, and no file is left; the user stays, as usual in
    // Debian.
    assert_eq!(seen["plain_again"], json!(["/usr/sbin/haproxy", true]), "{text}");
    for none in ["left", "lost", "changed"] {
        assert_eq!(seen[none], json!([]), "{none} after the purge");
    }
    assert_eq!([&seen["units_left"], &seen["user_left"]], [&json!(""), &json!(true)], "{text}");
    assert_eq!(seen["failed"], json!([]), "units that failed: {text}");
}

/// The package's manual pages, which groff(1) accepts, and completions that the shells read.
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

/// After `--name` each shell offers the services beside the control socket, also that of `--socket`
/// on the command line.
#[test]
fn shells_offer_services_after_name() {
    let writer = bindonce().with_file_name("bindonce-package");
    if !writer.exists() {
        return skip("no bindonce-package beside bindonce: cargo build --workspace makes it");
    }
    let scene = Scene::new();
    let out = scene.path("package");
    finish(Command::new(writer).arg(&out)).ok();
    for service in ["edge", "web"] {
        fs::create_dir_all(scene.path("there").join(format!("{service}.d"))).expect("a directory");
    }
    let bash = "source \"$1/bindonce.bash\"
        COMP_WORDS=(bindonce --socket \"$2\" reload --name '') COMP_CWORD=5
        _bindonce bindonce '' --name; echo ${COMPREPLY[*]}
        export BINDONCE_SOCKET=$2; COMP_WORDS=(bindonce ping --name w) COMP_CWORD=3
        _bindonce bindonce w --name; echo ${COMPREPLY[*]}";
    // The text after a tab is the description.
    let fish = "source $argv[1]/bindonce.fish
        string replace -r '\\t.*' '' (complete -C \"bindonce --socket $argv[2] reload --name \") | string join ' '
        set -x BINDONCE_SOCKET $argv[2]
        string replace -r '\\t.*' '' (complete -C 'bindonce ping --name w') | string join ' '";
    // Typed at a terminal: completion exists nowhere else.
    let zsh = "zmodload zsh/zpty
        offered() {
            zpty typed zsh -f -i
            zpty -w typed \"PS1= fpath=(${(q)1} \\$fpath)\"
            zpty -w typed 'autoload -U compinit; compinit -u -D'
            zpty -w typed 'compadd() { local -a got; builtin compadd -O got \"$@\"; print -r -- \"got:$got:\" }'
            zpty -w typed 'print rea\"\"dy'
            zpty -r -m typed seen '*ready*'
            zpty -w -n typed \"$2\"$'\\t'
            zpty -r -m typed seen '*got:[a-z ]#[a-z]:*'
            zpty -d typed
            [[ $seen =~ 'got:([a-z ]*):' ]] && print -r -- $match[1]
        }
        setopt extendedglob
        offered $1 \"bindonce --socket $2 reload --name \"
        export BINDONCE_SOCKET=$2; offered $1 'bindonce ping --name w'";
    let completions = out.join("completions");
    let programs = bindonce().parent().expect("a directory").to_owned();
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", programs.display());
    for (shell, script) in [("bash", bash), ("fish", fish), ("zsh", zsh)] {
        let mut command = Command::new(shell);
        if shell == "zsh" {
            command.arg("-f");
        }
        command.args(["-c", script]);
        if shell != "fish" {
            command.arg(shell);
        }
        command.arg(&completions).arg(scene.path("there/bindonce.sock"));
        command.env("PATH", &path).env("HOME", scene.path("home"));
        for variable in ["BINDONCE_SOCKET", "MULTIBINDER_SOCK"] {
            command.env_remove(variable);
        }
        match command.output() {
            Err(_) => skip(&format!("no {shell} here")),
            Ok(said) => {
                let text = String::from_utf8_lossy(&said.stdout).into_owned();
                let errors = String::from_utf8_lossy(&said.stderr);
                assert_eq!(text, "edge web\nweb\n", "{shell}: {errors}");
            }
        }
    }
}

/// The rpm in its own root: every file is installed as the package says, and none is left after
/// removal.
#[test]
fn the_rpm_is_installed_and_removed() {
    for tool in ["rpmbuild", "objcopy"] {
        if Command::new(tool).arg("--version").output().is_err() {
            return skip(&format!("no {tool} here"));
        }
    }
    if !nix::unistd::geteuid().is_root() {
        return skip("rpm --root needs root");
    }
    let writer = bindonce().with_file_name("bindonce-package");
    if !writer.exists() {
        return skip("no bindonce-package beside bindonce: cargo build --workspace makes it");
    }
    let scene = Scene::new();
    let binary = scene.path("built/bindonce");
    fs::create_dir(scene.path("built")).expect("a directory");
    fs::copy(writer, binary.with_file_name("bindonce-package")).expect("a copy");
    finish(Command::new("objcopy").arg("--strip-all").arg(bindonce()).arg(&binary)).ok();
    let build = |out: &str| {
        let mut command = Command::new(root().join("deploy/rpm"));
        command.args(["--fast", "--binary"]).arg(&binary).arg("--out").arg(scene.path(out));
        // It compresses; the duration depends on the machine.
        let built = command.output().expect("deploy/rpm");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        String::from_utf8_lossy(&built.stdout).trim().to_owned()
    };
    let package = build("first");
    assert_eq!(
        fs::read(&package).expect("rpm"),
        fs::read(build("second")).expect("rpm"),
        "the same"
    );

    let there = scene.path("root");
    fs::create_dir(&there).expect("a directory");
    let rpm = |words: &[&str]| {
        let mut command = Command::new("rpm");
        command.args(["--dbpath", "/var/lib/rpm", "--root"]).arg(&there).args(words);
        finish(&mut command).ok()
    };
    let files = || {
        let mut find = Command::new("find");
        find.arg(&there).args(["-path", "*/var", "-prune", "-o", "-name", "*bindonce*", "-print"]);
        finish(&mut find).ok()
    };
    rpm(&["--initdb"]);
    // An empty root has none of its dependencies, and no shell for its scripts.
    let bare = ["--nodeps", "--noscripts"];
    rpm(&[&bare[..], &["--install", &package]].concat());
    for file in ["usr/bin/bindonce", "etc/bindonce/bindonce.toml", "usr/lib/bindonce/haproxy"] {
        assert!(there.join(file).symlink_metadata().is_ok(), "{file}");
    }
    assert_eq!(rpm(&["--verify", "--nodeps", "bindonce"]), "");
    rpm(&[&bare[..], &["--erase", "bindonce"]].concat());
    assert_eq!(files(), "");
}

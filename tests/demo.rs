//! `bindonce demo`: shows the problem and its solution with this host's haproxy, and leaves nothing
//! behind.

use std::fs;

use nix::sys::signal::Signal;

use crate::harness::{Finished, Haproxy, Process, Scene, bindonce, eventually, finish, skip};

/// A shorter schedule than the default.
const SHORT: [&str; 5] = ["demo", "--reloads", "5", "--every", "200ms"];

/// The marks of the two tables, in order: whether each request was answered.
fn tables(text: &str) -> [Vec<bool>; 2] {
    let rows = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && line.split(' ').all(|mark| matches!(mark, "O" | "X")));
    let marks: Vec<bool> = rows.flat_map(|row| row.split(' ').map(|mark| mark == "O")).collect();
    assert_eq!(marks.len(), 60, "{text}");
    [marks[..30].to_vec(), marks[30..].to_vec()]
}

/// The last words of the line with this beginning.
fn row<'a>(text: &'a str, begin: &str) -> Vec<&'a str> {
    let line = text.lines().find(|line| line.trim_start().starts_with(begin));
    line.unwrap_or_else(|| panic!("{begin}: {text}")).split("  ").map(str::trim).collect()
}

#[track_caller]
fn nothing_left(scene: &Scene) {
    let left: Vec<_> = fs::read_dir(scene.path("")).expect("the directory").flatten().collect();
    let left = left.iter().filter(|one| one.file_name().to_string_lossy().contains("demo"));
    assert_eq!(left.count(), 0, "a directory is left");
    assert_eq!(scene.processes(), [], "processes are left");
}

#[test]
fn the_old_way_fails_doctor_says_why_and_bindonce_does_not_fail() {
    if Haproxy::system().is_none() {
        return;
    }
    let scene = Scene::new();
    let text = finish(scene.command(bindonce()).args(SHORT)).ok();
    let [before, after] = tables(&text);
    // 30 requests are spread over two sockets: all reach the same one about once in a thousand
    // million runs.
    assert!(before.contains(&true) && before.contains(&false), "{text}");
    assert!(after.iter().all(|answered| *answered), "{text}");
    assert!(text.contains(": 1 of 2 connections, 50 %, go to pid "), "{text}");
    assert!(text.contains("healthy: nothing found"), "{text}");
    let sockets = text.lines().find(|line| line.contains(" in the end ")).expect("sockets");
    assert_eq!(sockets.split_whitespace().rev().take(2).collect::<Vec<_>>(), ["1", "2"], "{text}");
    let stale = row(&text, "answers of a replaced process");
    assert_eq!(stale.last(), Some(&"0 of 1000"), "{text}");
    let unanswered = row(&text, "requests without an answer");
    assert!(unanswered.last().is_some_and(|cell| cell.starts_with("0 of ")), "{text}");
    assert!(text.contains("What next"), "{text}");
    nothing_left(&scene);
}

#[test]
fn whoever_interrupts_it_finds_everything_ended() {
    if Haproxy::system().is_none() {
        return;
    }
    let scene = Scene::new();
    for (line, signal) in [
        ("2. Why?", Signal::SIGINT),
        ("3. The same schedule", Signal::SIGTERM),
        ("healthy:", Signal::SIGHUP),
    ] {
        let mut demo = Process::start(scene.command(bindonce()).args(SHORT));
        demo.wait_line(line);
        // After the last of these lines it ends everything by itself: the signal may come too late.
        let late = signal == Signal::SIGHUP;
        if !late {
            eventually("something to run", || (!scene.haproxies().is_empty()).then_some(()));
        }
        demo.signal(signal);
        let status = demo.wait_exit();
        if !late {
            assert_eq!(status.code(), Some(1), "{}", demo.story());
            demo.wait_line("everything that it started has ended");
        }
        nothing_left(&scene);
    }
}

#[test]
fn a_reader_that_goes_away_ends_it() {
    if Haproxy::system().is_none() {
        return;
    }
    let scene = Scene::new();
    let script = "\"$0\" demo --reloads 5 --every 200ms | head -n 4; echo \"${PIPESTATUS[0]}\"";
    let text = finish(scene.command("bash").args(["-c", script]).arg(bindonce())).ok();
    assert_eq!(text.lines().last(), Some("0"), "{text}");
    nothing_left(&scene);
}

#[test]
fn a_haproxy_that_does_not_start_is_told_with_its_words() {
    let scene = Scene::new();
    let bad = scene.write("bad", "#!/bin/sh\necho 'cannot do that' >&2\nexit 1\n");
    finish(scene.command("chmod").arg("755").arg(&bad)).ok();
    let said = finish(scene.command(bindonce()).args(SHORT).arg("--haproxy").arg(bad)).fails(1);
    assert!(said.contains("haproxy: cannot do that"), "{said}");
    nothing_left(&scene);
}

#[test]
fn without_haproxy_it_says_what_to_install() {
    let scene = Scene::new();
    let said = without_haproxy(&scene);
    let Some(said) = said else { return };
    let said = said.fails(1);
    assert!(said.contains("there is no haproxy in $PATH"), "{said}");
    assert!(said.contains("hint: install one (`apt-get install haproxy`"), "{said}");
}

/// Runs the demo where no haproxy can be found, if that is possible.
fn without_haproxy(scene: &Scene) -> Option<Finished> {
    if !nix::unistd::geteuid().is_root() {
        skip("hiding haproxy needs root");
        return None;
    }
    let script = "for place in /usr/sbin/haproxy /usr/local/sbin/haproxy /usr/bin/haproxy; do\n\
        [ ! -e $place ] || mount --bind /dev/null $place || exit 9\ndone\nexec \"$0\" demo";
    let mut command = scene.command("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(bindonce());
    let said = finish(&mut command);
    if said.code == Some(9) {
        skip("mounts are not allowed here");
        return None;
    }
    Some(said)
}

//! Every command in README.md and docs/*.md is run in a prepared place, or is listed in
//! [`ELSEWHERE`] with the reason why not. So a new page is covered automatically.
//!
//! **For authors.** A line of a code block is a command if the block is fenced as `sh`, or if the
//! block is indented (or fenced without a language) and the line's first word is one of
//! [`PROGRAMS`]. Text after `#` or three spaces is a remark. Words in capitals and options in
//! brackets are filled in from [`PLACEHOLDERS`]. Each page has its own place, as root in its own
//! namespaces, in which its commands run one after the other: a broker at /run/bindonce, the
//! service `haproxy` with [`CONFIGURATION`] in /etc/haproxy, and the results of the earlier
//! commands. A command that serves ([`SERVES`]) keeps running beside the next ones. Every other
//! command must exit with 0.
//!
//! In addition, wherever a page writes `bindonce VERB ... --option`, the verb must have that
//! option.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::harness::{Haproxy, Scene, bindonce, finish, root};

/// First words that mark a line as a command.
const PROGRAMS: &[&str] = &[
    "bindonce",
    "haproxy",
    "systemctl",
    "kill",
    "cargo",
    "git",
    "apt",
    "apt-get",
    "docker",
    "podman",
    "kubectl",
    "kustomize",
    "curl",
    "nginx",
    "mkdir",
    "ln",
    "cp",
    "printf",
    "echo",
    "sysctl",
    "journalctl",
    "sudo",
    "cd",
    "export",
    "multibinder",
    "python3",
    "ip",
    "ss",
    "promtool",
    "install",
];

/// Commands that keep running; the next command is run once they serve.
const SERVES: &[&str] = &["bindonce run", "bindonce serve", "haproxy "];

/// Placeholders that a reader fills in.
const PLACEHOLDERS: &[(&str, &str)] = &[
    ("[--name SERVICE]", ""),
    ("[--json]", ""),
    ("SERVICE", "haproxy"),
    ("NAME=ADDR", "web=127.0.0.1:8899"),
    ("FILE", "/etc/haproxy/haproxy.cfg"),
    ("ADDR", "127.0.0.1:8898"),
    ("PROGRAM", "true"),
    (" edge", " haproxy"),
    (" :443", " 127.0.0.1:8001"),
];

/// The service that every page finds running.
const CONFIGURATION: &str = "\
global
    stats socket /run/haproxy/admin.sock mode 600 level admin expose-fd listeners
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend web
    bind 127.0.0.1:8001
    http-request return status 200 content-type text/plain string ok
";

/// Commands that are not run here: the beginning of the line (after the page's name), and the
/// reason.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("README.md", "cargo install", "fetches this repository from the network"),
    ("README.md", "git clone", "fetches this repository from the network"),
    (
        "README.md",
        "./deploy/quickstart",
        "builds a release; it is the same harness as tests/handover.rs",
    ),
    ("README.md", "./tests/run", "is what runs this test"),
    ("docs/metrics.md", "curl", "needs curl; tests/metrics.rs asks the same"),
    ("docs/library.md", "cargo doc", "builds pages; the examples in them are run as tests"),
    ("*", "bindonce run --as nginx", "needs nginx; tests/programs.rs runs it so"),
    ("docs/architecture.md", "haproxy", "is a floor in a drawing"),
    ("*", "./deploy/deb", "the package has tests of its own (tests/package.rs)"),
    ("*", "apt install", "the package has tests of its own (tests/package.rs)"),
    (
        "docs/package.md",
        "",
        "the package has tests of its own, in a system of its own (tests/package.rs)",
    ),
    ("docs/migrating.md", "", "tests/migrating.rs and tests/systemd.rs run each walk"),
    ("docs/sidecar.md", "docker", "needs an engine and images; the sidecar has tests of its own"),
    ("docs/sidecar.md", "cargo build", "builds a release"),
    (
        "docs/sidecar.md",
        "kubectl",
        "needs a cluster; the manifests are checked by tests of their own",
    ),
];

/// A command and its location.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    line: usize,
    text: String,
}

/// The commands of a page, in order.
fn commands(page: &str) -> Vec<Shown> {
    let mut found: Vec<Shown> = Vec::new();
    let mut fence: Option<String> = None;
    let mut goes_on = false;
    for (number, line) in page.lines().enumerate() {
        let trimmed = line.trim();
        if let Some(language) = trimmed.strip_prefix("```") {
            fence = if fence.is_some() { None } else { Some(language.trim().to_owned()) };
            continue;
        }
        let shell = matches!(fence.as_deref(), Some("sh" | "bash" | "console"));
        let block = match &fence {
            Some(language) => shell || language.is_empty(),
            None => line.starts_with("    "),
        };
        let text = trimmed.strip_prefix("$ ").unwrap_or(trimmed);
        // A drawing is no command, whatever names it contains.
        let drawn = text.contains("<--") || text.contains("-->");
        if !block || drawn || text.is_empty() || text.starts_with('#') {
            goes_on = false;
            continue;
        }
        let first = text.split([' ', '=']).next().unwrap_or_default();
        if goes_on && let Some(last) = found.last_mut() {
            last.text.push('\n');
            last.text.push_str(text);
        } else if shell || PROGRAMS.contains(&first) || first.starts_with("./") {
            let remark = text.find(" #").into_iter().chain(text.find("   ")).min();
            let text = text[..remark.unwrap_or(text.len())].trim_end().to_owned();
            found.push(Shown { line: number + 1, text });
        } else {
            continue;
        }
        goes_on = text.ends_with('\\');
    }
    found
}

/// Every page, by its name.
fn pages() -> BTreeMap<String, String> {
    let docs = fs::read_dir(root().join("docs")).expect("docs").flatten();
    let docs = docs.map(|entry| format!("docs/{}", entry.file_name().display()));
    let pages = docs.filter(|name| name.ends_with(".md")).chain(["README.md".to_owned()]);
    pages
        .map(|name| {
            let text = fs::read_to_string(root().join(&name)).expect("a page");
            (name, text)
        })
        .collect()
}

fn elsewhere(page: &str, command: &str) -> bool {
    ELSEWHERE.iter().any(|(on, begin, _)| (*on == "*" || *on == page) && command.starts_with(begin))
}

/// The command as a reader would type it.
fn filled_in(command: &str) -> String {
    PLACEHOLDERS.iter().fold(command.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// A script that prepares the place of a page and runs its commands. It prints `FAILED LINE` and
/// stops at the first failure.
fn script(scene: &Scene, commands: &[Shown]) -> String {
    let bin = scene.path("bin");
    let mut script = format!(
        "set -u\nmount --make-rprivate /\n\
         for place in /run /etc/haproxy; do mount -t tmpfs tmpfs $place; done\n\
         mkdir -p /run/bindonce /run/haproxy /run/systemd/system\n\
         export PATH={}:$PATH\nunset XDG_RUNTIME_DIR\n\
         cat >/etc/haproxy/haproxy.cfg <<'END'\n{CONFIGURATION}END\n\
         until_serving() {{ for _ in $(seq 400); do bindonce status --json 2>/dev/null | grep -q '\"serving\"' && return; \
         kill -0 $1 2>/dev/null || return 1; sleep 0.05; done; return 1; }}\n\
         until_listening() {{ for _ in $(seq 400); do ss -Hlntxp | grep -q \"pid=$1,\" && return; \
         kill -0 $1 2>/dev/null || return 1; sleep 0.05; done; return 1; }}\n\
         bindonce serve >/run/serve.log 2>&1 & for _ in $(seq 400); do bindonce list >/dev/null 2>&1 && break; sleep 0.05; done\n\
         bindonce run -- haproxy -f /etc/haproxy/haproxy.cfg >/run/run.log 2>&1 & service=$!\n\
         until_serving $service || {{ echo 'FAILED 0'; cat /run/run.log; exit 1; }}\n",
        bin.display()
    );
    for Shown { line, text } in commands {
        let text = filled_in(text);
        let serves = SERVES.iter().any(|begin| text.starts_with(begin));
        let fails = format!("{{ echo 'FAILED {line}'; cat /run/last.log; exit 1; }}\n");
        if text.starts_with("bindonce run") {
            // This service already runs, started as the page says.
            script.push_str("kill $service; wait $service\n");
            script.push_str(&format!(
                "{text} >/run/last.log 2>&1 & service=$!\nuntil_serving $service || {fails}"
            ));
        } else if serves {
            script
                .push_str(&format!("{text} >/run/last.log 2>&1 &\nuntil_listening $! || {fails}"));
        } else {
            script.push_str(&format!("{{ {text}\n}} >/run/last.log 2>&1 || {fails}"));
        }
    }
    script.push_str("echo DONE\n");
    script
}

#[test]
fn every_command_that_is_shown_works() {
    let Some(_) = Haproxy::system() else { return };
    let Some(scene) =
        Scene::isolated("needs root, to make a place for the commands of the documentation")
    else {
        return;
    };
    let bin = scene.path("bin");
    fs::create_dir(&bin).expect("a directory");
    std::os::unix::fs::symlink(bindonce(), bin.join("bindonce")).expect("a link");
    let (mut run, mut wrong) = (0, Vec::new());
    for (name, text) in pages() {
        let commands: Vec<Shown> =
            commands(&text).into_iter().filter(|shown| !elsewhere(&name, &shown.text)).collect();
        if commands.is_empty() {
            continue;
        }
        run += commands.len();
        let file = scene.write("script", &script(&scene, &commands));
        let inside = ["-mpf", "--kill-child", "--mount-proc", "bash"];
        let done = finish(scene.command("unshare").args(inside).arg(file).current_dir(root()));
        if !done.out.contains("DONE") {
            let line = done.out.split("FAILED ").nth(1).and_then(|rest| rest.lines().next());
            let line = line.unwrap_or("?");
            let shown = commands.iter().find(|shown| shown.line.to_string() == line);
            wrong.push(format!(
                "{name}:{line}: `{}` fails: correct it, or name it in ELSEWHERE of tests/documentation.rs\n{}{}",
                shown.map_or("the place itself", |shown| shown.text.as_str()), done.out, done.err
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(run > 5, "only {run} commands were found");
}

#[test]
fn every_exception_is_still_needed() {
    let pages = pages();
    for (on, begin, why) in ELSEWHERE {
        let on_page = |name: &String| *on == "*" || on == name;
        assert!(*on == "*" || pages.contains_key(*on), "there is no page {on}");
        let used = pages
            .iter()
            .filter(|(name, _)| on_page(name))
            .any(|(_, text)| commands(text).iter().any(|shown| shown.text.starts_with(begin)));
        assert!(used, "no command of {on} begins with {begin:?} any more ({why})");
    }
}

/// The options of a verb that a page writes in prose, in tables or in blocks.
fn options(text: &str) -> Vec<(usize, String, Vec<String>)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for part in line.split("bindonce ").skip(1) {
            let part = part.split(['`', '#', '|']).next().unwrap_or_default();
            let words: Vec<&str> =
                part.split_whitespace().take_while(|word| *word != "--").collect();
            let Some((verb, rest)) = words.split_first() else { continue };
            let plain =
                verb.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !verb.starts_with('-');
            let flags: Vec<String> = rest
                .iter()
                .filter(|word| word.trim_start_matches('[').starts_with("--"))
                .map(|word| {
                    word.trim_matches(['[', ']', '.', ',', ';', ':', ')', '"'])
                        .split('=')
                        .next()
                        .unwrap_or_default()
                        .to_owned()
                })
                .filter(|flag| flag.len() > 2)
                .collect();
            if plain && !flags.is_empty() {
                found.push((number + 1, (*verb).to_owned(), flags));
            }
        }
    }
    found
}

#[test]
fn every_option_that_is_named_exists() {
    let mut help: BTreeMap<String, String> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (name, text) in pages() {
        for (line, verb, flags) in options(&text) {
            let help = help.entry(verb.clone()).or_insert_with(|| {
                let done = finish(Command::new(bindonce()).args([&verb, "--help"]));
                if done.code == Some(0) { done.out } else { String::new() }
            });
            for flag in flags.iter().filter(|flag| !help.contains(flag.as_str())) {
                wrong.push(format!("{name}:{line}: `bindonce {verb}` has no {flag}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn commands_are_told_from_what_else_stands_in_blocks() {
    let page = "text\n\n    bindonce doctor :443   one address   # or all\n    split ADDRESS: 2 of 3\n    \
                bindonce serve <-- run\n\n```sh\n# remark\n\
                sed x \\\n  y\n```\n```\n--> {}\n$ bindonce list\n```\n```toml\nbindonce = 1\n```\n";
    let texts: Vec<String> = commands(page).into_iter().map(|shown| shown.text).collect();
    assert_eq!(texts, ["bindonce doctor :443", "sed x \\\ny", "bindonce list"]);
    assert_eq!(filled_in("bindonce reload [--name SERVICE]").trim(), "bindonce reload");
    let unknown = PathBuf::from("docs/none.md");
    assert!(!elsewhere(&unknown.display().to_string(), "bindonce list"));
}

//! Golden tests: every folder of `tests/golden` has a configuration and the expected rendering.
//!
//! A folder contains the user's files; `command`, the haproxy command (default: `haproxy -f
//! input.cfg`); `env` (`NAME=VALUE`), `hosts` (`NAME IP`), `listen` (one `NAME=ADDR` a line),
//! `conditions` (`yes TERM` or `no TERM`), `haproxy` (haproxy's other answers: `unset=joined`,
//! `discovery=yes`, `HAPROXY_X=VALUE`), `keep` (variables); and the expected results:
//! `expected.cfg` and `expected.explain`, or `expected.error`. `BLESS=1 cargo test -p
//! bindonce-haproxy --test config` rewrites the expected results; read the difference before you
//! commit it.

use std::collections::BTreeSet;
use std::path::Path;

use super::support::{Case, cases};
use bindonce_haproxy::config::{Rendering, reader};

/// The copies as one text, each after its user's path if there are several.
fn copies(rendering: &Rendering) -> Vec<u8> {
    let mut out = Vec::new();
    for file in &rendering.files {
        if rendering.files.len() > 1 {
            let injected = if file.injected { " (put before it)" } else { "" };
            out.extend(format!("==> {}{injected} <==\n", file.user_path.display()).into_bytes());
        }
        out.extend_from_slice(&file.text);
    }
    out
}

fn explain(rendering: &Rendering) -> String {
    let mut out = String::new();
    for variable in &rendering.variables {
        let bindings = &rendering.bindings[variable.bindings.clone()];
        let (first, last) = (&bindings[0], &bindings[bindings.len() - 1]);
        let end = if bindings.len() > 1 { format!(" to {}", last.listener) } else { String::new() };
        let list = if variable.list { " (list)" } else { "" };
        out += &format!(
            "{}  {}  {}  claims {}{end} in {}{list}\n",
            first.place, first.section, first.text, first.listener, variable.name
        );
        if let Some(device) = &first.device {
            out += &format!("{}  without {device}, which is not there\n", first.place);
        }
        for place in &first.also {
            out += &format!("{place}  shares it\n");
        }
    }
    for left in &rendering.left_alone {
        out += &format!(
            "{}  {}  {}  left alone: {}\n",
            left.place, left.section, left.text, left.reason
        );
    }
    for state in &rendering.server_states {
        let backend = state.backend.as_deref().unwrap_or("all backends");
        out += &format!("server state of {backend} from {}\n", state.path.display());
    }
    for name in &rendering.unused {
        out += &format!("unused: {name}\n");
    }
    out
}

fn compare(path: &Path, got: &[u8], wrong: &mut Vec<String>) {
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, got).expect("write the answer");
        return;
    }
    let expected = std::fs::read(path).unwrap_or_default();
    if expected != got {
        wrong.push(format!(
            "{}:\n--- expected\n{}\n--- got\n{}",
            path.display(),
            String::from_utf8_lossy(&expected),
            String::from_utf8_lossy(got)
        ));
    }
}

#[test]
fn every_configuration_renders_as_expected() {
    let cases = cases();
    assert!(cases.len() >= 30, "only {} configurations", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        match case.render() {
            Ok(rendering) => {
                compare(&case.folder.join("expected.cfg"), &copies(&rendering), &mut wrong);
                let explain = explain(&rendering);
                compare(&case.folder.join("expected.explain"), explain.as_bytes(), &mut wrong);
            }
            Err(error) => {
                let text = format!("{error}\n");
                compare(&case.folder.join("expected.error"), text.as_bytes(), &mut wrong);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Every line without an address stays the same byte for byte, and no line moves.
#[test]
fn rendering_changes_nothing_but_addresses() {
    for case in cases() {
        let Ok(rendering) = case.render() else {
            continue;
        };
        for file in rendering.files.iter().filter(|file| !file.injected) {
            assert_unchanged(&case, &rendering, &file.user_path, &file.text);
        }
    }
}

fn assert_unchanged(case: &Case, rendering: &Rendering, path: &Path, text: &[u8]) {
    let input = case.text_of(path);
    let claimed: BTreeSet<usize> = rendering
        .bindings
        .iter()
        .flat_map(|binding| binding.also.iter().chain([&binding.place]))
        .filter(|place| place.file == path)
        .map(|place| place.line)
        .collect();
    let before: Vec<_> = reader::lines(&input).map(|line| &input[line]).collect();
    let after: Vec<_> = reader::lines(text).map(|line| &text[line]).collect();
    assert_eq!(before.len(), after.len(), "{}: {}", case.name, path.display());
    assert_eq!(input.ends_with(b"\n"), text.ends_with(b"\n"), "{}", case.name);
    for (index, (before, after)) in before.iter().zip(&after).enumerate() {
        let word = before.trim_ascii_start();
        let names = |name: &[u8]| before.windows(name.len()).any(|window| window == name);
        let ours = word.starts_with(b"default-path")
            || word.starts_with(b"resetenv")
            || word.starts_with(b"master-worker")
            || word.starts_with(b"stats maxconn")
            || names(b"{.FILE}")
            || names(b"HAPROXY_CFGFILES");
        if before != after && !ours {
            assert!(claimed.contains(&(index + 1)), "{}:{}", case.name, index + 1);
        }
    }
}

/// A real haproxy accepts the copy if it accepts the user's own file.
#[test]
fn haproxy_accepts_the_copies() {
    let Some(haproxy) = super::support::haproxy() else {
        return super::skip::skip("haproxy is not installed");
    };
    let mut checked = 0;
    for case in cases() {
        let Ok(rendering) = case.render() else {
            continue;
        };
        let user = super::support::check_input(&case, &haproxy);
        let copy = super::support::check_copy(&case, &rendering, &haproxy);
        match (user, copy) {
            (Ok(()), Ok(())) => checked += 1,
            (Ok(()), Err(said)) => panic!("{}: haproxy refuses the copy: {said}", case.name),
            (Err(said), _) => println!("{}: haproxy refuses the input: {said}", case.name),
        }
    }
    println!("haproxy accepted {checked} copies");
    assert!(checked >= 20, "haproxy accepted only {checked} copies");
}

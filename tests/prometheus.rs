//! deploy/prometheus: every metric that an alert or the dashboard names is exported, and promtool
//! agrees with the alerts.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::harness::{finish, root, skip};

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).expect(name)
}

/// Exported series, as docs/metrics.md lists them, which tests/metrics.rs compares with the real
/// pages. A histogram has three.
fn exported() -> BTreeSet<String> {
    let page = read("docs/metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows = rows.filter_map(|row| row.split_once('`'));
    let names = rows.flat_map(|(name, rest)| {
        let suffixes: &[&str] = match rest.starts_with(" (histogram)") {
            true => &["_bucket", "_count", "_sum"],
            false => &[""],
        };
        suffixes.iter().map(move |suffix| format!("{name}{suffix}"))
    });
    names.collect()
}

/// The metrics of bindonce that an expression names.
fn named(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("bindonce_")).map(str::to_owned).collect()
}

#[test]
fn every_metric_that_is_named_is_exported() {
    let exported = exported();
    let rules = read("deploy/prometheus/bindonce.rules.yml");
    let expressions = rules.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
    let mut wanted: BTreeSet<String> = expressions.flat_map(named).collect();
    assert!(wanted.len() > 10, "{wanted:?}");
    let dashboard: Value =
        serde_json::from_str(&read("deploy/prometheus/dashboard.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets"));
    wanted.extend(targets.flat_map(|target| named(target["expr"].as_str().expect("an expr"))));
    let missing: Vec<_> = wanted.difference(&exported).collect();
    assert!(missing.is_empty(), "not exported: {missing:?}; exported are {exported:?}");
}

#[test]
fn promtool_agrees_with_the_alerts() {
    if Command::new("promtool").arg("--version").output().is_err() {
        return skip("promtool is not installed (Debian's package prometheus)");
    }
    let run = |arguments: [&str; 3]| {
        let mut command = Command::new("promtool");
        finish(command.args(arguments).current_dir(root().join("deploy/prometheus"))).ok()
    };
    run(["check", "rules", "bindonce.rules.yml"]);
    run(["test", "rules", "bindonce.test.yml"]);
}

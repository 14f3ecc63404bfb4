//! The documentation pages: every link leads to a file of the repository and to an existing
//! heading. Every page of docs/ begins with its audience and what it enables them to do, is short,
//! and is in the site's table of contents.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::root;

/// The most lines of a page.
const LONGEST: usize = 220;

/// Every documentation page, from the root of the repository.
fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for directory in ["", "docs", "crates/client"] {
        for entry in fs::read_dir(root().join(directory)).expect("a directory").flatten() {
            let name = Path::new(directory).join(entry.file_name());
            if name.extension().is_some_and(|extension| extension == "md") {
                pages.push(name);
            }
        }
    }
    pages
}

fn read(page: &Path) -> String {
    fs::read_to_string(root().join(page)).expect("a page of this repository")
}

/// The lines outside of blocks of code, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(number, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fenced && !fence && !line.starts_with("    ")).then_some((number + 1, line))
    })
}

/// The anchor of a heading, as on GitHub and in mdBook.
fn place(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn places(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|(_, line)| line.starts_with('#'));
    headings.map(|(_, line)| place(line.trim_start_matches('#'))).collect()
}

/// The targets of `[text](target)` in a line.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0))
}

/// What is wrong with a link of a page.
fn dead(page: &Path, target: &str) -> Option<String> {
    if target.contains("://") {
        return None;
    }
    let (path, to) = target.split_once('#').unwrap_or((target, ""));
    let beside = page.parent().unwrap_or(Path::new(""));
    let file = if path.is_empty() { page.to_owned() } else { beside.join(path) };
    if file == Path::new("docs/index.md") {
        return None; // deploy/site makes it from README.md.
    }
    if !root().join(&file).exists() {
        return Some(format!("there is no {}", file.display()));
    }
    let missing = !to.is_empty() && !places(&read(&file)).contains(to);
    missing.then(|| format!("{} has no heading #{to}", file.display()))
}

#[test]
fn every_link_leads_somewhere() {
    let (mut links, mut wrong) = (0, Vec::new());
    for page in pages() {
        for (number, line) in prose(&read(&page)) {
            for target in targets(line) {
                links += 1;
                if let Some(why) = dead(&page, target) {
                    wrong.push(format!("{}:{number}: {target}: {why}", page.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(links > 100, "only {links} links were found");
}

#[test]
fn every_page_says_for_whom_it_is_and_is_short_and_listed() {
    let contents = read(Path::new("docs/SUMMARY.md"));
    let mut wrong = Vec::new();
    for page in pages().into_iter().filter(|page| page.starts_with("docs")) {
        let name = page.file_name().expect("a name").to_string_lossy().into_owned();
        if name == "SUMMARY.md" {
            continue;
        }
        let text = read(&page);
        let opening: Vec<_> = text.lines().skip(2).take_while(|line| !line.is_empty()).collect();
        let opening = opening.join(" ");
        if !opening.starts_with("For ") || !opening.contains("After this page you ") {
            wrong.push(format!("{name} does not open with \"For ... After this page you ...\""));
        }
        let lines = text.lines().count();
        if lines > LONGEST {
            wrong.push(format!("{name} has {lines} lines: divide it by subject"));
        }
        if !contents.contains(&format!("]({name})")) {
            wrong.push(format!("{name} is not in docs/SUMMARY.md"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_link_that_leads_nowhere_is_seen() {
    let page = Path::new("docs/haproxy.md");
    assert_eq!(dead(page, "#start"), None);
    assert_eq!(dead(page, "../README.md#install"), None);
    assert!(dead(page, "#nowhere").is_some());
    assert!(dead(page, "nowhere.md").is_some());
    assert_eq!(place(" `udp4@` and HTTP/3"), "udp4-and-http3");
    assert_eq!(targets("[a](b.md), [c](#d) (e)").collect::<Vec<_>>(), ["b.md", "#d"]);
}

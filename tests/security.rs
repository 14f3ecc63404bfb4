//! docs/security-attacks.md names the test of each defence: every row of its tables of attacks
//! names one, and each exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::harness::root;

/// The title of the column with test names.
const COLUMN: &str = "test";

/// The names of all tests of this repository.
fn tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut directories = vec![root().join("crates"), root().join("tests")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("a directory").flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                names.extend(tests_in(&path));
            }
        }
    }
    names
}

fn tests_in(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).expect("a file of this repository");
    // The attribute may belong to a runtime, and others may follow it.
    let attributes = ["#[test]", "::test]", "::test("].into_iter();
    let parts = attributes.flat_map(|attribute| text.split(attribute).skip(1));
    let name = |part: &str| Some(part.split_once("fn ")?.1.split('(').next()?.to_owned());
    parts.filter_map(name).collect()
}

#[test]
fn every_attack_of_the_page_has_a_test_that_is_there() {
    let page = fs::read_to_string(root().join("docs/security-attacks.md")).expect("the page");
    let known = tests();
    let (mut column, mut rows) = (None, 0);
    for line in page.lines() {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        if !line.starts_with('|') {
            column = None;
            continue;
        }
        if let Some(found) = cells.iter().position(|cell| *cell == COLUMN) {
            column = Some(found);
            continue;
        }
        let Some(column) = column else { continue };
        let cell = cells.get(column).unwrap_or_else(|| panic!("a row without its tests: {line}"));
        if cell.starts_with("---") {
            continue;
        }
        rows += 1;
        let named: Vec<_> = cell.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test: {line}");
        for name in named {
            assert!(known.contains(name), "there is no test {name}: {line}");
        }
    }
    assert!(rows > 25, "{rows} rows");
}

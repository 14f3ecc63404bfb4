//! The commands that messages, hints and doctor's remedies show: this binary has each of them.

use std::path::{Path, PathBuf};

use clap::Parser as _;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::Cli;

/// The source files of every crate.
fn sources() -> Vec<PathBuf> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let entries = |path: PathBuf| {
        let entries = std::fs::read_dir(path).expect("a directory of this repository");
        entries.map(|entry| entry.expect("an entry").path())
    };
    let mut open: Vec<_> = entries(crates).map(|one| one.join("src")).collect();
    let mut files = Vec::new();
    while let Some(directory) = open.pop() {
        let (below, found): (Vec<_>, Vec<_>) = entries(directory).partition(|path| path.is_dir());
        open.extend(below);
        files
            .extend(found.into_iter().filter(|path| path.extension().is_some_and(|it| it == "rs")));
    }
    files
}

/// The code of a file without comments; a string of several lines is on one.
fn code(file: &Path) -> String {
    let text = std::fs::read_to_string(file).expect("a source file");
    let (mut code, mut goes_on) = (String::new(), false);
    for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
        let line = if goes_on { line.trim_start() } else { line };
        goes_on = line.ends_with('\\');
        code.push_str(line.trim_end_matches('\\'));
        if !goes_on {
            code.push('\n');
        }
    }
    code
}

/// Each `{...}` becomes a value, but nothing where it stands behind a word without a space.
fn filled_in(command: &str) -> String {
    let (mut whole, mut rest) = (String::new(), command);
    while let Some((before, behind)) = rest.split_once('{') {
        let (name, behind) = behind.split_once('}').unwrap_or((behind, ""));
        whole.push_str(before);
        if whole.ends_with([' ', '=']) {
            whole.push_str(if matches!(name, "id" | "pid") { "1" } else { "x" });
        }
        rest = behind;
    }
    whole + rest
}

/// Why a command cannot be run as it is shown. Its beginning alone is no fault: people write the
/// rest.
fn fault(command: &str) -> Option<clap::Error> {
    let words = ["bindonce"].into_iter().chain(command.split_whitespace());
    let error = Cli::try_parse_from(words).err()?;
    let lacks = error.get(ContextKind::InvalidValue);
    let is_begun = lacks == Some(&ContextValue::String(String::new()))
        || matches!(
            error.kind(),
            ErrorKind::MissingRequiredArgument | ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
        );
    (!is_begun).then_some(error)
}

#[test]
fn every_command_that_is_advised_exists() {
    let mut seen = 0;
    for file in sources() {
        let code = code(&file);
        let is_doctor = file.components().any(|part| part.as_os_str() == "doctor");
        let parts: Vec<&str> = code.split("bindonce ").collect();
        for pair in parts.windows(2) {
            let is_quoted = pair[0].ends_with('`');
            let end: &[char] = match is_quoted {
                true => &['`'],
                // Doctor's remedies are not quoted, and a comment follows some.
                false if is_doctor && pair[0].ends_with(['"', ' ']) => &['"', '#', '\\', '\n'],
                false => continue,
            };
            let command = pair[1].split(end).next().unwrap_or_default();
            seen += 1;
            if let Some(error) = fault(&filled_in(command)) {
                // A sentence about bindonce.
                let is_prose = !is_quoted && error.kind() == ErrorKind::InvalidSubcommand;
                assert!(is_prose, "{}: bindonce {command}: {error}", file.display());
            }
        }
    }
    assert!(seen > 80, "{seen}");
}

#[test]
fn a_command_that_does_not_exist_is_found() {
    assert!(fault(&filled_in("status --name {service}")).is_some());
    assert!(fault("relaod").is_some());
    for good in
        ["run", "reload{}", "serve --socket {}", "run --listen", "retire --name {name} {id}"]
    {
        assert!(fault(&filled_in(good)).is_none(), "{good}");
    }
}

//! `bindonce-package DIRECTORY`: writes the files that a package has beside the binary.
//!
//! Manual pages of every command and completions for bash, zsh and fish come from the definition
//! that `bindonce --help` prints, bindonce.toml(5) from docs/configuration.md. This is a separate
//! program: the installed binary carries none of it. The same sources and SOURCE_DATE_EPOCH give
//! the same bytes.

#![forbid(unsafe_code)]

mod completions;
mod man;
mod markdown;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bindonce_core::time::Timestamp;
use clap_complete::Shell;

/// The page of the configuration file, whose first line is its title.
const CONFIGURATION: &str = include_str!("../../../docs/configuration.md");

fn main() -> anyhow::Result<()> {
    let mut words = std::env::args_os().skip(1);
    let (Some(directory), None) = (words.next(), words.next()) else {
        bail!("usage: bindonce-package DIRECTORY");
    };
    let directory = PathBuf::from(directory);
    let date = date(std::env::var("SOURCE_DATE_EPOCH").ok().as_deref())?;
    pages(&directory.join("man"), &date)?;
    shells(&directory.join("completions"))
}

/// The date on the pages: that of the sources, or none.
fn date(epoch: Option<&str>) -> anyhow::Result<String> {
    let Some(epoch) = epoch else { return Ok(String::new()) };
    let seconds: u64 = epoch.parse().context("SOURCE_DATE_EPOCH is no number of seconds")?;
    let time = Timestamp(seconds.saturating_mul(1000)).to_string();
    Ok(time.split('T').next().unwrap_or_default().to_owned())
}

fn pages(directory: &Path, date: &str) -> anyhow::Result<()> {
    let mut pages = man::commands(bindonce_cli::command(), date)?;
    pages.push(markdown::page("bindonce.toml", 5, CONFIGURATION, date)?);
    anew(directory)?;
    for page in pages {
        let path = directory.join(page.file);
        fs::write(&path, page.text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn shells(directory: &Path) -> anyhow::Result<()> {
    anew(directory)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let (file, text) = completions::completion(shell, &bindonce_cli::command())?;
        let path = directory.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Empties the directory: files of removed commands must not be packaged.
fn anew(directory: &Path) -> anyhow::Result<()> {
    let doing = || format!("cannot empty {}", directory.display());
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(doing)?;
    }
    fs::create_dir_all(directory).with_context(doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_day_is_that_of_the_sources() {
        assert_eq!(date(Some("1700000000")).expect("a time"), "2023-11-14");
        assert_eq!(date(None).expect("none"), "");
        assert!(date(Some("today")).is_err());
    }
}

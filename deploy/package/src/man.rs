//! Manual pages of the commands, from clap's definition of them.
//!
//! clap_mangen writes what clap knows: name, description, options. The synopsis is the usage
//! line of `--help`, and the text below the options there becomes separate sections (a test in
//! crates/cli/src/lib.rs checks its form).

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};

/// The manual that every page belongs to.
pub(crate) const MANUAL: &str = "bindonce manual";

/// A finished page.
pub(crate) struct Page {
    /// The file's name, such as `bindonce-run.1`.
    pub(crate) file: String,
    /// The page's source, for man(1).
    pub(crate) text: Vec<u8>,
}

/// The page of the command itself, and one for each subcommand that is not hidden.
pub(crate) fn commands(mut whole: Command, date: &str) -> anyhow::Result<Vec<Page>> {
    whole.build();
    let version = whole.get_version().unwrap_or_default().to_owned();
    let subcommands: Vec<Command> =
        whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    let names: Vec<&str> = subcommands.iter().filter_map(Command::get_display_name).collect();
    let mut pages = vec![page(&whole, &names, &version, date)?];
    for command in &subcommands {
        pages.push(page(command, &["bindonce"], &version, date)?);
    }
    Ok(pages)
}

/// One page; `also` names the commands under SEE ALSO.
fn page(command: &Command, also: &[&str], version: &str, date: &str) -> anyhow::Result<Page> {
    let man = Man::new(command.clone().subcommand_help_heading("COMMANDS"))
        .source(format!("bindonce {version}"))
        .manual(MANUAL)
        .date(date);
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    synopsis(command).to_writer(&mut text)?;
    man.render_description_section(&mut text)?;
    let mut options = Vec::new();
    man.render_options_section(&mut options)?;
    text.extend(one_space(&options)?.into_bytes());
    if command.get_subcommands().any(|command| !command.is_hide_set()) {
        man.render_subcommands_section(&mut text)?;
    }
    let help = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    sections(&help).to_writer(&mut text)?;
    see_also(also).to_writer(&mut text)?;
    Ok(Page { file: man.get_filename(), text })
}

/// clap_mangen breaks the line twice before a list of values, which mandoc(1) warns of.
fn one_space(options: &[u8]) -> anyhow::Result<String> {
    Ok(std::str::from_utf8(options)?.replace("\n.br\n\n.br\n", "\n.sp\n"))
}

fn synopsis(command: &Command) -> Roff {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    match usage.strip_prefix(name) {
        Some(rest) => roff.text([bold(name), roman(rest)]),
        None => roff.text([roman(usage)]),
    };
    roff
}

/// The text below the options: headings, entries, explanations.
fn sections(help: &str) -> Roff {
    let mut roff = Roff::new();
    for line in help.lines().filter(|line| !line.is_empty()) {
        let (indent, words) = (line.len() - line.trim_start().len(), line.trim());
        match indent {
            0 => {
                let heading = match words.trim_end_matches(':') {
                    "Exit codes" => "EXIT STATUS".to_owned(),
                    heading => heading.to_uppercase(),
                };
                roff.control("SH", [heading.as_str()]);
            }
            2 => {
                let (entry, explanation) = words.split_once("  ").unwrap_or((words, ""));
                roff.control("TP", []);
                roff.text([bold(entry)]);
                if !explanation.is_empty() {
                    roff.text(inline(explanation.trim()));
                }
            }
            _ => {
                roff.text(inline(words));
            }
        }
    }
    roff
}

/// Makes words in backticks bold: a user types them.
fn inline(text: &str) -> Vec<Inline> {
    let part = |(index, part): (usize, &str)| if index % 2 == 1 { bold(part) } else { roman(part) };
    text.split('`').enumerate().map(part).collect()
}

fn see_also(also: &[&str]) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    let mut words = Vec::new();
    for name in also {
        words.extend([bold(*name), roman("(1), ")]);
    }
    words.extend([bold("bindonce.toml"), roman("(5), "), bold("haproxy"), roman("(1)")]);
    roff.text(words);
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages() -> Vec<(String, String)> {
        let pages = commands(bindonce_cli::command(), "2026-01-31").expect("pages");
        let text = |page: Page| (page.file, String::from_utf8(page.text).expect("text"));
        pages.into_iter().map(text).collect()
    }

    #[test]
    fn every_command_that_is_shown_has_a_page_with_its_sections() {
        let pages = pages();
        let shown = bindonce_cli::command().get_subcommands().filter(|c| !c.is_hide_set()).count();
        assert_eq!(pages.len(), shown + 1);
        for (file, text) in &pages {
            for section in
                ["NAME", "SYNOPSIS", "OPTIONS", "EXAMPLES", "\"EXIT STATUS\"", "\"SEE ALSO\""]
            {
                assert!(text.contains(&format!(".SH {section}\n")), "{file} lacks {section}");
            }
            assert!(text.contains("2026\\-01\\-31") || text.contains("2026-01-31"), "{file}");
        }
        assert!(pages.iter().any(|(file, _)| file == "bindonce-check-config.1"));
    }

    #[test]
    fn entries_and_explanations_become_tagged_paragraphs() {
        let text = sections("Exit codes:\n  0  Done by `it`\n\nExamples:\n  bindonce x\n      Why")
            .render();
        let wanted = ".SH \"EXIT STATUS\"\n.TP\n\\fB0\\fR\nDone by \\fBit\\fR\n\
                      .SH EXAMPLES\n.TP\n\\fBbindonce x\\fR\nWhy\n";
        assert!(text.ends_with(wanted), "{text}");
    }
}

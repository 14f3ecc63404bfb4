//! A manual page from a page of the documentation.
//!
//! The first heading is the page's name and subject; the text before the second heading is only for
//! readers of the Markdown. Tables become tagged paragraphs: the first cell is the tag, the last
//! one the text, and cells between them are named by their column. An unknown element is an error,
//! so nothing is lost unseen.

use anyhow::bail;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};
use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use crate::man::{MANUAL, Page};

/// The manual page `name(section)` of a text in Markdown.
pub(crate) fn page(name: &str, section: u8, source: &str, date: &str) -> anyhow::Result<Page> {
    let version = format!("bindonce {}", env!("CARGO_PKG_VERSION"));
    let mut writer = Writer::default();
    writer.roff.control("TH", [name, &section.to_string(), date, &version, MANUAL]);
    for event in Parser::new_ext(source, Options::ENABLE_TABLES) {
        writer.on(event)?;
    }
    Ok(Page { file: format!("{name}.{section}"), text: writer.roff.render().into_bytes() })
}

#[derive(Default)]
struct Writer {
    roff: Roff,
    /// The text that has not been written yet.
    words: Vec<Inline>,
    /// Whether the writer is between the first heading and the second.
    aside: bool,
    /// Whether the section has a paragraph already.
    begun: bool,
    style: Style,
    columns: Vec<String>,
    cells: Vec<Vec<Inline>>,
    code: Option<String>,
}

#[derive(Default, Clone, Copy)]
enum Style {
    #[default]
    Plain,
    Strong,
    Emphasis,
}

impl Writer {
    fn on(&mut self, event: Event<'_>) -> anyhow::Result<()> {
        match event {
            Event::Text(text) => match &mut self.code {
                Some(code) => code.push_str(&text),
                None => self.words.push(match self.style {
                    Style::Plain => roman(text.as_ref()),
                    Style::Strong => bold(text.as_ref()),
                    Style::Emphasis => italic(text.as_ref()),
                }),
            },
            Event::Code(text) => self.words.push(bold(text.as_ref())),
            Event::SoftBreak => self.words.push(roman(" ")),
            Event::Start(tag) => self.start(&tag)?,
            Event::End(tag) => self.end(tag),
            other => bail!("a manual page cannot have {other:?}"),
        }
        Ok(())
    }

    fn start(&mut self, tag: &Tag<'_>) -> anyhow::Result<()> {
        match tag {
            Tag::Strong => self.style = Style::Strong,
            Tag::Emphasis => self.style = Style::Emphasis,
            Tag::CodeBlock(_) => self.code = Some(String::new()),
            Tag::TableHead | Tag::TableRow => self.cells.clear(),
            Tag::Heading { level: HeadingLevel::H1 | HeadingLevel::H2, .. }
            | Tag::Paragraph
            | Tag::Link { .. }
            | Tag::Table(_)
            | Tag::TableCell => {}
            other => bail!("a manual page cannot have {other:?}"),
        }
        Ok(())
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Heading(HeadingLevel::H1) => {
                let title = plain(&self.take());
                self.roff.control("SH", ["NAME"]);
                self.roff.text([roman(title.replacen(": ", " - ", 1))]);
                self.aside = true;
            }
            TagEnd::Heading(_) => {
                let heading = plain(&self.take()).to_uppercase();
                self.roff.control("SH", [heading.as_str()]);
                self.aside = false;
                self.begun = false;
            }
            TagEnd::Paragraph => {
                let words = self.take();
                if !self.aside {
                    self.paragraph();
                    self.roff.text(words);
                }
            }
            TagEnd::CodeBlock => {
                let code = self.code.take().unwrap_or_default();
                self.paragraph();
                self.roff.control("RS", ["4"]);
                self.roff.control("nf", []);
                for line in code.lines() {
                    self.roff.text([roman(line)]);
                }
                self.roff.control("fi", []);
                self.roff.control("RE", []);
            }
            TagEnd::TableCell => {
                let cell = self.take();
                self.cells.push(cell);
            }
            TagEnd::TableHead => self.columns = self.cells.drain(..).map(|c| plain(&c)).collect(),
            TagEnd::TableRow => self.row(),
            _ => self.style = Style::Plain,
        }
    }

    /// Starts a paragraph, except where a section begins one anyway.
    fn paragraph(&mut self) {
        if std::mem::replace(&mut self.begun, true) {
            self.roff.control("PP", []);
        }
    }

    fn row(&mut self) {
        let mut cells = std::mem::take(&mut self.cells).into_iter();
        let (Some(first), Some(last)) = (cells.next(), cells.next_back()) else { return };
        self.begun = true;
        self.roff.control("TP", []);
        self.roff.text(first);
        let mut words = last;
        for (column, cell) in self.columns.iter().skip(1).zip(cells) {
            words.push(roman(format!(" ({column}: ")));
            words.extend(cell);
            words.push(roman(")"));
        }
        self.roff.text(words);
    }

    fn take(&mut self) -> Vec<Inline> {
        std::mem::take(&mut self.words)
    }
}

fn plain(words: &[Inline]) -> String {
    let text = |word: &Inline| match word {
        Inline::Roman(text) | Inline::Bold(text) | Inline::Italic(text) => text.clone(),
        Inline::LineBreak => " ".to_owned(),
    };
    words.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(source: &str) -> String {
        String::from_utf8(page("x.toml", 5, source, "").expect("a page").text).expect("text")
    }

    #[test]
    fn the_title_names_the_page_and_the_aside_is_left_out() {
        let text = text("# x.toml: what x does\n\nFor readers.\n\n## Files\n\nA `file`\nof *x*.\n");
        assert!(text.contains(".SH NAME\nx.toml \\- what x does\n.SH FILES\nA "), "{text}");
        assert!(text.ends_with("A \\fBfile\\fR of \\fIx\\fR.\n"), "{text}");
        assert!(!text.contains("readers"), "{text}");
    }

    #[test]
    fn a_table_becomes_tagged_paragraphs_that_name_what_lies_between() {
        let text = text(
            "# x: y\n\n## K\n\n| key | default | of what |\n|---|---|---|\n| `a` | 5 | things |\n",
        );
        assert!(text.ends_with(".TP\n\\fBa\\fR\nthings (default: 5)\n"), "{text}");
    }

    #[test]
    fn code_stands_as_it_is() {
        let text = text("# x: y\n\n## K\n\n```toml\na = 1\n.b\n```\n");
        assert!(text.contains(".nf\na = 1\n\\&.b\n.fi\n"), "{text}");
    }

    #[test]
    fn what_it_does_not_know_is_an_error() {
        assert!(page("x", 5, "# x: y\n\n- a list\n", "").is_err());
        assert!(page("x", 5, "# x: y\n\n<b>html</b>\n", "").is_err());
    }
}

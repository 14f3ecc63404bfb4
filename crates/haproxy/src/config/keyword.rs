//! Whether a `global` section has a keyword, judged by the text alone: no variable is expanded, no
//! condition evaluated, no name resolved.

use super::Error;
use super::command::Command;
use super::files;
use super::reader;
use super::sections::Kind;
use super::world::World;

/// Bytes that may make haproxy read another word than the written one.
const QUOTING: &[u8] = b"\"'\\$";

/// Whether a `global` section of the command's files has a line that begins with this keyword. None
/// where only [`super::Rendering::of`] can decide, because of a condition before the line or a
/// quoted first word.
///
/// # Errors
/// [`Error::Read`] for a file that cannot be read, and errors in a template.
pub fn in_global(
    keyword: &str,
    command: &Command,
    world: &dyn World,
) -> Result<Option<bool>, Error> {
    let sources = files::read(command, world)?;
    Ok(look(keyword.as_bytes(), sources.iter().map(|source| &*source.text)))
}

fn look<'a>(keyword: &[u8], texts: impl Iterator<Item = &'a [u8]>) -> Option<bool> {
    let (mut is_sure, mut after_condition) = (true, false);
    for text in texts {
        let mut section = Kind::default();
        for line in reader::lines(text) {
            let line = text[line].trim_ascii_start();
            let ends = |byte: &u8| byte.is_ascii_whitespace() || *byte == b'#';
            let word = &line[..line.iter().position(ends).unwrap_or(line.len())];
            if word == keyword {
                match section {
                    _ if after_condition => return None,
                    Kind::Global if is_sure => return Some(true),
                    _ => {}
                }
            } else if let Some(kind) = Kind::of(word) {
                section = kind;
            }
            after_condition |= word == b".if";
            is_sure &= !word.iter().any(|byte| QUOTING.contains(byte));
        }
    }
    is_sure.then_some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keyword_is_found_in_global_alone_and_nothing_is_said_where_it_may_be_another_word() {
        for (text, expected) in [
            ("global\n daemon\n", Some(true)),
            ("global\n\tdaemon # x\nfrontend f\n", Some(true)),
            ("global\n maxconn 1\ndefaults\n daemon\n", Some(false)),
            ("daemon\nglobal\n daemons\n #daemon\n log daemon\n", Some(false)),
            ("global\n.if 1\n daemon\n.endif\n", None),
            ("global\n.if 0\ndefaults\n.endif\n daemon\n", None),
            ("global\n.if 1\n maxconn 1\n.endif\n", Some(false)),
            ("global\n daemon\n.if 0\n.endif\n", Some(true)),
            ("global\n \"daemon\"\n", None),
            ("global\n d\\aemon\n", None),
            ("global\n \"$X\" y\n daemon\n", None),
            ("", Some(false)),
        ] {
            assert_eq!(look(b"daemon", [text.as_bytes()].into_iter()), expected, "{text}");
        }
        let two = ["global\n".as_bytes(), b"daemon\n"];
        assert_eq!(
            look(b"daemon", two.into_iter()),
            Some(false),
            "each file begins without a section"
        );
    }
}

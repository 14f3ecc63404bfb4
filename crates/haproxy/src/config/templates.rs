//! Reads multibinder's templates: `.erb` and `.mb` files whose only tags are `<%= bind_tcp('IP',
//! PORT) %>`.
//!
//! Such a tag stands in the place of an address and is read as that address. Nothing else of ERB
//! can be evaluated without Ruby, and a guess would bind the wrong address: any other tag is an
//! error that shows the line.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::quoting::printable;
use super::reader::{find, lines};
use super::{Error, Place};

/// Whether a file is a template, judged by its name.
pub fn is_template(path: &Path) -> bool {
    let name = path.as_os_str().as_bytes();
    name.ends_with(b".erb") || name.ends_with(b".mb")
}

/// Replaces every tag of a template by the address that it names. The number of lines stays the
/// same.
///
/// # Errors
/// [`Error::Template`] for every other tag.
pub fn addresses(path: &Path, text: &[u8]) -> Result<Vec<u8>, Error> {
    let mut out = Vec::with_capacity(text.len());
    for (index, line) in lines(text).enumerate() {
        let end = line.end;
        let line = &text[line];
        if !line_into(&mut out, line) {
            return Err(Error::Template {
                place: Place { file: path.to_owned(), line: index + 1 },
                text: printable(line),
            });
        }
        if end < text.len() {
            out.push(b'\n');
        }
    }
    Ok(out)
}

/// Appends a line with its tags replaced; false for an unknown tag.
fn line_into(out: &mut Vec<u8>, line: &[u8]) -> bool {
    let mut rest = line;
    while let Some(start) = find(rest, b"<%") {
        let Some(length) = find(&rest[start..], b"%>") else {
            return false;
        };
        let Some(address) = rest[start..start + length]
            .strip_prefix(b"<%=")
            .and_then(|tag| std::str::from_utf8(tag).ok())
            .and_then(bind_tcp)
        else {
            return false;
        };
        out.extend_from_slice(&rest[..start]);
        out.extend_from_slice(address.as_bytes());
        rest = &rest[start + length + 2..];
    }
    out.extend_from_slice(rest);
    true
}

/// The address in ` bind_tcp('IP', PORT) `, with or without spaces inside the parentheses.
fn bind_tcp(tag: &str) -> Option<String> {
    let inside = tag.trim().strip_prefix("bind_tcp")?.trim_start();
    let (ip, port) = inside.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    let ip = ip.trim();
    let ip = ip
        .strip_prefix('\'')
        .and_then(|ip| ip.strip_suffix('\''))
        .or_else(|| ip.strip_prefix('"').and_then(|ip| ip.strip_suffix('"')))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '_' | '*');
    let port = port.trim();
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    if !ip.chars().all(plain) || !digits {
        return None;
    }
    Some(if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_tag_becomes_its_address() {
        let text = "frontend a\n  bind <%= bind_tcp('0.0.0.0', 80) %> ssl\n\tbind <%=bind_tcp( \"::1\",443 )%>\n# 5 % 3 > 1\n";
        let out = addresses(Path::new("a.erb"), text.as_bytes()).expect("good");
        assert_eq!(
            String::from_utf8_lossy(&out),
            "frontend a\n  bind 0.0.0.0:80 ssl\n\tbind [::1]:443\n# 5 % 3 > 1\n"
        );
    }

    #[test]
    fn any_other_tag_is_an_error_that_shows_the_line() {
        for tag in [
            "<% 3.times do %>",
            "<%= bind_udp('0.0.0.0', 80) %>",
            "<%# comment %>",
            "<%",
            "<%= bind_tcp(ip, 80) %>",
            "<%= bind_tcp('a b', 80) %>",
            "<%= bind_tcp('x', port) %>",
            "<%== bind_tcp('0.0.0.0', 80) %>",
            "<%%= x %>",
        ] {
            let text = format!("global\n    bind {tag} ssl\n");
            match addresses(Path::new("a.mb"), text.as_bytes()) {
                Err(Error::Template { place, text }) => {
                    assert_eq!(place.to_string(), "a.mb:2");
                    assert_eq!(text, format!("bind {tag} ssl"));
                }
                other => panic!("{tag}: {other:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(text in "([<%=>\n '\"a(),0-9:]|bind_tcp){0,40}") {
            let count = text.matches('\n').count();
            if let Ok(out) = addresses(Path::new("a.mb"), text.as_bytes()) {
                prop_assert_eq!(out.iter().filter(|&&b| b == b'\n').count(), count);
            }
        }
    }
}

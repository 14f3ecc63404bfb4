//! Compares the words of bindonce's reader with the words of the installed haproxy: `.warning WORD`
//! makes haproxy print the word.

use std::path::Path;
use std::process::Command;

use bindonce_haproxy::config::reader::{self, Unset};
use bindonce_haproxy::config::{Questions, System, World as _};

/// A small random generator, so that a run can be repeated from its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    fn line(&mut self) -> String {
        const PARTS: &[&str] = &[
            "a",
            "b1",
            "_",
            "-",
            "0",
            ":",
            ",",
            ".",
            "[*]",
            "[",
            "]",
            "\"",
            "\"",
            "'",
            "\\",
            "\\\\",
            "\\\"",
            "\\'",
            "\\#",
            "\\$",
            "\\x41",
            "\\x4",
            "\\t",
            "\\ ",
            "\\z",
            " ",
            "#",
            "$",
            "${",
            "}",
            "$IP",
            "${IP}",
            "${LIST[*]}",
            "${NO-d e}",
            "${IP-d}",
            "${NO}",
            "\"${NO}\"",
            "\"${NO[*]}\"",
            "\"${VOID[*]}\" ",
            "\"$IP\"",
            "\"${LIST[*]}\"",
            "\"${NO-x}\"",
            "é",
        ];
        let mut line = String::from(".warning ");
        for _ in 0..=self.below(9) {
            line.push_str(PARTS[self.below(PARTS.len())]);
        }
        line
    }
}

const VARIABLES: [(&str, &str); 3] = [("IP", "10.0.0.1"), ("LIST", "p  q r "), ("VOID", "")];

fn variable(name: &[u8]) -> Option<Vec<u8>> {
    let found = VARIABLES.iter().find(|(n, _)| n.as_bytes() == name);
    found.map(|(_, value)| value.as_bytes().to_vec())
}

/// haproxy's word for each line, or `None` if it refuses the line.
fn ask(haproxy: &Path, file: &Path, lines: &[String]) -> Vec<Option<Vec<u8>>> {
    // haproxy 2.6 garbles the default of a variable on the line that makes it allocate its buffer,
    // so the first line is not compared.
    let text = format!(".notice first\n{}\n", lines.join("\n"));
    std::fs::write(file, text).expect("write");
    let output = Command::new(haproxy)
        .args(["-c", "-f"])
        .arg(file)
        .env_clear()
        .envs(VARIABLES)
        .output()
        .expect("run haproxy");
    let said = output.stderr;
    (2..lines.len() + 2)
        .map(|number| {
            let head = format!("parsing [{}:{number}]: '", file.display());
            let start = said.windows(head.len()).position(|w| w == head.as_bytes())? + head.len();
            // Each answer ends in a quote, a full stop and a line feed.
            let end = said[start..].windows(3).position(|w| w == b"'.\n")?;
            Some(said[start..start + end].to_vec())
        })
        .collect()
}

/// The word of bindonce's reader.
fn ours(line: &str, unset: Unset) -> Option<Vec<u8>> {
    let words = reader::words(line.as_bytes(), unset, &variable).ok()?;
    // From 3.3 on any empty word is an error.
    if unset == Unset::NoWord && words.iter().any(|word| word.value.is_empty()) {
        return None;
    }
    // A third word is an error of .warning itself.
    let third = words.get(2).is_some_and(|word| !word.value.is_empty());
    let word = words.get(1).map(|word| word.value.clone());
    (!third).then(|| word.unwrap_or_default())
}

#[test]
fn words_are_the_words_that_haproxy_reads() {
    let haproxies = super::support::haproxies();
    if haproxies.is_empty() {
        super::skip::skip("haproxy is not installed");
    }
    for haproxy in haproxies {
        words_of(&haproxy);
    }
}

fn words_of(haproxy: &Path) {
    let world = System::new(haproxy.as_os_str()).expect("a world");
    let unset = world.ask(&Questions::default(), &[]).expect("an answer").unset;
    let scratch = super::support::Scratch::new("words");
    let file = scratch.0.join("words.cfg");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (accepted, refused): (Vec<_>, Vec<_>) =
        (0..4000).map(|_| random.line()).partition(|line| ours(line, unset).is_some());
    assert!(accepted.len() > 500 && refused.len() > 500);
    for lines in accepted.chunks(200) {
        for (line, theirs) in lines.iter().zip(ask(haproxy, &file, lines)) {
            let show = |word: Option<Vec<u8>>| {
                word.map(|word| String::from_utf8_lossy(&word).into_owned())
            };
            assert_eq!(show(ours(line, unset)), show(theirs), "{line} of {unset:?}");
        }
    }
    // One refused line can end haproxy's reading, so each is tried alone; a sample is enough.
    for line in refused.iter().take(20) {
        let theirs = ask(haproxy, &file, std::slice::from_ref(line));
        assert_eq!(theirs, [None], "{line} of {unset:?}");
    }
}

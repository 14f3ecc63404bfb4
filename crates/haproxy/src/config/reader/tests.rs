//! Words and lines as observed in haproxy, and hostile bytes.

use super::*;
use crate::config::quoting::quoted;
use proptest::prelude::*;

fn environment(name: &[u8]) -> Option<Vec<u8>> {
    match name {
        b"IP" => Some(b"10.0.0.1".to_vec()),
        b"LIST" => Some(b" a  b c".to_vec()),
        b"EMPTY" => Some(Vec::new()),
        b".LINE" => Some(b"7".to_vec()),
        _ => None,
    }
}

fn read(line: &str) -> Vec<String> {
    read_by(Unset::Empty, line)
}

fn read_by(unset: Unset, line: &str) -> Vec<String> {
    words(line.as_bytes(), unset, &environment)
        .expect(line)
        .into_iter()
        .map(|word| String::from_utf8(word.value).expect("utf-8"))
        .collect()
}

#[test]
fn words_come_apart_as_in_haproxy() {
    for (line, expected) in [
        ("", &[][..]),
        ("   # nothing", &[]),
        ("[scope]", &[]),
        ("\tbind :80\r", &["bind", ":80"]),
        ("bind :80#ssl", &["bind", ":80"]),
        (r"bind \#80\ x", &["bind", "#80 x"]),
        (r#"bind "a b"'c d'e"#, &["bind", "a bc de"]),
        (r#"a "it's" '"' \" \'"#, &["a", "it's", "\"", "\"", "'"]),
        (r"a \1\q\x41\t'\x41'", &["a", "\\1\\qA\t\\x41"]),
        (r"a\", &["a\\"]),
        ("a $IP ${IP}", &["a", "$IP", "${IP}"]),
        (r#"a "$IP:80" "${IP}80""#, &["a", "10.0.0.1:80", "10.0.0.180"]),
        (r#"a '"$IP"' "\$IP""#, &["a", "\"$IP\"", "$IP"]),
        (r#"a "${NO-x y}" "${IP-x}" "${NO}z""#, &["a", "x y", "10.0.0.1", "z"]),
        (r#"a "${EMPTY-x}" b"#, &["a", "", "b"]),
        (r#"a "x${LIST[*]}y" z"#, &["a", "x", "a", "b", "cy", "z"]),
        (r#"a "${NO[*]-p q}" z"#, &["a", "p", "q", "z"]),
        (r#"a "${.LINE}""#, &["a", "7"]),
        (r#"a "" ''"#, &["a", ""]),
        (r"a b\x00c d", &["a", "b", "d"]),
    ] {
        assert_eq!(read(line), expected, "{line}");
    }
}

#[test]
fn variables_that_leave_nothing_follow_the_version() {
    for (line, empty, joined, no_word) in [
        (r#"a "${NO[*]}" b"#, &["a", "", "b"][..], &["a", "b"][..], &["a", "b"][..]),
        (r#"a "$NO" b"#, &["a", "", "b"], &["a", "b"], &["a", "", "b"]),
        (r#"a:80"$NO" b c"#, &["a:80", "b", "c"], &["a:80b", "c"], &["a:80", "b", "c"]),
        (r#"a "${EMPTY[*]}" b"#, &["a", "", "b"], &["a", "", "b"], &["a", "b"]),
        (r#"a "$EMPTY" b"#, &["a", "", "b"], &["a", "", "b"], &["a", "", "b"]),
        (r#"a "" b"#, &["a", "", "b"], &["a", "", "b"], &["a", "", "b"]),
        (
            r#"a "${LIST[*]}" d"#,
            &["a", "", "a", "b", "c", "d"],
            &["a", "", "a", "b", "c", "d"],
            &["a", "a", "b", "c", "d"],
        ),
        (r#"a "${NO}x" b"#, &["a", "x", "b"], &["a", "x", "b"], &["a", "x", "b"]),
        (r#"a "${NO-}" b"#, &["a", "", "b"], &["a", "", "b"], &["a", "", "b"]),
        (r#""$NO" a"#, &["", "a"], &["a"], &["", "a"]),
        (r#""${NO[*]}" a"#, &["", "a"], &["a"], &["a"]),
        (r#"a "${NO[*]}" "${NO[*]}" b"#, &["a", "", "", "b"], &["a", "b"], &["a", "b"]),
        (r#"a """${NO[*]}" b"#, &["a", "", "b"], &["a", "b"], &["a", "", "b"]),
        (r#"a "${NO[*]}"c b"#, &["a", "c", "b"], &["a", "c", "b"], &["a", "c", "b"]),
    ] {
        assert_eq!(read_by(Unset::Empty, line), empty, "{line}");
        assert_eq!(read_by(Unset::Joined, line), joined, "{line}");
        assert_eq!(read_by(Unset::NoWord, line), no_word, "{line}");
        let taken = take_apart(line.as_bytes(), Unset::Empty, &environment).expect(line);
        assert!(taken.depends || (empty == joined && joined == no_word), "{line}");
    }
}

#[test]
fn faults_say_where() {
    for (line, reason, position) in [
        ("a \"b", "unmatched quote", 2),
        ("a 'b\"", "unmatched quote", 2),
        ("a \\x4", "hexadecimal", 2),
        ("a \"${IP\"", "brace", 4),
        ("a \"${IP-x\"", "brace", 4),
        ("a \"$1\"", "first character", 4),
        ("a \"${.NOPE}\"", "pseudo", 5),
        ("a \"${LIST[1]}\"", "expansion", 9),
    ] {
        let fault = words(line.as_bytes(), Unset::Empty, &environment).expect_err(line);
        assert!(fault.reason.contains(reason), "{line}: {fault:?}");
        assert_eq!(fault.position, position, "{line}: {fault:?}");
    }
}

#[test]
fn a_word_knows_its_bytes() {
    let line = br#"  bind  "$IP":80 "${LIST[*]}"x#y"#;
    let sources: Vec<_> = words(line, Unset::Empty, &environment)
        .expect("good")
        .into_iter()
        .map(|word| &line[word.source])
        .collect();
    assert_eq!(
        sources,
        [
            &b"bind"[..],
            b"\"$IP\":80",
            b"\"${LIST[*]}\"x",
            b"\"${LIST[*]}\"x",
            b"\"${LIST[*]}\"x",
            b"\"${LIST[*]}\"x"
        ]
    );
}

#[test]
fn addresses_expand_variables_without_quotes() {
    for (text, expected) in [
        ("$IP:80", "10.0.0.1:80"),
        ("${IP}:80", "10.0.0.1:80"),
        ("${NO-x}:80", "-x}:80"),
        ("a$", "a"),
        ("$-:80", "-:80"),
    ] {
        let got = expand(text.as_bytes(), &environment);
        assert_eq!(String::from_utf8_lossy(&got), expected, "{text}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
        for line in lines(&bytes) {
            let _ = words(&bytes[line], Unset::Empty, &environment);
        }
        let _ = expand(&bytes, &environment);
    }

    #[test]
    fn hostile_lines_neither(line in r#"[ab$\{\}\[\]*"' \\x#.-]{0,40}"#) {
        if let Ok(words) = words(line.as_bytes(), Unset::Empty, &environment) {
            for word in words {
                prop_assert!(word.source.end <= line.len() && word.source.start <= word.source.end);
            }
        }
        let _ = expand(line.as_bytes(), &environment);
    }

    #[test]
    fn a_quoted_word_reads_back(value in "[^\\x00]{1,30}") {
        let line = quoted(value.as_bytes());
        prop_assert!(!line.contains(&b'\n'));
        let read = words(&line, Unset::Empty, &environment).expect("quoted");
        prop_assert_eq!(read.len(), 1);
        prop_assert_eq!(&read[0].value, value.as_bytes());
    }
}

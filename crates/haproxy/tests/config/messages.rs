//! haproxy's messages about the copies, translated for the user's files. The texts were observed
//! with haproxy 2.6.12, 3.0.11 and 3.2.26; tests/check.rs of the workspace compares with real ones.

use std::path::PathBuf;
use std::rc::Rc;

use bindonce_haproxy::config::{Command, Messages, Rendering, Supplied, System};

use super::support::Scratch;

/// A rendering as another supervisor, or another image of this one, restores it: through JSON,
/// without the texts of the copies.
fn read_back(rendering: &Rendering, copies: &[PathBuf]) -> Rendering {
    let saved = serde_json::to_vec(rendering).expect("JSON");
    let saved: Rendering = serde_json::from_slice(&saved).expect("JSON");
    saved.with_copies(copies).expect("the copies")
}

/// Translates the output of a haproxy that was started on the copy of `text`, with its first
/// descriptor as number 3.
fn translate(name: &str, text: &str, said: &str) -> String {
    let scratch = Scratch::new(name);
    std::fs::write(scratch.0.join("a.cfg"), text).expect("write");
    let directory = scratch.0.to_str().expect("path");
    let command = Command::parse(["haproxy", "-C", directory, "-f", "a.cfg"]).expect("command");
    let world = System::new("haproxy".as_ref()).expect("world");
    let rendering = Rendering::of(&command, Supplied::default(), &world).expect("rendering");
    let copies = rendering.write_to(&scratch.0).expect("copies");
    let said = said.replace("/run/1/000-a.cfg", copies[0].to_str().expect("path"));
    let back = read_back(&rendering, &copies);
    assert_eq!(back, rendering, "as an earlier supervisor has left it");
    assert!(back.reads_as_before(&command, &world).expect("files"));
    let [first, resumed] = [rendering, back].map(|rendering| {
        let mut messages = Messages::new(Rc::new(rendering), &copies, 3);
        let lines = said.split_inclusive('\n').map(|line| messages.of_the_user(line.as_bytes()));
        String::from_utf8(lines.flatten().collect()).expect("text")
    });
    assert_eq!(resumed, first, "another one after an upgrade");
    first
}

const LINES: &str = "\
frontend f
    bind 10.0.0.1:80 id 7
    bind 10.0.0.2:80,10.0.0.3:80 name x
    bind 10.0.0.4:80-82,10.0.0.5:80
    bind unix@/run/x.sock
    http-request set-header a 'fd@3'
";

#[test]
fn every_descriptor_of_a_message_becomes_its_address() {
    for (said, wanted) in [
        (
            "[ALERT] (1) : config : Proxy 'f': no SSL certificate specified for bind 'fd@3' at [/run/1/000-a.cfg:2] (use 'crt').\n",
            "[ALERT] (1) : config : Proxy 'f': no SSL certificate specified for bind '10.0.0.1:80' at [a.cfg:2] (use 'crt').\n",
        ),
        (
            "parsing [/run/1/000-a.cfg:3] : 'bind fd@4,fd@5' in section 'frontend' : 'id' : custom id 7 already used at /run/1/000-a.cfg:2 ('bind fd@3')",
            "parsing [a.cfg:3] : 'bind 10.0.0.2:80,10.0.0.3:80' in section 'frontend' : 'id' : custom id 7 already used at a.cfg:2 ('bind 10.0.0.1:80')",
        ),
        // A range counts as one address.
        ("'bind fd@6,fd@7,fd@8,fd@9' in section", "'bind 10.0.0.4:80-82,10.0.0.5:80' in section"),
        ("cannot change mode [fd 10]", "cannot change mode [unix@/run/x.sock]"),
        // A message about the line itself, without `bind` before the descriptor.
        (
            "parsing [/run/1/000-a.cfg:2] : 'bind' : stream not acceptable in 'fd@3'",
            "parsing [a.cfg:2] : 'bind' : stream not acceptable in '10.0.0.1:80'",
        ),
    ] {
        assert_eq!(translate("addresses", LINES, said), wanted);
    }
    // Descriptors of others, and the user's own text, stay.
    for said in [
        "'bind fd@2' 'bind fd@11' 'bind fd@' 'bind fd@3x' bind fd@99999999999999999999",
        "parsing [/run/1/000-b.cfg:6] : unknown 'fd@3'",
        "parsing [x:6] : unknown keyword 'fd@3' [fd 99] [fd 3",
        "",
        "\n",
    ] {
        assert_eq!(translate("others", LINES, said), said);
    }
}

#[test]
fn the_quoted_line_is_the_users_with_the_mark_under_the_same_byte() {
    let text = "frontend f\n    bind 127.0.0.1:8080 \"\" ssl\n";
    let said = "\
[WARNING] (1) : config : parsing [/run/1/000-a.cfg:2]: argument number 2 at position 10 is empty and marks the end of the argument list; all subsequent arguments will be ignored:
  bind \"fd@${BINDONCE_127_0_0_1_8080}\" \"\" ssl
       ^
";
    let wanted = "\
[WARNING] (1) : config : parsing [a.cfg:2]: argument number 2 at position 25 is empty and marks the end of the argument list; all subsequent arguments will be ignored:
  bind 127.0.0.1:8080 \"\" ssl
                      ^
";
    assert_eq!(translate("quote", text, said), wanted);
    // Any other message with a position: positions after the address move with its length.
    let said = "\
parsing [/run/1/000-a.cfg:2]: some fault at position 43:
  bind \"fd@${BINDONCE_127_0_0_1_8080}\" \"\" ssl
                                        ^
next [/run/1/000-a.cfg:1]
";
    let wanted = "\
parsing [a.cfg:2]: some fault at position 26:
  bind 127.0.0.1:8080 \"\" ssl
                       ^
next [a.cfg:1]
";
    assert_eq!(translate("fault", text, said), wanted);
}

#[test]
fn a_long_line_is_cut_around_the_mark() {
    let long = "x".repeat(100);
    let text =
        format!("frontend f\n bind 127.0.0.1:8080 name {long} \\t\"\n").replace("\\t\"", "q");
    let copy = format!(" bind \"fd@${{BINDONCE_127_0_0_1_8080}}\" name {long} q");
    let at = copy.len() - 1;
    let shown = &copy[1..];
    let start = at - 1 - 40 + 3;
    let said = format!(
        "parsing [/run/1/000-a.cfg:2]: fault at position {}:\n  ...{}...\n  {}^\n",
        at + 1,
        &shown[start..],
        " ".repeat(40)
    );
    let users = format!(" bind 127.0.0.1:8080 name {long} q");
    let wanted = format!(
        "parsing [a.cfg:2]: fault at position {}:\n  ...{}...\n  {}^\n",
        users.len(),
        &users[1..][users.len() - 2 - 40 + 3..],
        " ".repeat(40)
    );
    assert_eq!(translate("long", &text, &said), wanted);
}

#[test]
fn too_many_words_are_counted_in_the_users_line() {
    let said = "parsing [/run/1/000-a.cfg:4]: too many words, truncating after word 64, position 340: <x>.";
    // fd@6,fd@7,fd@8,fd@9 has 19 bytes, the user's list 26.
    let wanted = "parsing [a.cfg:4]: too many words, truncating after word 64, position 347: <x>.";
    assert_eq!(translate("words", LINES, said), wanted);
}

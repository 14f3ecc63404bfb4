use std::fs;
use std::io::Read as _;

use super::*;

/// As on a full disk, where a copy that is rewritten in place stays cut off.
#[test]
fn a_copy_that_cannot_be_written_again_stays_whole() {
    let directory = std::env::temp_dir().join(format!("bindonce-copies-{}", std::process::id()));
    fs::create_dir(&directory).expect("directory");
    let write = |text: &str| {
        let file = RenderedFile {
            user_path: "haproxy.cfg".into(),
            name: "000-haproxy.cfg".to_owned(),
            injected: false,
            text: text.as_bytes().to_vec(),
            changes: Vec::new(),
        };
        Rendering { files: vec![file], ..Rendering::default() }.write_to(&directory)
    };
    let paths = write("first").expect("write");
    assert_eq!(paths, [directory.join("000-haproxy.cfg")]);
    let mut opened = fs::File::open(&paths[0]).expect("open");
    write("second").expect("write again");
    // A reader that has opened it before reads the older text to its end.
    let mut text = String::new();
    opened.read_to_string(&mut text).expect("read");
    assert_eq!(text, "first");
    assert_eq!(fs::read_dir(&directory).expect("list").count(), 1);
    // Nothing can be written where a directory is in the way.
    fs::create_dir(directory.join(".new")).expect("directory");
    assert!(write("third").is_err());
    assert_eq!(fs::read_to_string(&paths[0]).expect("read"), "second");
    fs::remove_dir_all(&directory).expect("remove");
}

#[test]
fn what_binds_while_it_serves_is_known() {
    for (line, expected) in [
        ("    source 10.0.0.1 usesrc clientip", true),
        ("    server a 10.0.0.2:80 check source 10.0.0.1", true),
        ("    option external-check", true),
        ("insecure-fork-wanted", true),
        ("    bind \"quic+fd@${BINDONCE_443}\" ssl", true),
        ("    balance source", false),
        ("    server source 10.0.0.2:80 # source 10.0.0.1", true),
        ("    # source 10.0.0.1", false),
        ("    bind \"fd@${BINDONCE_80}\"", false),
    ] {
        let file = RenderedFile {
            user_path: "haproxy.cfg".into(),
            name: String::new(),
            injected: false,
            text: line.as_bytes().to_vec(),
            changes: Vec::new(),
        };
        let rendering = Rendering { files: vec![file], ..Rendering::default() };
        assert_eq!(rendering.binds_while_it_serves(), expected, "{line}");
    }
}

#[test]
fn lines_whose_tickets_die_with_a_generation_are_known() {
    let lines = "global\nfrontend a\n bind :1 ssl crt x\n bind :2 ssl crt x tls-ticket-keys k\n \
                 bind :3 ssl crt x no-tls-tickets\n bind :4 # ssl\n bind quic4@:5 ssl crt x\n";
    let of = |text: String| {
        let file = RenderedFile {
            user_path: "haproxy.cfg".into(),
            name: String::new(),
            injected: false,
            text: text.into_bytes(),
            changes: Vec::new(),
        };
        let rendering = Rendering { files: vec![file], ..Rendering::default() };
        rendering.loses_tickets().iter().map(|place| place.line).collect::<Vec<_>>()
    };
    assert_eq!(of(lines.to_owned()), [3, 7]);
    let all = "global\n ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets\n";
    assert_eq!(of(format!("{all}{lines} bind :8 ssl crt x tls-tickets\n")), [10]);
}

#[test]
fn a_bind_line_may_stand_for_what_it_names() {
    for (word, address, expected) in [
        (":8080", "0.0.0.0:8080", true),
        ("127.0.0.1:8080-8082,:90", "127.0.0.1:8081", true),
        (":8080", "127.0.0.1:8081", false),
        ("\"${HOST}:${PORT}\"", "127.0.0.1:8081", true),
        ("\"${HOST}:90\"", "127.0.0.1:8081", false),
        ("\"${X-127.0.0.1:8081}\"", "127.0.0.1:8081", true),
        ("\"fd@${BINDONCE_127_0_0_1_8081}\"", "127.0.0.1:8081", false),
        ("quic4@:443", "udp4@0.0.0.0:443", true),
        (":443", "udp4@0.0.0.0:443", false),
        ("/run/a.sock", "unix@/run/a.sock.812.tmp", true),
        ("unix@b.sock", "unix@/run/b.sock", true),
        ("abns@name", "abns@name", true),
        (":80", "unix@/run/a", false),
    ] {
        assert_eq!(may_stand_for(word, address), expected, "{word} {address}");
    }
}

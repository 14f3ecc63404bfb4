use super::*;
use proptest::prelude::*;

fn target(text: &str, datagram: bool) -> Result<Target, Problem> {
    target_in("/srv", text, datagram)
}

fn target_in(directory: &str, text: &str, datagram: bool) -> Result<Target, Problem> {
    let resolve = |host: &str, _| match host {
        "localhost" => Ok("127.0.0.1".parse().expect("ip")),
        _ => Err(io::Error::other("no such host")),
    };
    let resolved = |_: &Path| Err(io::ErrorKind::NotFound.into());
    let context = Context {
        datagram,
        prefix: b"",
        directory: Path::new(directory),
        resolved: &resolved,
        resolve: &resolve,
    };
    read(text.as_bytes(), &context)
}

fn printed(text: &str, datagram: bool) -> String {
    match target(text, datagram) {
        Ok(Target::Listen(Wanted { first, last, mptcp })) => {
            let range = first.port().filter(|port| *port != last).map(|_| format!("-{last}"));
            let option = if mptcp { ",mptcp" } else { "" };
            format!("{first}{}{option}", range.unwrap_or_default())
        }
        Ok(Target::Descriptor(rest)) => format!("fd {}", String::from_utf8_lossy(&rest)),
        Ok(Target::Alone(reason)) => format!("alone: {reason}"),
        Err(Problem::Bad(reason)) => format!("bad: {reason}"),
        Err(Problem::Unresolved { host, .. }) => format!("unresolved: {host}"),
    }
}

#[test]
fn every_prefix_comes_out_as_haproxy_takes_it() {
    for (text, expected) in [
        (":80", "0.0.0.0:80"),
        ("*:80", "0.0.0.0:80"),
        ("10.0.0.1:80", "10.0.0.1:80"),
        (":::80", "[::]:80"),
        ("::1:80", "[::1]:80"),
        ("[::1]:80", "[::1]:80"),
        ("ipv6@:80", "[::]:80"),
        ("ipv6@*:80", "[::]:80"),
        ("ipv4@*:80", "0.0.0.0:80"),
        ("ip@:80", "0.0.0.0:80"),
        ("tcp6@::1:80", "[::1]:80"),
        ("stream+ipv4@:80", "0.0.0.0:80"),
        ("localhost:80", "127.0.0.1:80"),
        (":8000-8003", "0.0.0.0:8000-8003"),
        ("/run/a.sock", "unix@/run/a.sock"),
        ("/run/a@b", "unix@/run/a@b"),
        ("unix@/run/a.sock", "unix@/run/a.sock"),
        ("unix@a.sock", "unix@/srv/a.sock"),
        ("uxst@/run/a", "unix@/run/a"),
        ("abns@web", "abns@web"),
        ("abns@", "abns@"),
        ("abnsz@web", "abnsz@web"),
        ("mptcp@:80", "0.0.0.0:80,mptcp"),
        ("mptcp4@10.0.0.1:80-81", "10.0.0.1:80-81,mptcp"),
        ("mptcp6@:80", "[::]:80,mptcp"),
        ("fd@3", "fd 3"),
        ("stream+fd@3", "fd 3"),
        ("quic+fd@3", "fd 3"),
        ("quic4@:443", "quic4@0.0.0.0:443"),
        ("quic6@:443-445", "quic6@[::]:443-445"),
        ("quic+127.0.0.1:443", "quic4@127.0.0.1:443"),
        ("quic+ipv6@:443", "quic6@[::]:443"),
        ("quic+[::1]:443", "quic6@[::1]:443"),
        ("sockpair@3", "fd 3"),
        (":8080-+8082", "0.0.0.0:8080-8082"),
        (":8080-\t 8082", "0.0.0.0:8080-8082"),
        ("[localhost]:80", "127.0.0.1:80"),
        ("[10.0.0.1]:80", "10.0.0.1:80"),
    ] {
        assert_eq!(printed(text, false), expected, "{text}");
    }
    for (text, expected) in [
        (":514", "udp4@0.0.0.0:514"),
        ("udp@10.0.0.1:514", "udp4@10.0.0.1:514"),
        ("udp6@:514", "udp6@[::]:514"),
        ("dgram+:514", "udp4@0.0.0.0:514"),
    ] {
        assert_eq!(printed(text, true), expected, "{text}");
    }
}

#[test]
fn what_only_haproxy_can_bind_is_left_to_it() {
    for text in [
        "quic@:443",
        "quic+/run/a",
        "quic+udp4@:443",
        "rhttp@s",
        "x@:80",
        // haproxy 2.6 takes these, 3.0 does not.
        ":80x",
        ":80.5",
        ":80 ",
        ":80-81-82",
    ] {
        assert!(printed(text, false).starts_with("alone: "), "{text}");
    }
    for text in ["/dev/log", "uxdg@/dev/log", "dgram+abns@x", "abnsz@x"] {
        assert!(printed(text, true).starts_with("alone: "), "{text}");
    }
}

/// haproxy binds a relative path as it is written, whatever its directory.
#[test]
fn a_relative_path_in_a_deep_directory_is_left_to_haproxy() {
    let deep = format!("/{}", "d".repeat(MAX_PATH - 3));
    let read_in = |directory: &str, text: &str| target_in(directory, text, false).expect(text);
    let fits = Address::unix(&format!("{deep}/a")).expect("a path of 107 bytes");
    for text in ["unix@a", "unix@./a"] {
        assert_eq!(read_in(&deep, text), Target::from(fits.clone()), "{text}");
    }
    for text in ["unix@ab", "uxst@run/a.sock", "unix@./ab"] {
        assert_eq!(read_in(&deep, text), Target::Alone(TOO_DEEP), "{text}");
    }
    assert_eq!(read_in(&deep, "/run/a"), Target::from(Address::unix("/run/a").expect("a path")));
    let long = format!("unix@{}", "x".repeat(LONGEST_PATH + 1));
    assert!(matches!(target_in("/", &long, false), Err(Problem::Bad(_))));
}

#[test]
fn what_haproxy_refuses_is_refused() {
    for text in ["[*]:80", "[]:80", "[:]:80", "ipv6@[*]:80"] {
        // In 2.6, 3.0 and 3.2 too: "invalid address: '[*]'".
        let said = format!("{:?}", target(text, false));
        assert!(said.contains("stands for no address"), "{text}: {said}");
    }
    for text in [
        "",
        "80",
        "10.0.0.1",
        "[::1]",
        ":",
        ":0",
        ":65536",
        ":http",
        ":-80",
        ":90-80",
        ":80-",
        ":+80",
        ":90-80x",
        ":0x",
        ":80-++81",
        ": 80",
        "[*]:80",
        "[a/b]:80",
        "[::1:80",
        "[]:80",
        "10.0.0.1]:80",
        "ipv4@[::]:80",
        "ipv6@10.0.0.1:80",
        "a b:80",
        "udp4@:80",
        "dgram+:80",
        "unix@",
        "ipv4@::1:80",
        "fe80::1%eth0:80",
    ] {
        assert!(printed(text, false).starts_with("bad: "), "{text}: {}", printed(text, false));
    }
    assert!(printed("tcp4@:80", true).starts_with("bad: "));
    assert_eq!(printed("nowhere.example:80", false), "unresolved: nowhere.example");
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "[a-z@:\\[\\]0-9.*/%+-]{0,30}|.{0,20}", datagram: bool) {
        let _ = target(&text, datagram);
    }
}

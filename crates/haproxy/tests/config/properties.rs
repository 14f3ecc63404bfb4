//! Properties of every configuration, sensible or not.

use std::collections::BTreeSet;

use bindonce_haproxy::config::Answers;
use bindonce_haproxy::config::reader::{self, Unset};
use proptest::prelude::*;

use crate::one::{render, variables};

const FILE: &str = "conf/a.cfg";

/// Answers of any haproxy.
fn answers() -> impl Strategy<Value = Answers> {
    let unset = prop::sample::select(vec![Unset::Empty, Unset::Joined, Unset::NoWord]);
    (unset, any::<bool>()).prop_map(|(unset, discovery)| Answers {
        unset,
        discovery,
        variables: [("HAPROXY_BRANCH".to_owned(), Some(b"3.2".to_vec()))].into(),
        ..Answers::default()
    })
}

fn line() -> impl Strategy<Value = String> {
    let fixed = prop::sample::select(vec![
        "global",
        "defaults",
        "frontend a",
        "listen b # c",
        "peers p",
        "log-forward l",
        "backend c",
        "  server host",
        "  disabled",
        "  backlog 5",
        "  unix-bind prefix /run mode 600",
        "  default-path config",
        "  default-path parent",
        "  resetenv IP # keep",
        "  setenv IP ::1",
        ".if 1",
        ".if defined(IP)",
        ".else",
        ".endif",
        "  stats socket /run/s",
        "  \"${LINE[*]}\" maxconn 5",
        "  bind \"${NO[*]}\" :7301",
        "  bind \"$NO\" :7302 \"${NO}\" interface lo",
        "  bind :7303\"${NO}\" v6only",
        "  log-tag \"${.FILE} %[env(HAPROXY_CFGFILES)]\"",
        ".if streq(\"$HAPROXY_BRANCH\",3.2)",
        ".elif feature(X) && enabled(EPOLL)",
        "  noepoll",
        "  bind \"unclosed",
        "  mode http\r",
        "# bind :1",
        "",
        "   ",
    ]);
    let address = prop::sample::select(vec![
        ":",
        "10.0.0.1:",
        "[::1]:",
        ":::",
        "$IP:",
        "ipv6@:",
        "localhost:",
        "'127.0.0.1':",
    ]);
    let rest = prop::sample::select(vec![
        "",
        " ssl crt x",
        " name \"a b\" # c",
        "#c",
        " v6only",
        ",fd@9 thread 1",
        "-7100",
    ]);
    let bind =
        (address, 7000..7100_u16, rest, any::<bool>()).prop_map(|(address, port, rest, dgram)| {
            let word = if dgram { "dgram-bind" } else { "bind" };
            format!("\t{word}  {address}{port}{rest}")
        });
    let quoted = (7200..7300_u16).prop_map(|port| format!("  bind \"${{IP}}\":{port}\tname 'x'"));
    let path = "[a-z]{1,3}".prop_map(|name| format!("  bind unix@/{name}.sock mode 0600"));
    prop_oneof![4 => fixed.prop_map(str::to_owned), 3 => bind, 1 => quoted, 1 => path]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_make_rendering_panic(text: Vec<u8>, head in "(frontend a\n|peers p\n|global\n)?", answers in answers()) {
        let _ = render(FILE, &[head.as_bytes(), &text].concat(), variables(), &answers);
    }

    #[test]
    fn only_lines_with_addresses_change_and_none_moves(
        lines in prop::collection::vec(line(), 0..14),
        end: bool,
        answers in answers(),
    ) {
        let text = lines.join("\n") + if end { "\n" } else { "" };
        let Ok(rendering) = render(FILE, text.as_bytes(), variables(), &answers) else { return Ok(()) };
        let copy = &rendering.files[0].text;
        let claimed: BTreeSet<usize> = rendering
            .bindings
            .iter()
            .flat_map(|binding| binding.also.iter().chain([&binding.place]))
            .map(|place| place.line)
            .collect();
        let before: Vec<_> = reader::lines(text.as_bytes()).map(|r| &text.as_bytes()[r]).collect();
        let after: Vec<_> = reader::lines(copy).map(|r| &copy[r]).collect();
        prop_assert_eq!(before.len(), after.len());
        for (index, (before, after)) in before.iter().zip(&after).enumerate() {
            let word = before.trim_ascii_start();
            let ours = ["default-path", "resetenv", "log-tag"];
            let ours = ours.iter().any(|keyword| word.starts_with(keyword.as_bytes()));
            let is_claimed = claimed.contains(&(index + 1));
            prop_assert!(before == after || ours || is_claimed, "line {}", index + 1);
            prop_assert!(before != after || !is_claimed, "line {}", index + 1);
        }

        // The variables cover every binding once, in order.
        let covered: Vec<usize> = rendering.variables.iter().flat_map(|v| v.bindings.clone()).collect();
        prop_assert_eq!(covered, (0..rendering.bindings.len()).collect::<Vec<_>>());

        // Read again, with its variables set, the copy binds nothing but descriptors.
        let numbers: Vec<i32> = (100..).take(rendering.bindings.len()).collect();
        let mut environment = variables();
        for (name, value) in rendering.environment(&numbers) {
            environment.insert(name.into_bytes(), value.into_bytes());
        }
        let again = render(FILE, copy, environment, &answers).expect("the copy of a good configuration is good");
        prop_assert_eq!(again.bindings, vec![]);
    }
}

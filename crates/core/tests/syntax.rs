//! Properties of the address syntax, under arbitrary and mutated input.

#![allow(missing_docs)]

use std::sync::Arc;

use bindonce_core::address::Address;
use bindonce_core::listener::{ListenSpec, Listener, Options, Wanted};
use proptest::option;
use proptest::prelude::*;

fn ip() -> impl Strategy<Value = std::net::IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(Into::into),
        any::<[u8; 16]>().prop_map(Into::into),
        Just("0.0.0.0".parse().expect("ip")),
        Just("::".parse().expect("ip")),
        any::<[u8; 4]>().prop_map(|ip| std::net::Ipv4Addr::from(ip).to_ipv6_mapped().into()),
    ]
}

fn address() -> impl Strategy<Value = Address> {
    prop_oneof![
        (ip(), any::<u16>()).prop_map(|at| Address::Tcp(at.into())),
        (ip(), any::<u16>()).prop_map(|at| Address::Udp(at.into())),
        (ip(), any::<u16>()).prop_map(|at| Address::Quic(at.into())),
        "(/[a-zA-Z0-9=@:_ .ä-]{1,12}){1,4}"
            .prop_filter_map("path", |path| Address::unix(&path).ok()),
        "[a-zA-Z0-9=@:_ ./ä-]{1,40}"
            .prop_filter_map("name", |name| Address::abstract_name(&name).ok()),
        "[a-z]{0,9}".prop_filter_map("name", |name| Address::unpadded_name(&name).ok()),
    ]
}

fn options() -> impl Strategy<Value = Options> {
    let word = "[a-zA-Z0-9_=-]{1,15}";
    (
        (option::of(1..=i32::MAX as u32), any::<bool>(), option::of(word), any::<bool>()),
        (any::<bool>(), option::of(word), option::of(0..=0o777_u32), option::of(word)),
        (option::of(word), any::<bool>(), any::<bool>()),
    )
        .prop_map(|(first, second, (group, blocking, mptcp))| {
            let (backlog, v6only, interface, transparent) = first;
            let (freebind, netns, mode, user) = second;
            Options {
                backlog,
                v6only,
                interface,
                transparent,
                freebind,
                blocking,
                mptcp,
                netns,
                mode,
                user,
                group,
            }
        })
}

/// Listeners that pass their own check, with and without a name and a range.
fn spec() -> impl Strategy<Value = ListenSpec> {
    let name = option::of("[A-Za-z_][A-Za-z0-9_.-]{0,40}");
    (name, address(), options(), 0..300_u16).prop_map(|(name, address, mut options, more)| {
        // Drop options that do not apply to the address, and keep the rest.
        let drop: [fn(&mut Options); 10] = [
            |o| o.v6only = false,
            |o| o.backlog = None,
            |o| o.interface = None,
            |o| o.transparent = false,
            |o| o.freebind = false,
            |o| o.mptcp = false,
            |o| o.netns = None,
            |o| o.mode = None,
            |o| o.user = None,
            |o| o.group = None,
        ];
        for drop in drop {
            if options.check(&address).is_err() {
                drop(&mut options);
            }
        }
        let name = name.map(|name| name.parse().expect("name"));
        let first = Listener::new(name, address, options).expect("checked");
        let mut spec = ListenSpec::from(first);
        if let Some(port) = spec.first.address.port().filter(|port| *port > 0) {
            spec.last_port = port.saturating_add(more);
        }
        spec
    })
}

/// A few edits of a text: characters with a meaning here inserted, others removed.
fn mutate(text: &str, edits: &[(usize, char, bool)]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for (at, new, insert) in edits {
        let at = at % (chars.len() + 1);
        if *insert || at == chars.len() {
            chars.insert(at, *new);
        } else {
            chars.remove(at);
        }
    }
    chars.into_iter().collect()
}

/// Every accepted text prints as a text that is accepted and equal.
fn accepted_is_canonical(text: &str) -> Result<(), TestCaseError> {
    if let Ok(wanted) = text.parse::<Wanted>() {
        let printed = wanted.to_string();
        let again = printed.parse::<Wanted>();
        prop_assert_eq!(again, Ok(wanted), "{} as {}", text, printed);
    }
    if let Ok(address) = text.parse::<Address>() {
        prop_assert_eq!(address.to_string().parse::<Address>(), Ok(address));
    }
    if let Ok(options) = text.parse::<Options>() {
        prop_assert_eq!(options.to_string().parse::<Options>(), Ok(options));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn what_is_printed_parses_to_the_same_value(spec in spec()) {
        let text = spec.to_string();
        prop_assert_eq!(text.parse::<ListenSpec>(), Ok(spec), "{}", text);
    }

    #[test]
    fn an_ipv4_address_reads_as_std_writes_it(ip: [u8; 4], port: u16) {
        let at = std::net::SocketAddr::from((ip, port));
        prop_assert_eq!(Address::Tcp(at).to_string(), at.to_string());
    }

    #[test]
    fn an_expanded_range_is_made_of_listeners_that_print_and_parse(spec in spec()) {
        prop_assert_eq!(spec.expand().count(), spec.count());
        for listener in spec.expand().take(3).chain(spec.expand().last()) {
            prop_assert_eq!(listener.name.is_some(), spec.first.name.is_some());
            prop_assert_eq!(listener.to_string().parse::<Listener>(), Ok(listener));
        }
    }

    #[test]
    fn a_key_prints_a_listener_with_that_key(spec in spec()) {
        let listener = Listener { name: None, ..Arc::unwrap_or_clone(spec.first) };
        let text = listener.key().to_string();
        let again: Listener = text.parse().expect("a key parses");
        prop_assert_eq!(again.key(), listener.key());
    }

    #[test]
    fn overlap_is_symmetric_and_only_a_free_port_does_not_overlap_itself(one in spec(), other in spec()) {
        let any_port = one.first.address.port() == Some(0);
        let (one, other) = (one.first.key(), other.first.key());
        prop_assert_eq!(one.overlaps(&other), other.overlaps(&one));
        prop_assert_eq!(one.overlaps(&one), !any_port);
    }

    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        accepted_is_canonical(&text)?;
    }

    #[test]
    fn no_text_of_its_own_characters_makes_it_panic(
        text in "[a-z0-9:@=,./*\\[\\] +-]{0,40}"
    ) {
        accepted_is_canonical(&text)?;
    }

    #[test]
    fn no_mutation_of_a_valid_text_makes_it_panic(
        spec in spec(),
        edits in prop::collection::vec(
            (any::<usize>(), "[:@=,./*\\[\\]0-9a-z\\x00ä+-]", any::<bool>()), 1..6),
    ) {
        let edits: Vec<_> = edits
            .iter()
            .filter_map(|(at, new, insert)| Some((*at, new.chars().next()?, *insert)))
            .collect();
        accepted_is_canonical(&mutate(&spec.to_string(), &edits))?;
    }
}

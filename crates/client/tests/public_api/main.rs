//! The public interface of the crate, line by line, as agreed: `listing.txt`. A program that links
//! `bindonce` sees no change unless that file changes, so a review sees each change as what it
//! means to such programs.
//!
//! A line that disappears or changes may break programs: then the next version is another minor one
//! (0.1 -> 0.2), or a major one from 1.0 on. A new line is an addition. To agree to either:
//!
//! ```sh
//! BINDONCE_BLESS=1 cargo test -p bindonce --all-features --test public_api
//! ```
//!
//! The listing is made from the sources, with `syn`, and not by cargo-public-api from rustdoc's
//! JSON. That needs a nightly compiler and differs with each compiler. For a type that `bindonce`
//! re-exports from core or wire it shows one line `pub use`, and none of the members on which
//! programs depend.

#![cfg(test)]
// The lint's exception for tests covers only functions marked #[test], not what they use.
#![allow(clippy::panic)]

mod lister;

use std::collections::BTreeSet;
use std::path::Path;

use lister::Listing;

/// Public types that never grow, and why.
const COMPLETE: [(&str, &str); 6] = [
    ("bindonce::Accepted", "a connection, or the word to stop: there is no third"),
    ("bindonce::ErrorCode", "a number"),
    ("bindonce::Ready", "the three things that were waited for"),
    ("bindonce::State", "the protocol has these three"),
    ("bindonce::Stopped", "for good, or in vain"),
    ("bindonce::Timestamp", "a number"),
];

#[test]
fn the_public_interface_is_as_agreed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/public_api/listing.txt");
    let found = Listing::of_this_crate().lines.into_iter().collect::<Vec<_>>().join("\n") + "\n";
    if std::env::var_os("BINDONCE_BLESS").is_some() {
        std::fs::write(&path, &found).expect("writing the listing");
    }
    let agreed = std::fs::read_to_string(&path).expect("the listing");
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (found, agreed) = (lines(&found), lines(&agreed));
    let gone: Vec<_> = agreed.difference(&found).map(|line| format!("- {line}")).collect();
    let came: Vec<_> = found.difference(&agreed).map(|line| format!("+ {line}")).collect();
    assert!(
        gone.is_empty() && came.is_empty(),
        "the public interface is another than {}:\n{}\n{}\n{}hint: if that is meant, run this test with \
         BINDONCE_BLESS=1 and commit the listing",
        path.display(),
        gone.join("\n"),
        came.join("\n"),
        if gone.is_empty() { "" } else { "what is gone or changed may break programs\n" },
    );
}

#[test]
fn what_can_grow_may_grow() {
    let listing = Listing::of_this_crate();
    let complete: BTreeSet<_> = COMPLETE.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(
        listing.closed, complete,
        "public types that every user may build or match in full: mark them #[non_exhaustive], or \
         say in COMPLETE why they never grow"
    );
}

#[test]
fn what_is_mentioned_can_be_named() {
    let listing = Listing::of_this_crate();
    // These names mean types of serde_json and hyper.
    let theirs = |name: &&String| ["Value", "Request"].contains(&name.as_str());
    let missing = listing.mentioned.difference(&listing.exported).filter(|name| !theirs(name));
    let missing: Vec<_> = missing.collect();
    assert!(missing.is_empty(), "public items mention types that a user cannot name: {missing:?}");
    let unseen: Vec<_> = listing.elsewhere.intersection(&listing.exported).collect();
    assert!(unseen.is_empty(), "not listed: `impl` blocks apart from their types: {unseen:?}");
}

#[test]
fn handles_go_from_thread_to_thread() {
    fn goes<T: Send + Sync + 'static>() {}
    goes::<bindonce::Acceptor<std::net::TcpListener>>();
    #[cfg(feature = "hyper")]
    goes::<bindonce::hyper::Connections>();
    goes::<bindonce::Client>();
    goes::<bindonce::Error>();
    goes::<bindonce::Follower>();
    goes::<bindonce::Generation>();
    goes::<bindonce::Lease>();
    goes::<bindonce::StatusResult>();
}

#[cfg(feature = "tokio")]
#[test]
fn so_do_those_for_tokio_and_what_they_await() {
    fn goes<T: Send>(_: &T) {}
    fn all(
        client: &mut bindonce::aio::Client,
        generation: &mut bindonce::aio::Generation,
        claims: &[bindonce::Claim],
    ) {
        goes(client);
        goes(generation);
        goes(&client.claim(claims));
        goes(&client.status());
        goes(&generation.claim(claims));
        goes(&generation.ready());
        goes(&generation.retired());
        goes(&generation.stopped());
    }
    let _ = all;
}

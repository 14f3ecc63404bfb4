//! The client against a server that lies about descriptors and bytes: every lie is an error, and no
//! descriptor outlives it.
//!
//! One test function, because it counts the descriptors of the whole process.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use bindonce::{Client, Error, ErrorCode};
use bindonce_fd::batch::Transmission;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// One sendmsg(2) of the server: a text, and how many descriptors go with it.
type Message = (String, usize);

/// How the server's script ends for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Leases(usize),
    Refused,
    Descriptors,
    Protocol,
    Closed,
    TimedOut,
    Other,
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

fn listeners(count: usize) -> String {
    let listeners: Vec<_> = (0..count)
        .map(|n| {
            format!(r#"{{"name":"n{n}","address":"a","bound":"b","created":true,"inode":{n}}}"#)
        })
        .collect();
    format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"listeners":[{}]}}}}"#, listeners.join(","))
        + "\n"
}

/// A correct reply, message by message.
fn correct(count: usize) -> Vec<Message> {
    let mut reply = Transmission::new(listeners(count).into_bytes(), count);
    let mut messages = Vec::new();
    while let Some((bytes, batch)) = reply.next() {
        messages.push((String::from_utf8_lossy(bytes).into_owned(), batch.len()));
        let all = messages.last().map_or(0, |(text, _)| text.len());
        reply.advance(all);
    }
    messages
}

/// Plays the server: reads the request, sends the script, and hangs up or stays.
fn play(script: &[Message], hang_up: bool) -> (UnixStream, thread::JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let script = script.to_vec();
    let cargo = std::fs::File::open("/dev/null").expect("open");
    let server = thread::spawn(move || {
        let mut request = [0; 4096];
        let _ = (&theirs).read(&mut request).expect("request");
        for (text, count) in script {
            let fds = vec![cargo.as_fd(); count];
            let mut rest = text.as_bytes();
            let mut fds = &fds[..];
            while !rest.is_empty() {
                let Ok(sent) = bindonce_fd::send(&theirs, rest, fds) else {
                    return;
                };
                (rest, fds) = (&rest[sent..], &[]);
            }
        }
        if !hang_up {
            // Until the client has given up and closed its side.
            let _ = (&theirs).read(&mut request);
        }
    });
    (ours, server)
}

fn claim(script: &[Message], hang_up: bool) -> Result<usize, Error> {
    let (stream, server) = play(script, hang_up);
    let outcome = (|| {
        let mut client = Client::from_stream(stream)?;
        client.set_timeout(Duration::from_millis(if hang_up { 10_000 } else { 40 }))?;
        let outcome = client.claim(&["web=:80".into()]).map(|leases| leases.len());
        match &outcome {
            Ok(_) | Err(Error::Refused(_)) => {}
            Err(_) => {
                let again = client.ping().expect_err("the connection must not be used again");
                assert!(matches!(again, Error::Interrupted), "{again:?}");
            }
        }
        outcome
    })();
    server.join().expect("server");
    outcome
}

#[cfg(feature = "tokio")]
fn claim_async(script: &[Message], hang_up: bool) -> Result<usize, Error> {
    let (stream, server) = play(script, hang_up);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("rt");
    let outcome = runtime.block_on(async {
        let mut client = bindonce::aio::Client::from_stream(stream)?;
        client.set_timeout(Duration::from_millis(if hang_up { 10_000 } else { 40 }));
        client.claim(&["web=:80".into()]).await.map(|leases| leases.len())
    });
    drop(runtime);
    server.join().expect("server");
    outcome
}

#[cfg(not(feature = "tokio"))]
use claim as claim_async;

fn ending(outcome: &Result<usize, Error>) -> Expect {
    match outcome {
        Ok(count) => Expect::Leases(*count),
        Err(Error::Refused(_)) => Expect::Refused,
        Err(Error::Descriptors { .. }) => Expect::Descriptors,
        Err(Error::Protocol(_)) => Expect::Protocol,
        Err(Error::Closed { .. }) => Expect::Closed,
        Err(Error::TimedOut { .. }) => Expect::TimedOut,
        Err(_) => Expect::Other,
    }
}

fn check(script: &[Message], hang_up: bool, expected: Expect) {
    let before = open_descriptors();
    let outcome = claim(script, hang_up);
    assert_eq!(ending(&outcome), expected, "{script:.80?}: {outcome:?}");
    assert_eq!(open_descriptors(), before, "a descriptor leaked after {script:.80?}");
    let outcome = claim_async(script, hang_up);
    assert_eq!(ending(&outcome), expected, "async: {script:.80?}: {outcome:?}");
    assert_eq!(open_descriptors(), before, "a descriptor leaked, async, after {script:.80?}");
}

fn message(text: &str, count: usize) -> Message {
    (text.to_owned(), count)
}

#[test]
fn every_lie_is_an_error_and_nothing_leaks() {
    // The first runtime of a process opens two descriptors for signals, for good.
    claim_async(&correct(1), true).expect("a correct reply");
    for count in [1, 2, 253, 254, 600] {
        check(&correct(count), true, Expect::Leases(count));
    }
    let error = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32003,"message":"held"}}"#;
    let nameless = r#"{"id":null,"error":{"code":-32700,"message":"not JSON"}}"#;
    let cases = [
        (vec![message(&format!("{error}\n"), 0)], Expect::Refused),
        (vec![message(&format!("{nameless}\n"), 0)], Expect::Refused),
        (vec![message(&format!("{error}\n"), 1)], Expect::Descriptors),
        (vec![message(&listeners(2), 1)], Expect::Descriptors),
        (vec![message(&listeners(2), 3)], Expect::Descriptors),
        (vec![message(&listeners(0), 1)], Expect::Descriptors),
        (vec![message(&listeners(300), 252)], Expect::Descriptors),
        (vec![message(&listeners(300), 253), message(" ", 46)], Expect::Descriptors),
        (vec![message(&listeners(300), 253), message(" ", 48)], Expect::Descriptors),
        (vec![message(&listeners(300), 253), message(" ", 0)], Expect::Descriptors),
        (vec![message("{", 253), message(" ", 253)], Expect::Descriptors),
        (vec![message("nonsense\n", 5)], Expect::Protocol),
        (vec![message("{\"id\":1}\n", 1)], Expect::Protocol),
        (vec![message("{\"id\":1,\"result\":{}}\n", 1)], Expect::Protocol),
        (vec![message("{\"id\":2,\"result\":{\"listeners\":[]}}\n", 1)], Expect::Protocol),
        (vec![message("{\"id\":null,\"result\":{\"listeners\":[]}}\n", 1)], Expect::Protocol),
        (vec![message("[1]\n", 1)], Expect::Protocol),
        (vec![message(&(listeners(1) + "{}"), 1)], Expect::Protocol),
        (vec![message(&(listeners(1) + "\n"), 1)], Expect::Protocol),
    ];
    for (script, expected) in cases {
        check(&script, true, expected);
    }
    let half = &listeners(1)[..40];
    check(&[message(half, 1)], true, Expect::Closed);
    check(&[message(half, 1)], false, Expect::TimedOut);
    check(&[message(listeners(1).trim_end(), 1)], false, Expect::TimedOut);
    check(&[message(&listeners(300), 253)], true, Expect::Closed);
    check(&[message(&listeners(300), 253)], false, Expect::TimedOut);
    check(&[], true, Expect::Closed);

    a_reply_in_many_pieces_is_one_reply();
    any_script_ends_without_a_leak();
    a_hang_up_after_a_reason_tells_the_reason();
    truncation_is_an_error();
}

/// Splitting the text changes nothing, as long as the descriptors come first.
fn a_reply_in_many_pieces_is_one_reply() {
    for size in [1, 7, 50] {
        let text = listeners(3);
        let pieces = text.as_bytes().chunks(size).enumerate();
        let script: Vec<Message> = pieces
            .map(|(n, piece)| {
                message(std::str::from_utf8(piece).expect("ASCII"), if n == 0 { 3 } else { 0 })
            })
            .collect();
        check(&script, true, Expect::Leases(3));
    }
}

/// Whatever a server sends, the client ends in time and closes the descriptors that came.
fn any_script_ends_without_a_leak() {
    let text = prop_oneof![
        (0usize..300).prop_map(listeners),
        (0usize..3).prop_map(|count| listeners(count).trim_end().to_owned()),
        Just(" ".to_owned()),
        Just("\n".to_owned()),
        "[{}a\":, \n]{1,20}",
    ];
    let scripts = prop::collection::vec((text, 0usize..=253), 0..4);
    let mut runner = TestRunner::new(ProptestConfig::with_cases(200));
    runner
        .run(&scripts, |script| {
            let before = open_descriptors();
            let _ = claim(&script, true);
            let _ = claim_async(&script, true);
            prop_assert_eq!(open_descriptors(), before);
            Ok(())
        })
        .expect("property");
}

/// A server may refuse a client and hang up before it has read any request.
fn a_hang_up_after_a_reason_tells_the_reason() {
    let (ours, mut theirs) = UnixStream::pair().expect("pair");
    theirs
        .write_all(b"{\"id\":null,\"error\":{\"code\":-32002,\"message\":\"denied\"}}\n")
        .expect("write");
    drop(theirs);
    let mut client = Client::from_stream(ours).expect("client");
    let error = client.ping().expect_err("refused");
    assert_eq!(error.refusal().expect("refusal").code, ErrorCode::DENIED);
}

/// If this process can open no more files, the client gets an error and keeps no descriptor.
fn truncation_is_an_error() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let before = open_descriptors();
    let limit = getrlimit(Resource::Nofile);
    // Room for the connection, not for all that comes.
    let lowered = Rlimit { current: Some(before as u64 + 20), ..limit };
    setrlimit(Resource::Nofile, lowered).expect("lower the limit");
    let outcome = claim(&correct(100), true);
    assert!(matches!(outcome, Err(Error::Truncated)), "{outcome:?}");
    let outcome = claim_async(&correct(100), true);
    assert!(matches!(outcome, Err(Error::Truncated)), "{outcome:?}");
    setrlimit(Resource::Nofile, limit).expect("restore the limit");
    assert_eq!(open_descriptors(), before);
}

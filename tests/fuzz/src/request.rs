//! A client's stream of requests, and the descriptors that answer them.

use bindonce_core::listener::Wanted;
use bindonce_fd::MAX_FDS;
use bindonce_fd::batch::Transmission;
use bindonce_wire::call::Call;
use bindonce_wire::framing::{Frame, Scanner, Text};
use bindonce_wire::message::{self, Reply, Request};
use bindonce_wire::params::Target;
use serde_json::Value;

/// So small that it matters for what a fuzzer writes.
const CAP: usize = 512;

/// Reads a stream as a broker does: in pieces whose size is the first byte. The frames must be
/// those of the stream in one piece, every one within the cap, and none may follow one that is malformed;
/// each is then decoded and answered.
pub(crate) fn request(data: &[u8]) {
    let Some((size, stream)) = data.split_first() else { return };
    let frames = scan(stream, usize::MAX);
    assert_eq!(scan(stream, usize::from(*size).max(1)), frames, "in pieces of {size}");
    let lost = frames.iter().position(Frame::ends_connection);
    assert!(lost.is_none_or(|lost| lost + 1 == frames.len()), "a frame after the last");
    for frame in frames {
        if let Frame::Request(text) = frame {
            answer(&text);
        }
    }
}

fn scan(stream: &[u8], size: usize) -> Vec<Frame> {
    let mut scanner = Scanner::new(CAP);
    let mut frames = Vec::new();
    for mut piece in stream.chunks(size) {
        while let Some(frame) = scanner.next(&mut piece) {
            frames.push(frame);
        }
        assert!(piece.is_empty(), "all of a piece is taken");
    }
    frames
}

fn answer(text: &Text) {
    assert!(text.len() <= CAP, "a request over the cap was held");
    let request = match Request::decode(text) {
        Ok(request) => request,
        Err(rejected) => return refuse(&message::encode_error(&rejected.id, &rejected.error)),
    };
    let call = match Call::decode(&request) {
        Ok(call) => call,
        Err(error) => return refuse(&message::encode_error(&request.id, &error)),
    };
    assert!(serde_json::from_slice::<Value>(text).is_ok(), "a call that is no JSON");
    let descriptors = match &call {
        Call::Bind(elements) => elements.iter().map(|bind| descriptors(&bind.target)).sum(),
        _ => 0,
    };
    let reply = message::encode_result(&request.id, &descriptors).expect("a number");
    assert_eq!(Reply::<usize>::decode(&reply).expect("a reply").id, request.id);
    transmit(&reply, descriptors, text);
}

/// An error is one line that a client reads as an error.
fn refuse(line: &[u8]) {
    assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
    assert!(Reply::<Value>::decode(line).expect("a reply").outcome.is_err());
}

/// How many descriptors a claim is answered with.
fn descriptors(target: &Target) -> usize {
    match target {
        Target::Listen { listen } => match listen.parse() {
            Ok(Wanted::Listen(spec)) => spec.count(),
            Ok(Wanted::Named(_)) => 1,
            Err(_) => 0,
        },
        Target::Tcp { .. } | Target::Name { .. } => 1,
    }
}

/// Sends a reply to a peer that takes as many bytes at a time as `appetite` says. Every byte of the
/// text goes out once, and every descriptor once, in order, on a byte of its own batch.
fn transmit(text: &[u8], descriptors: usize, appetite: &[u8]) {
    let mut transmission = Transmission::new(text.to_vec(), descriptors);
    let (mut bytes, mut sent) = (Vec::new(), 0);
    let mut appetite = appetite.iter().cycle();
    while let Some((next, batch)) = transmission.next() {
        assert!(!next.is_empty() && batch.len() <= MAX_FDS);
        assert_eq!(batch.start, sent, "descriptors go in order");
        let count = appetite.next().map_or(1, |byte| usize::from(byte % 32) + 1).min(next.len());
        bytes.extend_from_slice(next.get(..count).unwrap_or_default());
        sent = batch.end;
        transmission.advance(count);
        assert_eq!(transmission.descriptors_sent(), sent);
    }
    assert_eq!(sent, descriptors);
    let (reply, spaces) = bytes.split_at(text.len());
    assert_eq!(reply, text);
    assert_eq!(spaces.len(), descriptors.div_ceil(MAX_FDS).saturating_sub(1));
    assert!(spaces.iter().all(|byte| *byte == b' '));
}

//! The reader against valid, broken and hostile streams. Each property is
//! stated in the module documentation of `framing` or in docs/protocol.md.

use bindonce_wire::framing::{Frame, Reason, Scanner};
use proptest::prelude::*;
use serde_json::{Value, json};

const CAP: usize = 4096;

/// Reads a stream that comes in pieces of the given sizes, over and over.
fn scan(stream: &[u8], cap: usize, pieces: &[usize]) -> Vec<Frame> {
    let mut scanner = Scanner::new(cap);
    let mut frames = Vec::new();
    let (mut rest, mut sizes) = (stream, pieces.iter().cycle());
    while !rest.is_empty() {
        let size = (*sizes.next().unwrap_or(&1)).clamp(1, rest.len());
        let (mut piece, tail) = rest.split_at(size);
        while let Some(frame) = scanner.next(&mut piece) {
            if let Frame::Request(text) = &frame {
                assert!(text.len() <= cap, "a request over the cap was held");
            }
            frames.push(frame);
        }
        assert!(piece.is_empty());
        rest = tail;
    }
    frames
}

fn whole(stream: &[u8]) -> Vec<Frame> {
    scan(stream, CAP, &[usize::MAX])
}

fn request(text: &str) -> Frame {
    Frame::Request(text.as_bytes().to_vec())
}

fn malformed(reason: Reason, at: u64) -> Frame {
    Frame::Malformed { reason, at }
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_filter("JSON has no other", |f| f.is_finite()).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "[{}\\[\\]\"\\\\,: \n]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// The text of an object or array, dense or spread over lines.
fn top_level() -> impl Strategy<Value = String> {
    let object = prop::collection::btree_map(any::<String>(), value(), 0..4)
        .prop_map(|members| Value::Object(members.into_iter().collect()));
    let array = prop::collection::vec(value(), 0..4).prop_map(Value::from);
    (prop_oneof![3 => object, 1 => array], any::<bool>())
        .prop_map(|(value, pretty)| if pretty { format!("{value:#}") } else { value.to_string() })
}

/// One line that is not JSON and whose mistake lies within the line.
fn bad_line() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        r#"{"a":tru}"#,
        r#"{"a":}"#,
        r#"{"a":[1,2}"#,
        r#"{"a":[1,2}]}"#,
        r#"{'a':1}"#,
        r#"{a:1}"#,
        r#"{"a" 1}"#,
        r#"{"a":01}"#,
        r#"{"a":1.}"#,
        r#"{"a":"\x"}"#,
        r#"{"a":"\ud800"}"#,
        r#"{"a":"unterminated"#,
        r#"{"a":[{"b":x},{"c":1}]}"#,
        r#"{"a": oops "}" }"#,
        r#"[1,{"a":x},{"b":1}]"#,
        "hello",
        "42",
        "null",
        r#""text""#,
        "}",
        "]]",
        "{}}",
        "GET / HTTP/1.1\r",
        "{\"a\":\u{1}}",
        "]{]",
    ])
    .prop_map(str::to_owned)
}

/// Objects and arrays as an earlier line of the stream might leave them.
fn nested(depth: usize) -> String {
    format!("{{\"a\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1))
}

/// Whether serde_json parses the bytes as an object or array, within the depth
/// that is allowed here. It does not say of a text with a number that is too large for a
/// double: there it stops, which is no matter of grammar.
fn serde_accepts(bytes: &[u8]) -> Option<bool> {
    fn depth(value: &Value) -> usize {
        match value {
            Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
            Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
            _ => 0,
        }
    }
    match serde_json::from_slice::<Value>(bytes) {
        Ok(value) => Some((1..=64).contains(&depth(&value))),
        Err(error) if error.to_string().starts_with("number out of range") => None,
        Err(_) => Some(false),
    }
}

/// Whether the reader takes the bytes, up to white space, as exactly one request.
fn scanner_accepts(bytes: &[u8]) -> bool {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    let start = bytes.iter().position(|b| !blank(b)).unwrap_or(bytes.len());
    let end = bytes.iter().rposition(|b| !blank(b)).map_or(start, |last| last + 1);
    scan(bytes, usize::MAX, &[usize::MAX]) == [Frame::Request(bytes[start..end].to_vec())]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// However a stream of valid values is split or merged, the same frames come out.
    #[test]
    fn splitting_and_merging_change_nothing(
        texts in prop::collection::vec((top_level(), "[ \t\r\n]{0,3}"), 0..5),
        pieces in prop::collection::vec(1usize..40, 1..8),
    ) {
        let stream: String = texts.iter().flat_map(|(text, gap)| [text.as_str(), gap]).collect();
        let expected: Vec<Frame> = texts.iter().map(|(text, _)| request(text)).collect();
        let cap = usize::MAX;
        prop_assert_eq!(&scan(stream.as_bytes(), cap, &[usize::MAX]), &expected);
        prop_assert_eq!(&scan(stream.as_bytes(), cap, &[1]), &expected);
        prop_assert_eq!(&scan(stream.as_bytes(), cap, &pieces), &expected);
    }

    /// The same holds for bytes of any kind, with a cap so small that it matters.
    #[test]
    fn any_bytes_give_the_same_frames_however_split(
        stream in prop::collection::vec(
            prop_oneof![
                8 => prop::sample::select(b"{}[]\",:\\ \n\n0e-tu".to_vec()),
                1 => any::<u8>(),
            ],
            0..120,
        ),
        cap in 2usize..40,
        pieces in prop::collection::vec(1usize..20, 1..6),
    ) {
        let expected = scan(&stream, cap, &[usize::MAX]);
        prop_assert_eq!(&scan(&stream, cap, &[1]), &expected);
        prop_assert_eq!(&scan(&stream, cap, &pieces), &expected);
    }

    /// And for good and bad lines mixed.
    #[test]
    fn mixed_lines_give_the_same_frames_however_split(
        lines in prop::collection::vec(prop_oneof![bad_line(), top_level()], 0..6),
        cap in prop_oneof![Just(CAP), 4usize..60],
        pieces in prop::collection::vec(1usize..40, 1..6),
    ) {
        let stream = lines.join("\n");
        let expected = scan(stream.as_bytes(), cap, &[usize::MAX]);
        prop_assert_eq!(&scan(stream.as_bytes(), cap, &[1]), &expected);
        prop_assert_eq!(&scan(stream.as_bytes(), cap, &pieces), &expected);
    }

    /// What serde_json takes is what the reader takes.
    #[test]
    fn agrees_with_serde_json_on_arbitrary_text(
        bytes in prop::collection::vec(
            prop_oneof![
                6 => prop::sample::select(b"{}[]\",:\\u0123456789.eE+-tfn \ntruefalsnul".to_vec()),
                1 => any::<u8>(),
            ],
            0..24,
        ),
    ) {
        for (open, close) in [(&b"{"[..], &b"}"[..]), (b"[", b"]"), (b"[\"", b"\"]"), (b"", b"")] {
            let text = [open, &bytes, close].concat();
            let expected = serde_accepts(&text).unwrap_or_else(|| scanner_accepts(&text));
            prop_assert_eq!(scanner_accepts(&text), expected, "{:?}", String::from_utf8_lossy(&text));
        }
    }

    /// The same, for valid text with a few bytes changed, removed or added.
    #[test]
    fn agrees_with_serde_json_on_mutated_text(
        text in top_level(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0u8..3, any::<u8>()), 1..4),
    ) {
        let mut bytes = text.into_bytes();
        for (place, kind, byte) in edits {
            let at = place.index(bytes.len() + 1);
            match kind {
                0 => bytes.insert(at, byte),
                1 if at < bytes.len() => bytes[at] = byte,
                _ if at < bytes.len() => { bytes.remove(at); }
                _ => {}
            }
        }
        let expected = serde_accepts(&bytes).unwrap_or_else(|| scanner_accepts(&bytes));
        prop_assert_eq!(scanner_accepts(&bytes), expected, "{:?}", String::from_utf8_lossy(&bytes));
    }

    /// A bad line costs one error, and every good request around it is seen.
    #[test]
    fn a_bad_line_costs_one_error_and_nothing_else(
        lines in prop::collection::vec(prop_oneof![
            bad_line().prop_map(|line| (line, true)),
            any::<u32>().prop_map(|id| (json!({"jsonrpc": "2.0", "method": "ping", "id": id}).to_string(), false)),
        ], 1..8),
        pieces in prop::collection::vec(1usize..40, 1..6),
    ) {
        let stream: String = lines.iter().flat_map(|(line, _)| [line, "\n"]).collect();
        let frames = scan(stream.as_bytes(), CAP, &pieces);
        let mut frames = frames.iter();
        for (line, bad) in &lines {
            if line == "{}}" {
                prop_assert_eq!(frames.next(), Some(&request("{}")));
            }
            let frame = frames.next();
            if *bad {
                prop_assert!(matches!(frame, Some(Frame::Malformed { .. })), "{line}: {frame:?}");
            } else {
                prop_assert_eq!(frame, Some(&request(line)));
            }
            if line == "]{]" {
                let second = frames.next();
                prop_assert!(matches!(second, Some(Frame::Malformed { .. })), "{second:?}");
            }
        }
        prop_assert_eq!(frames.next(), None);
    }

    /// A request over the cap costs one error, whatever is in it.
    #[test]
    fn a_request_over_the_cap_costs_one_error(
        filler in "[a-z{}\\[\\],:]{60,200}",
        lines in any::<bool>(),
        pieces in prop::collection::vec(1usize..40, 1..6),
    ) {
        let gap = if lines { "\n" } else { "" };
        let good = r#"{"id":1}"#;
        let stream = format!(r#"{good}{{"a":{gap}"{filler}"{gap}}}{good}{gap}{good}"#);
        prop_assert_eq!(
            scan(stream.as_bytes(), 50, &pieces),
            [request(good), Frame::TooLarge, request(good), request(good)],
        );
    }
}

#[test]
fn a_bad_request_tells_its_place_and_its_neighbours_on_the_line_are_seen() {
    assert_eq!(
        whole(br#" {"a":tru}{"id":1} {"id":2}"#),
        [malformed(Reason::InvalidLiteral, 8), request(r#"{"id":1}"#), request(r#"{"id":2}"#)],
    );
    assert_eq!(
        whole(b"{} xyz {\"id\":1}\n"),
        [request("{}"), malformed(Reason::ExpectedObject, 0), request(r#"{"id":1}"#)],
    );
}

#[test]
fn a_client_that_begins_anew_on_the_next_line_is_heard() {
    for cut in [r#"{"a":1"#, r#"{"a":[1"#, r#"{"a":"x""#, r#"{"a""#, r#"{"#, r#"{"a":true,"#] {
        let stream = format!("{cut}\n  {{\"id\":1}}\n{{\"id\":2}}");
        let frames = whole(stream.as_bytes());
        assert!(matches!(frames[0], Frame::Malformed { .. }), "{cut}: {frames:?}");
        assert_eq!(frames[1..], [request(r#"{"id":1}"#), request(r#"{"id":2}"#)], "{cut}");
    }
    // The mistake is in the middle of the new line: the line is read again.
    assert_eq!(
        whole(b"[1,\n{\"id\":1} {\"id\":2}\n"),
        [malformed(Reason::ExpectedCommaOrEnd, 13), request(r#"{"id":1}"#), request(r#"{"id":2}"#),],
    );
}

#[test]
fn the_cut_off_request_that_was_too_large_hides_nothing_either() {
    let filler = "1,".repeat(100);
    let stream =
        format!("{{\"a\":[{filler}1\n{{\"id\":1}}\n[{filler}\n{{\"id\":2}} {{\"id\":3}}\n");
    for pieces in [1, 7, usize::MAX] {
        assert_eq!(
            scan(stream.as_bytes(), 60, &[pieces]),
            [
                Frame::TooLarge,
                request(r#"{"id":1}"#),
                Frame::TooLarge,
                request(r#"{"id":2}"#),
                request(r#"{"id":3}"#),
            ],
        );
    }
}

#[test]
fn a_bad_request_over_several_lines_costs_one_error() {
    let stream =
        b"{\n  \"a\": oops,\n  \"b\": {\"c\": 1},\n  \"d\": [\n    1\n  ]\n}\n{\"id\":1}\n";
    assert_eq!(whole(stream), [malformed(Reason::ExpectedValue, 9), request(r#"{"id":1}"#)]);
}

#[test]
fn depth_is_limited_to_64() {
    let deepest = nested(64);
    assert_eq!(whole(deepest.as_bytes()), [request(&deepest)]);
    let stream = format!("{}\n{{\"id\":1}}", nested(65));
    assert_eq!(whole(stream.as_bytes()), [malformed(Reason::TooDeep, 68), request(r#"{"id":1}"#)]);
}

#[test]
fn a_request_of_exactly_the_cap_is_read() {
    let text = format!(r#"{{"a":"{}"}}"#, "x".repeat(CAP - 8));
    assert_eq!(text.len(), CAP);
    assert_eq!(whole(text.as_bytes()), [request(&text)]);
    let longer = format!(r#"{{"a":"{}"}}{{}}"#, "x".repeat(CAP - 7));
    assert_eq!(whole(longer.as_bytes()), [Frame::TooLarge, request("{}")]);
}

#[test]
fn another_reader_goes_on_from_what_is_unread() {
    let stream = br#"{"a":1} {"b":[2,"\u00e9"]}
        {"c":{}}"#;
    let expected = whole(stream);
    for split in 0..=stream.len() {
        let (mut first, mut second) = (Scanner::new(CAP), Scanner::new(CAP));
        let mut frames = Vec::new();
        let mut read = |scanner: &mut Scanner, mut input: &[u8]| {
            while let Some(frame) = scanner.next(&mut input) {
                frames.push(frame);
            }
        };
        read(&mut first, &stream[..split]);
        read(&mut second, first.unread().expect("good so far"));
        read(&mut second, &stream[split..]);
        assert_eq!(frames, expected, "{split}");
    }
    for bad in ["{\"a\":x", "garbage", "{\"a\":\n{x"] {
        let mut scanner = Scanner::new(CAP);
        let mut input = bad.as_bytes();
        while scanner.next(&mut input).is_some() {}
        assert_eq!(scanner.unread(), None, "{bad}");
    }
}

#[test]
fn in_progress_means_inside_a_request() {
    let mut scanner = Scanner::new(CAP);
    for (piece, inside) in
        [(&b"  "[..], false), (b"{\"a\"", true), (b":1}", false), (b"x", false), (b"\n[", true)]
    {
        let mut piece = piece;
        while scanner.next(&mut piece).is_some() {}
        assert_eq!(scanner.in_progress(), inside);
    }
}

#[test]
fn a_hostile_stream_is_read_in_linear_time() {
    // Every line is put back once at most: 4 MB of short lines that each offend.
    let stream = "{\"a\":[1\n{\"b\":1} {\"c\":[\n".repeat(160_000);
    #[expect(clippy::disallowed_methods, reason = "the test measures")]
    let begun = std::time::Instant::now();
    let frames = scan(stream.as_bytes(), 1 << 20, &[65_536]);
    assert!(!frames.is_empty());
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}

//! The reader against valid, broken and hostile streams. Each property is stated in the module
//! documentation of `framing` or in docs/protocol.md.

use bindonce_wire::framing::{Frame, MAX_DEPTH, Reason, Scanner};
use bindonce_wire::message::Request;
use proptest::prelude::*;
use serde_json::{Value, json};

const CAP: usize = 4096;

/// Reads a stream that arrives in pieces of the given sizes, repeatedly.
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
    Frame::Request(text.as_bytes().to_vec().into())
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

/// Texts that are not JSON although their brackets and strings are balanced.
const BALANCED: [&str; 12] = [
    r#"{"a":tru}"#,
    r#"{"a":}"#,
    r#"{"a":[1,2,]}"#,
    "{'a':1}",
    r#"{"a" 1}"#,
    r#"{"a":01}"#,
    r#"{"a":1.}"#,
    r#"{"a":"\x"}"#,
    r#"{"a":"\ud800"}"#,
    "{\"a\":\u{1}}",
    r#"{"a": oops "}" }"#,
    "{\n  \"a\": oops,\n  \"b\": [\n    1\n  ]\n}",
];

/// Objects and arrays nested to this depth.
fn nested(depth: usize) -> String {
    format!("{{\"a\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1))
}

/// Whether serde_json parses the bytes as an object or array, within the allowed depth.
fn serde_accepts(bytes: &[u8]) -> bool {
    fn depth(value: &Value) -> usize {
        match value {
            Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
            Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
            _ => 0,
        }
    }
    let depth = serde_json::from_slice::<Value>(bytes).map_or(0, |value| depth(&value));
    (1..=MAX_DEPTH as usize).contains(&depth)
}

/// Whether the reader takes the bytes, up to white space, as exactly one request.
fn scanner_accepts(bytes: &[u8]) -> bool {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    let start = bytes.iter().position(|b| !blank(b)).unwrap_or(bytes.len());
    let end = bytes.iter().rposition(|b| !blank(b)).map_or(start, |last| last + 1);
    scan(bytes, usize::MAX, &[usize::MAX]) == [Frame::Request(bytes[start..end].to_vec().into())]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// A stream of valid values gives the same frames, however it is split or merged.
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

    /// The same holds for arbitrary bytes, with a cap small enough to matter. Nothing follows a
    /// malformed frame.
    #[test]
    fn any_bytes_give_the_same_frames_however_split(
        stream in prop::collection::vec(
            prop_oneof![
                8 => prop::sample::select(b"{}{}[]\",:\\ \n0e-tu".to_vec()),
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
        let lost = expected.iter().position(|frame| matches!(frame, Frame::Malformed { .. }));
        prop_assert!(lost.is_none_or(|lost| lost + 1 == expected.len()));
    }

    /// A text that serde_json reads as one value is one request for the reader.
    #[test]
    fn no_request_is_cut_where_serde_json_would_go_on(
        text in top_level(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0u8..3, any::<u8>()), 0..4),
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
        prop_assert!(
            scanner_accepts(&bytes) || !serde_accepts(&bytes),
            "{:?}", String::from_utf8_lossy(&bytes)
        );
    }

    /// A balanced text that is not JSON costs one error; its neighbours are read, even on its line.
    #[test]
    fn what_is_no_json_costs_its_neighbours_nothing(
        texts in prop::collection::vec(prop_oneof![
            prop::sample::select(BALANCED.to_vec()).prop_map(str::to_owned),
            any::<u32>().prop_map(|id| json!({"jsonrpc": "2.0", "method": "ping", "id": id}).to_string()),
        ], 1..8),
        gap in "[ \n]{0,1}",
        pieces in prop::collection::vec(1usize..40, 1..6),
    ) {
        let frames = scan(texts.join(&gap).as_bytes(), CAP, &pieces);
        let expected: Vec<_> = texts.iter().map(|text| request(text)).collect();
        prop_assert_eq!(&frames, &expected);
        for text in &texts {
            let bad = BALANCED.contains(&text.as_str());
            prop_assert_eq!(Request::decode(&text.as_str().into()).is_err(), bad, "{}", text);
        }
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
fn where_no_request_can_be_told_the_stream_ends() {
    use Reason::{ExpectedObject, LineEndInString, WrongBracket};
    for (text, reason, at) in [
        ("hello", ExpectedObject, 0),
        ("42", ExpectedObject, 0),
        ("}", ExpectedObject, 0),
        ("GET / HTTP/1.1\r\n\r\n", ExpectedObject, 0),
        (r#"{"a":[1,2}"#, WrongBracket, 9),
        ("{]", WrongBracket, 1),
        (r#"{"a":"unterminated"#, LineEndInString, 18),
        ("{\n\"a\n\":1}", LineEndInString, 4),
    ] {
        let stream = format!("{{}} {text}\n{{\"id\":1}}\n");
        let expected = [request("{}"), malformed(reason, at)];
        assert_eq!(whole(stream.as_bytes()), expected, "{text}");
    }
}

#[test]
fn depth_is_limited_to_64() {
    let deepest = nested(64);
    assert_eq!(whole(deepest.as_bytes()), [request(&deepest)]);
    let stream = format!("{}\n{{\"id\":1}}", nested(65));
    assert_eq!(whole(stream.as_bytes()), [malformed(Reason::TooDeep, 68)]);
    assert!(serde_json::from_str::<Value>(&deepest).is_ok(), "serde_json takes it too");
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
    for bad in ["{\"a\":]", "garbage", "{\"too\":\"large\"..."] {
        let mut scanner = Scanner::new(10);
        let mut input = bad.as_bytes();
        while scanner.next(&mut input).is_some() {}
        assert_eq!(scanner.unread(), None, "{bad}");
    }
}

#[test]
fn in_progress_means_inside_a_request() {
    let mut scanner = Scanner::new(CAP);
    for (piece, inside) in
        [(&b"  "[..], false), (b"{\"a\"", true), (b":1}", false), (b"\n[", true), (b"}", false)]
    {
        let mut piece = piece;
        while scanner.next(&mut piece).is_some() {}
        assert_eq!(scanner.in_progress(), inside);
    }
}

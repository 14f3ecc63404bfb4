//! Long requests are parsed in parts: otherwise one of a mebibyte would keep all other clients of a
//! server waiting for a millisecond, and one that is not JSON for three.

use bindonce_wire::MAX_REQUEST;
use bindonce_wire::call::{Call, Decoding};
use bindonce_wire::error::{ErrorCode, RpcError};
use bindonce_wire::framing::{Frame, Scanner, Text};
use bindonce_wire::message::{Id, Request};

const ELEMENT: &str = r#"{"listen":"127.0.0.1:9000"}"#;
const COUNT: usize = 30_000;

fn elements() -> String {
    vec![ELEMENT; COUNT].join(", ")
}

/// A text that arrives in pieces.
fn framed(text: &str) -> Text {
    let mut scanner = Scanner::new(MAX_REQUEST);
    let mut frames = text.as_bytes().chunks(1000).filter_map(|mut piece| scanner.next(&mut piece));
    let Some(Frame::Request(frame)) = frames.next() else { unreachable!("no request") };
    frame
}

/// Reads a request as a server does; returns how many elements each step read.
fn read(text: &str) -> Result<Vec<usize>, RpcError> {
    let frame = framed(text);
    let request = Request::decode(&frame).map_err(|rejected| rejected.error)?;
    let mut decoding = Decoding::new(&request)?;
    let mut steps = Vec::new();
    loop {
        let more = decoding.read(usize::MAX)?;
        steps.push(decoding.take_bind().len());
        if !more {
            return Ok(steps);
        }
    }
}

#[test]
fn no_step_parses_more_than_some_kibibytes() {
    let text = format!(r#"{{"id":7,"params" : [ {} ] ,"method":"bind"}}"#, elements());
    let steps = read(&text).expect("a call");
    assert_eq!(steps.iter().sum::<usize>(), COUNT);
    let longest = steps.iter().max().expect("steps") * (ELEMENT.len() + 2);
    assert!(longest < 17 * 1024, "{longest} bytes in one step");
    let frame = framed(&text);
    let request = Request::decode(&frame).expect("a request");
    assert_eq!((&request.id, request.method.as_str()), (&Id::from(7), "bind"));
    let Ok(Call::Bind(binds)) = Call::decode(&request) else { unreachable!("another call") };
    assert_eq!(binds.len(), COUNT);
    // A text that is already complete gives the same frame.
    assert_eq!(Text::from(text), frame);
}

/// The first step reads all members but `params`; each element is read when its turn comes.
#[test]
fn what_is_no_json_behind_many_elements_is_told_when_it_is_its_turn() {
    for (behind, reason) in [
        ("!, ]", "expected `,` and another element"),
        ("! 1]", "expected `,` and another element"),
        ("!}", "a bracket"),
        (", !x]", "expected value"),
        (", {!listen}]", "key must be a string"),
        (r#", {"listen":"\!x"}]"#, "invalid escape"),
        (", {\"listen\":\"\u{1}!\"}]", "control character"),
    ] {
        let text = format!(r#"{{"id":7,"method":"bind","params":[{}{behind}}}"#, elements());
        let at = text.find('!').expect("a mark");
        let text = text.replacen('!', "", 1);
        let mut scanner = Scanner::new(MAX_REQUEST);
        let frame = match scanner.next(&mut text.as_bytes()) {
            Some(Frame::Request(frame)) => frame,
            Some(Frame::Malformed { at: place, .. }) => {
                assert_eq!((place, reason), (at as u64, "a bracket"));
                continue;
            }
            other => unreachable!("{other:?}"),
        };
        assert!(Request::decode(&frame).is_ok(), "{behind}");
        let error = read(&text).expect_err(behind);
        assert_eq!(error.code, ErrorCode::PARSE, "{behind}: {error}");
        assert!(error.message.contains(reason), "{behind}: {error}");
        let told = error.message.trim_start_matches("not JSON at byte ").split(':').next();
        let told: usize = told.and_then(|place| place.parse().ok()).expect("a place");
        assert!(told.abs_diff(at) <= 1, "{behind}: {at} {error}");
    }
    // Bytes that are not text are refused in an element too.
    let mut text =
        format!(r#"{{"method":"bind","params":[{},{{"listen":"?"}}]}}"#, elements()).into_bytes();
    let at = text.iter().position(|byte| *byte == b'?').expect("a mark");
    text[at] = 0xff;
    let text = text.into();
    let request = Request::decode(&text).expect("a request, as far as it was read");
    assert_eq!(Call::decode(&request).expect_err("no text").code, ErrorCode::PARSE);
}

/// A character of several bytes may be at the end of a part of the text.
#[test]
fn a_part_of_the_text_ends_within_no_character() {
    for shift in 0..4 {
        let element = r#"{"listen":"unix@/run/€é"}"#;
        let spaces = " ".repeat(shift);
        let all = vec![element; 3000].join(",");
        let text = format!(r#"{{"method":"bind","params":[{spaces}{all}]}}"#);
        assert_eq!(read(&text).expect("a call").iter().sum::<usize>(), 3000);
        // Half of one is refused at its place.
        let at = text.rfind('€').expect("a character");
        let mut bytes = text.into_bytes();
        bytes.remove(at + 1);
        let text = bytes.into();
        let request = Request::decode(&text).expect("a request");
        let error = Call::decode(&request).expect_err("half a character");
        assert_eq!(error.code, ErrorCode::PARSE, "{error}");
        let place = error.message.trim_start_matches("not JSON at byte ").split(':').next();
        let place: usize = place.and_then(|place| place.parse().ok()).expect("a place");
        assert!((at..at + 16).contains(&place), "{at}: {error}");
    }
}

#[test]
fn one_long_element_or_member_is_refused_and_not_parsed() {
    let long = "x".repeat(100_000);
    let spaces = " ".repeat(100_000);
    for params in [
        format!(r#"{ELEMENT},{{"listen":"{long}"}}"#),
        format!(r#"{ELEMENT},{spaces}{ELEMENT}"#),
        format!(r#"{ELEMENT}{spaces},{ELEMENT}"#),
        format!(r#"{ELEMENT},{{"listen"{spaces}:"a"}}"#),
    ] {
        let error = read(&format!(r#"{{"method":"bind","params":[{params}]}}"#)).expect_err("long");
        assert_eq!(error.code, ErrorCode::INVALID_PARAMS, "{error}");
        let told = error.message.ends_with("]: longer than 16384 bytes, white space included");
        assert!(told && error.message.starts_with("params["), "{error}");
    }
    let many = vec!["7"; 50_000].join(",");
    for (text, code, message) in [
        // Only `params` may be a value in brackets.
        (
            format!(r#"{{"method":"bind","id":[{many}]}}"#),
            ErrorCode::INVALID_REQUEST,
            "`id` is neither",
        ),
        (
            format!(r#"{{"method":"bind","more":[{many}]}}"#),
            ErrorCode::INVALID_REQUEST,
            "unknown field",
        ),
        (
            format!(r#"{{"params":[1],"params":[{many}]}}"#),
            ErrorCode::INVALID_REQUEST,
            "duplicate field",
        ),
        (
            format!(r#"{{"method":"bind","params":[{many}],"id":"{long}"}}"#),
            ErrorCode::INVALID_REQUEST,
            "32768 bytes beside",
        ),
        (format!(r#"{{"method":"{long}"}}"#), ErrorCode::INVALID_REQUEST, "32768 bytes beside"),
        (
            format!(r#"{{"method":"bind",{spaces}"params":[]}}"#),
            ErrorCode::INVALID_REQUEST,
            "32768 bytes beside",
        ),
        (
            format!(r#"{{"method":"list","params":[{many}]}}"#),
            ErrorCode::INVALID_PARAMS,
            "takes no parameters",
        ),
        (
            format!(r#"{{"params":[{many}],"method":"list","id":!}}"#),
            ErrorCode::PARSE,
            "not JSON at byte 100033",
        ),
    ] {
        let error = read(&text).expect_err("refused");
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(message), "{error}");
    }
    let text = format!(r#"{{"method":"retire","params":[{many}]}}"#);
    let text = text.into();
    let request = Request::decode(&text).expect("a request");
    let error = request.params::<Vec<u64>>().expect_err("long");
    assert_eq!(error.code, ErrorCode::INVALID_PARAMS);
}

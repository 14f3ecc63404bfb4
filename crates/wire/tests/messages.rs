//! Requests, replies and parameters: which are accepted, which are refused, and that the refusal
//! names the mistake.

use bindonce_wire::call::{Call, Decoding};
use bindonce_wire::error::{ErrorCode, RpcError};
use bindonce_wire::framing::Text;
use bindonce_wire::message::{
    BindReply, Id, Notification, Reply, Request, Turn, encode_error, encode_request, encode_result,
};
use bindonce_wire::params::{Bind, Join, Joining, State, Target};
use bindonce_wire::result::{BindResult, Bound, ListenerInfo, PingResult};
use proptest::prelude::*;
use serde_json::{Value, json};

fn call(text: &str) -> Result<Call, RpcError> {
    let text = Text::from(text);
    let request = Request::decode(&text).map_err(|rejected| rejected.error)?;
    Call::decode(&request)
}

fn tcp(address: &str, port: u16, backlog: Option<u32>) -> Target {
    Target::Tcp { address: address.to_owned(), port, backlog }
}

#[test]
fn reads_what_multibinder_sends() {
    let text =
        r#"{"jsonrpc":"2.0","method":"bind","params":[{"address":"0.0.0.0","port":8000}]}"#.into();
    let request = Request::decode(&text).unwrap();
    assert_eq!(request.id, Id::Null);
    let bind = Bind { target: tcp("0.0.0.0", 8000, None), tentative: false, change: false };
    assert_eq!(Call::decode(&request), Ok(Call::Bind(vec![bind])));
}

#[test]
fn reads_every_form_of_bind() {
    let text = r#"{"method":"bind","params":[
        {"address":"127.0.0.1","port":"81","backlog":7},
        {"listen":"web=:80,backlog=4096","tentative":true},
        {"name":"web"}]}"#;
    let expected = vec![
        Bind { target: tcp("127.0.0.1", 81, Some(7)), tentative: false, change: false },
        Bind { tentative: true, ..Bind::listen("web=:80,backlog=4096") },
        Bind::name("web"),
    ];
    assert_eq!(call(text), Ok(Call::Bind(expected)));
}

#[test]
fn refusals_name_the_code_and_the_culprit() {
    let invalid = ErrorCode::INVALID_PARAMS;
    let cases = [
        (r#"{"method":"bind"}"#, invalid, "empty"),
        (r#"{"method":"bind","params":{}}"#, invalid, "expected an array as `params`"),
        (r#"{"method":"bind","params":[{}]}"#, invalid, "params[0]: expected either"),
        (
            r#"{"method":"bind","params":[{"adress":"x","port":1}]}"#,
            invalid,
            "params[0]: unknown field `adress`",
        ),
        (
            r#"{"method":"bind","params":[{"name":"a"},{"name":"a","name":"b"}]}"#,
            invalid,
            "params[1]: duplicate field `name`",
        ),
        (r#"{"method":"bind","params":[{"address":"x"}]}"#, invalid, "missing field `port`"),
        (r#"{"method":"bind","params":[{"address":"x","port":65536}]}"#, invalid, "65536"),
        (r#"{"method":"bind","params":[{"address":"x","port":-1}]}"#, invalid, "-1"),
        (r#"{"method":"bind","params":[{"address":"x","port":80.5}]}"#, invalid, "80.5"),
        (r#"{"method":"bind","params":[{"address":"x","port":"+80"}]}"#, invalid, "+80"),
        (r#"{"method":"bind","params":[{"address":"x","port":""}]}"#, invalid, "`port`"),
        (r#"{"method":"bind","params":[{"address":"x","port":1,"backlog":-5}]}"#, invalid, "-5"),
        (
            r#"{"method":"bind","params":[{"address":"x","port":1,"backlog":4294967296}]}"#,
            invalid,
            "4294967296",
        ),
        (
            r#"{"method":"bind","params":[{"listen":":80","name":"web"}]}"#,
            invalid,
            "expected either",
        ),
        (
            r#"{"method":"join","params":[{"service":"a b","generation":1,"state":"serving"}]}"#,
            invalid,
            "\"a b\" is not a name",
        ),
        (
            r#"{"method":"join","params":[{"service":"a","generation":1,"state":"sleeping"}]}"#,
            invalid,
            "sleeping",
        ),
        (
            r#"{"method":"join","params":[{"service":"a","generation":1,"state":"serving"},{"service":"a","generation":1,"state":"serving"}]}"#,
            invalid,
            "more than one",
        ),
        (r#"{"method":"release","params":[]}"#, invalid, "empty"),
        (r#"{"method":"release","params":[7]}"#, invalid, "params[0]"),
        (r#"{"method":"list","params":[1]}"#, invalid, "`list` takes no parameters"),
        (r#"{"method":"fly"}"#, ErrorCode::METHOD_NOT_FOUND, "\"fly\""),
        (r#"{"params":[]}"#, ErrorCode::INVALID_REQUEST, "missing field `method`"),
        (r#"{"method":"ping","parms":[]}"#, ErrorCode::INVALID_REQUEST, "unknown field `parms`"),
        (
            r#"{"method":"ping","method":"list"}"#,
            ErrorCode::INVALID_REQUEST,
            "duplicate field `method`",
        ),
        (r#"{"method":"ping","id":{}}"#, ErrorCode::INVALID_REQUEST, "`id`"),
        (r#"{"jsonrpc":"1.0","method":"ping"}"#, ErrorCode::INVALID_REQUEST, "\"1.0\""),
        (r#"[{"method":"ping"}]"#, ErrorCode::INVALID_REQUEST, "batch"),
        (r#"{"method":"ping","id":1e999}"#, ErrorCode::PARSE, "number out of range"),
    ];
    for (text, code, culprit) in cases {
        let error = call(text).expect_err(text);
        assert_eq!(error.code, code, "{text}: {error}");
        assert!(error.message.contains(culprit), "{text}: {error}");
        assert!(!error.message.contains("line 1"), "{text}: {error}");
        assert!(error.hint().is_some(), "{text}: {error}");
    }
}

#[test]
fn a_reply_that_is_written_listener_by_listener_is_the_same() {
    let bound = |number: u64| Bound {
        name: format!("web \"{number}\""),
        address: "127.0.0.1:0".to_owned(),
        bound: format!("127.0.0.1:{number}"),
        created: number == 1,
        inode: number,
    };
    for (id, count) in [(Id::from(7), 0), (Id::Null, 1), (Id::Text("a\"b".to_owned()), 3)] {
        let mut reply = BindReply::new(&id, 1).unwrap();
        let listeners: Vec<Bound> = (0..count).map(bound).collect();
        listeners.iter().for_each(|bound| reply.push(&bound.encode().unwrap()));
        assert_eq!(reply.finish(), encode_result(&id, &BindResult { listeners }).unwrap());
    }
}

#[test]
fn an_error_quotes_the_beginning_of_what_is_long() {
    let long = "x".repeat(100_000);
    for text in [
        format!(r#"{{"method":"{long}"}}"#),
        format!(r#"{{"method":"ping","{long}":1}}"#),
        format!(r#"{{"method":"ping","jsonrpc":"{long}"}}"#),
        format!(r#"{{"method":"list","params":"{long}"}}"#),
        format!(r#"{{"method":"bind","params":"{long}"}}"#),
        format!(r#"{{"method":"bind","params":[{{"listen":7,"{long}":1}}]}}"#),
        format!(
            r#"{{"method":"join","params":[{{"service":"{long}","generation":1,"state":"serving"}}]}}"#
        ),
        format!(
            r#"{{"method":"join","params":[{{"service":"a","generation":1,"state":"{long}"}}]}}"#
        ),
        format!(r#"{{"method":"release","params":[["{long}"]]}}"#),
    ] {
        let error = call(&text).expect_err("no request");
        let length = encode_error(&Id::Null, &error).len();
        assert!(length < 1500, "{length} bytes for {}", &text[..60]);
    }
    let name = long.parse::<bindonce_core::name::Name>().expect_err("too long");
    assert!(name.to_string().len() < 500);
}

#[test]
fn a_refused_request_keeps_its_id() {
    for (text, id) in [
        (r#"{"method":"ping","parms":[],"id":7}"#, json!(7)),
        (r#"{"id":"x","params":[]}"#, json!("x")),
        (r#"{"jsonrpc":"1.0","method":"ping","id":-1.5}"#, json!(-1.5)),
        (r#"{"method":"ping","id":[]}"#, json!(null)),
        (r#"{"method":"ping","id":1,"id":2}"#, json!(null)),
    ] {
        let rejected = Request::decode(&text.into()).expect_err(text);
        let reply: Value =
            serde_json::from_slice(&encode_error(&rejected.id, &rejected.error)).unwrap();
        assert_eq!(reply["id"], id, "{text}");
        assert!(reply["error"]["message"].is_string());
    }
}

#[test]
fn what_is_no_json_is_told_with_its_place_in_the_request() {
    for text in [
        r#"{"a":tru!}"#,
        r#"{"method":"ping",!}"#,
        "{\n\"method\":\n  !ping}",
        r#"{"id":1,"method":"ping","params":[1e40!0]}"#,
        "{\"method\":\"ping\",\n\"params\":[\n\"\\ud800!\"]}",
    ] {
        let at = text.find('!').expect("a mark");
        let error = call(&text.replacen('!', "", 1)).expect_err(text);
        assert_eq!(error.code, ErrorCode::PARSE, "{text}");
        let place = format!("not JSON at byte {at}: ");
        assert!(error.message.starts_with(&place), "{text}: {}", error.message);
    }
}

#[test]
fn methods_without_parameters_take_any_way_to_say_none() {
    for params in ["", r#","params":[]"#, r#","params":{}"#, r#","params":null"#] {
        for (method, expected) in
            [("list", Call::List), ("status", Call::Status), ("ping", Call::Ping)]
        {
            assert_eq!(call(&format!(r#"{{"method":"{method}"{params}}}"#)), Ok(expected));
        }
    }
}

#[test]
fn what_a_client_sends_is_what_a_server_reads() {
    let binds = vec![
        Bind { target: tcp("::1", 0, Some(3)), tentative: true, change: false },
        Bind::listen("web=:80"),
        Bind::name("web"),
    ];
    let text = encode_request(&Id::from(1), "bind", &binds).unwrap();
    let text = text.trim_ascii_end().into();
    let request = Request::decode(&text).unwrap();
    assert_eq!(request.id, Id::from(1));
    assert_eq!(Call::decode(&request), Ok(Call::Bind(binds)));

    let join = Join::new("haproxy".parse().unwrap(), 7, Some(1234), State::Draining);
    let text = encode_request(&Id::from(2), "join", &[&join]).unwrap();
    assert_eq!(call(std::str::from_utf8(&text).unwrap()), Ok(Call::Join(join.into())));

    let text =
        br#"{"method":"join","params":[{"service":"edge","state":"serving","handover":true}]}"#;
    let handover = Joining {
        service: "edge".parse().unwrap(),
        generation: None,
        pid: None,
        state: State::Serving,
        ordered: true,
        successor: None,
    };
    assert_eq!(call(std::str::from_utf8(text).unwrap()), Ok(Call::Join(handover)));
    let text = r#"{"method":"join","params":[{"service":"edge","state":"serving"}]}"#;
    let error = call(text).unwrap_err();
    assert_eq!(error.code, ErrorCode::INVALID_PARAMS);
    assert!(error.message.contains("`generation`") && error.hint().is_some(), "{error:?}");
}

/// The broker reads calls this way, and serves other clients in between.
#[test]
fn a_call_is_read_some_elements_at_a_time() {
    let element = |number: u32| format!(" {{\"listen\" : \"127.0.0.1:{number}\"}}\t\r\n ");
    let elements: Vec<String> = (1..=10).map(element).collect();
    let text = format!(r#"{{"method":"bind","params": [{}] }}"#, elements.join(","));
    let text = text.into();
    let request = Request::decode(&text).expect("a request");
    let whole = Call::decode(&request).expect("a call");
    let Call::Bind(binds) = &whole else { panic!("{whole:?}") };
    let expected: Vec<Bind> = (1..=10).map(|it| Bind::listen(format!("127.0.0.1:{it}"))).collect();
    assert_eq!(binds, &expected);
    for at_once in 1..=11 {
        let mut decoding = Decoding::new(&request).expect("a method");
        let mut turns = 1;
        while decoding.read(at_once).expect("elements") {
            turns += 1;
        }
        assert_eq!((turns, decoding.finish()), (10_usize.div_ceil(at_once), whole.clone()));
    }
    // Elements after a mistake are not read, and an element after the only one is an error.
    let bad = r#"{"method":"release","params":["a",5,{}]}"#;
    let error = call(bad).expect_err("a number");
    assert!(error.message.starts_with("params[1]: invalid type: integer `5`"), "{error:?}");
    let two = r#"{"method":"events","params":[{},7]}"#;
    assert_eq!(call(two).expect_err("two").message, "`params` has more than one element");
}

#[test]
fn a_notification_is_told_from_a_reply() {
    let turn = Turn { service: "edge".to_owned(), generation: 7, successor: Some(8) };
    for notification in [Notification::Retire(turn.clone()), Notification::Serve(turn)] {
        let text = notification.encode();
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(Notification::decode(&text).unwrap(), Some(notification));
    }
    let decode = |text: &str| Notification::decode(text.as_bytes());
    assert_eq!(decode(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#).unwrap(), None);
    assert_eq!(decode(r#"{"method":"dance","params":[1]}"#).unwrap(), Some(Notification::Unknown));
    assert!(decode(r#"{"method":"retire"}"#).is_err() && decode("{").is_err());
}

#[test]
fn replies_round_trip_and_end_in_a_line_end() {
    let listeners = vec![Bound {
        name: "web".to_owned(),
        address: "0.0.0.0:80".to_owned(),
        bound: "0.0.0.0:80".to_owned(),
        created: true,
        inode: 42,
    }];
    let result = BindResult { listeners };
    let text = encode_result(&Id::Text("a\n\"".to_owned()), &result).unwrap();
    assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1);
    assert_eq!(text.last(), Some(&b'\n'));
    let reply = Reply::<BindResult>::decode(&text).unwrap();
    assert_eq!(reply.id, Id::Text("a\n\"".to_owned()));
    assert_eq!(reply.outcome.unwrap(), result);

    let error = RpcError::new(ErrorCode::BIND_FAILED, "cannot bind 0.0.0.0:80: address in use")
        .with("errno", 98)
        .with_hint("ss -ltnp");
    let text = encode_error(&Id::Null, &error);
    assert_eq!(text.last(), Some(&b'\n'));
    let read = Reply::<PingResult>::decode(&text).unwrap().outcome.unwrap_err();
    assert_eq!(read, error);
    assert_eq!((read.errno(), read.hint()), (Some(98), Some("ss -ltnp")));
}

#[test]
fn a_client_ignores_what_a_newer_server_adds() {
    let text =
        br#"{"jsonrpc":"2.0","id":1,"extra":1,"result":{"pong":true,"version":"9","mood":"good"}}"#;
    let reply = Reply::<PingResult>::decode(text).unwrap();
    assert!(reply.outcome.unwrap().pong);

    let text = br#"{"name":"a","address":":1","bound":":1","listening":true,"inode":1,"since":"now","new":{}}"#;
    let listener: ListenerInfo = serde_json::from_slice(text).unwrap();
    assert!(listener.exclusive && listener.holders.is_empty());
}

#[test]
fn a_client_reads_errors_of_other_servers() {
    let text = br#"{"jsonrpc":"2.0","id":null,"error":{"code":10000,"message":"Could not bind","backtrace":[]}}"#;
    let error = Reply::<PingResult>::decode(text).unwrap().outcome.unwrap_err();
    assert_eq!((error.code, error.hint()), (ErrorCode(10000), None));
    let text = br#"{"error":{"code":-1,"message":"m","data":"text"}}"#;
    assert!(Reply::<PingResult>::decode(text).unwrap().outcome.unwrap_err().data.is_empty());
    assert!(Reply::<PingResult>::decode(b"{}").is_err());
}

proptest! {
    /// No input from a peer makes the reader panic.
    #[test]
    fn decoding_never_panics(text in "\\PC{0,64}", bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        for input in [text.as_bytes(), &bytes] {
            if let Ok(request) = Request::decode(&input.into()) {
                let _ = Call::decode(&request);
            }
            let _ = Reply::<BindResult>::decode(input);
        }
        let members = format!(r#"{{"method":"bind","params":[{text}]}}"#);
        let _ = call(&members);
    }

    /// Numbers and digits are accepted as ports, and nothing else.
    #[test]
    fn ports_are_checked(number in any::<i64>(), text in "[0-9+ -]{0,6}") {
        let bind = |port: String| call(&format!(r#"{{"method":"bind","params":[{{"address":"a","port":{port}}}]}}"#));
        prop_assert_eq!(bind(number.to_string()).is_ok(), u16::try_from(number).is_ok());
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        prop_assert_eq!(bind(format!("{text:?}")).is_ok(), digits && text.parse::<u16>().is_ok());
    }
}

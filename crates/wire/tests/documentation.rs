//! docs/protocol*.md match the code: the code reads the examples, and the quoted client is the
//! tested one.

use std::path::Path;

use bindonce_fd::batch::Transmission;
use bindonce_wire::call::{Call, METHODS};
use bindonce_wire::error::{ErrorCode, RpcError};
use bindonce_wire::message::{Id, Notification, Reply, Request, encode_error};
use bindonce_wire::result::{
    BindResult, EventsResult, JoinResult, ListResult, PingResult, ReleaseResult, StatusResult,
    StoreResult, UpgradeResult,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    #[expect(clippy::disallowed_methods, reason = "the test compares with the page")]
    std::fs::read_to_string(&path).expect("a file of this repository")
}

/// The concatenated pages of the protocol.
fn pages() -> String {
    ["protocol", "protocol-requests", "protocol-generations"]
        .map(|name| read(&format!("docs/{name}.md")))
        .concat()
}

/// Every request with its reply, in the order of the page.
fn exchanges(page: &str) -> Vec<(String, String)> {
    let mut exchanges = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(request) = line.strip_prefix("--> ") {
            let reply = lines.next().and_then(|line| line.strip_prefix("<-- "));
            exchanges.push((request.to_owned(), reply.expect("a reply below").to_owned()));
        }
    }
    exchanges
}

/// Reads a result and writes it again: the page must show every member, and no other.
fn rewritten<T: DeserializeOwned + Serialize>(raw: &RawValue) -> Value {
    let result: T = serde_json::from_str(raw.get()).expect("a result of this method");
    serde_json::to_value(result).expect("JSON")
}

#[test]
fn the_quoted_client_is_the_one_that_is_tested() {
    let client = read("tests/clients/client.py");
    assert!(client.lines().count() <= 20, "it is said to have 20 lines");
    assert!(pages().contains(&format!("```python\n{client}```\n")));
}

#[test]
fn the_examples_are_what_the_code_reads_and_writes() {
    let page = pages();
    let mut shown = Vec::new();
    for (request, reply) in exchanges(&page) {
        let text = request.as_str().into();
        let parsed = Request::decode(&text).expect(&request);
        let answered = Reply::<Box<RawValue>>::decode(reply.as_bytes()).expect(&reply);
        assert_eq!(answered.id, parsed.id, "{reply}");
        match (Call::decode(&parsed), answered.outcome) {
            (Err(error), Err(documented)) => {
                assert_eq!(error, documented);
                let written = encode_error(&parsed.id, &error);
                let written: Value = serde_json::from_slice(&written).expect("JSON");
                assert_eq!(written, serde_json::from_str::<Value>(&reply).expect("JSON"));
            }
            (Ok(call), Ok(raw)) => {
                let expected: Value = serde_json::from_str(raw.get()).expect("JSON");
                let result = match call {
                    Call::Bind(_) => rewritten::<BindResult>(&raw),
                    Call::Join(_) => rewritten::<JoinResult>(&raw),
                    Call::Release(_) => rewritten::<ReleaseResult>(&raw),
                    Call::List => rewritten::<ListResult>(&raw),
                    Call::Store(_) => rewritten::<StoreResult>(&raw),
                    Call::Upgrade => rewritten::<UpgradeResult>(&raw),
                    Call::Events(_) => rewritten::<EventsResult>(&raw),
                    Call::Status => rewritten::<StatusResult>(&raw),
                    _ => rewritten::<PingResult>(&raw),
                };
                assert_eq!(result, expected, "{reply}");
                shown.push(parsed.method);
            }
            (call, reply) => panic!("{request}: {call:?}, but the page says {reply:?}"),
        }
    }
    for method in METHODS {
        assert!(shown.iter().any(|shown| shown == method), "no example of {method}");
        assert!(page.contains(&format!("\n### {method}\n")), "no section on {method}");
    }
}

#[test]
fn the_notifications_are_what_the_code_writes() {
    let page = pages();
    let mut seen = Vec::new();
    for line in page.lines().filter_map(|line| line.strip_prefix("<-- ")) {
        let Some(notification) = Notification::decode(line.as_bytes()).expect(line) else {
            continue;
        };
        assert_eq!(notification.encode(), format!("{line}\n").as_bytes());
        seen.push(matches!(notification, Notification::Serve(_)));
    }
    assert_eq!(seen, [true, false], "an example of each");
}

#[test]
fn the_numbers_on_the_page_are_the_codes_numbers() {
    let page = pages();
    let codes = [
        ErrorCode::PARSE,
        ErrorCode::INVALID_REQUEST,
        ErrorCode::METHOD_NOT_FOUND,
        ErrorCode::INVALID_PARAMS,
        ErrorCode::INTERNAL,
        ErrorCode::TOO_LARGE,
        ErrorCode::DENIED,
        ErrorCode::CONFLICT,
        ErrorCode::OVERLAP,
        ErrorCode::BIND_FAILED,
        ErrorCode::NOT_FOUND,
        ErrorCode::IN_USE,
        ErrorCode::LIMIT,
        ErrorCode::TIMED_OUT,
        ErrorCode::UPGRADE_FAILED,
    ];
    for code in codes {
        assert!(page.contains(&format!("\n| {code} |")), "no row for {code}");
    }
    let rows = page.lines().filter(|line| line.starts_with("| -32")).count();
    assert_eq!(rows, codes.len());
    assert!(page.contains("1 MiB (1,048,576 bytes)"));
    assert_eq!(bindonce_wire::MAX_REQUEST, 1_048_576);
    let mut reply = Transmission::new(b"{}\n".to_vec(), 600);
    let mut sizes = Vec::new();
    while let Some((bytes, batch)) = reply.next() {
        let all = bytes.len();
        sizes.push(batch.len());
        reply.advance(all);
    }
    assert_eq!(sizes, [253, 253, 94], "the page's example of 600 listeners");
}

#[test]
fn an_error_has_its_message_and_code() {
    let text = encode_error(&Id::Null, &RpcError::new(ErrorCode::PARSE, "m"));
    let expected = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"m"}}"#;
    assert_eq!(text, format!("{expected}\n").as_bytes());
}

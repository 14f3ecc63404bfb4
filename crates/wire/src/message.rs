//! The envelope: JSON-RPC 2.0 requests and replies, and a broker's notifications.
//!
//! Reading is strict where a mistake would otherwise pass unnoticed (an unknown key, a key twice),
//! and lenient where existing clients are: `jsonrpc` may be missing, and a request without `id`
//! gets a reply with `id` null, because the client of multibinder sends none.

use std::borrow::Cow;

use bindonce_core::text::shown;
use serde::de::{DeserializeOwned, Deserializer, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::{ErrorCode, RpcError};
use crate::framing::{AT_ONCE, Text};
use crate::line::{line, notification};
use crate::params;
use crate::result::Bound;

/// The id that ties a reply to its request.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(untagged)]
pub enum Id {
    /// No id, or one that could not be read.
    #[default]
    Null,
    /// A number.
    Number(serde_json::Number),
    /// A text.
    Text(String),
}

impl From<u64> for Id {
    fn from(number: u64) -> Self {
        Self::Number(number.into())
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Null => Ok(Self::Null),
            Value::Number(number) => Ok(Self::Number(number)),
            Value::String(text) => Ok(Self::Text(text)),
            _ => Err(serde::de::Error::custom("`id` is neither a string, a number nor null")),
        }
    }
}

/// A request whose parameters are not read yet. Long parameters may not even be JSON: each element
/// is parsed when it is read.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Returned with the reply.
    pub id: Id,
    /// The method.
    pub method: String,
    /// The text of the parameters; an empty array if there are none.
    params: &'a [u8],
    /// The whole request, to report the place of a mistake.
    frame: &'a [u8],
}

/// A request without the text between the brackets of a long value.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    #[serde(default, borrow)]
    jsonrpc: Option<Cow<'a, str>>,
    #[serde(default)]
    id: Id,
    method: String,
    #[serde(default, borrow)]
    params: Option<&'a RawValue>,
}

/// A request that is refused, and its reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Rejected {
    /// The request's id, as far as it could be read.
    pub id: Id,
    /// The reason.
    pub error: RpcError,
}

impl<'a> Request<'a> {
    /// Reads one frame of a [`Scanner`](crate::framing::Scanner). A long one takes no more time.
    pub fn decode(frame: &'a Text) -> Result<Self, Rejected> {
        let large = &frame.large;
        if frame.first() == Some(&b'[') {
            let error = RpcError::new(ErrorCode::INVALID_REQUEST, "a batch is not a request")
                .with_hint("send each request as an object of its own");
            return Err(Rejected { id: Id::Null, error });
        }
        // Only `params` may be a value in brackets: any other such member is refused, whatever it
        // contains.
        let inside = if large.is_empty() { 0..0 } else { large.start + 1..large.end - 1 };
        let (before, behind) = (&frame[..inside.start], &frame[inside.end..]);
        if before.len() + behind.len() > 2 * AT_ONCE {
            let message =
                format!("a request has at most {} bytes beside its `params`", 2 * AT_ONCE);
            let error = RpcError::new(ErrorCode::INVALID_REQUEST, message)
                .with_hint("the members beside it are jsonrpc, id and method");
            return Err(Rejected { id: Id::Null, error });
        }
        let text = if large.is_empty() {
            Cow::Borrowed(&**frame)
        } else {
            [before, behind].concat().into()
        };
        let place = |at: usize| if at < before.len() { at } else { at + inside.len() };
        // serde refuses a member where it stands: only a second pass shows whether all of it is
        // JSON.
        let at_all = |error| serde_json::from_slice::<IgnoredAny>(&text).err().unwrap_or(error);
        let Envelope { jsonrpc, id, method, params } = match from_bytes(&text).map_err(at_all) {
            Ok(envelope) => envelope,
            Err(error) if error.is_data() => {
                return Err(Rejected {
                    id: id_of(&text),
                    error: RpcError::new(ErrorCode::INVALID_REQUEST, without_place(&error))
                        .with_hint("a request has the members jsonrpc, id, method and params"),
                });
            }
            Err(error) => {
                let error = not_json(place(place_of(&text, &error)), &without_place(&error));
                return Err(Rejected { id: Id::Null, error });
            }
        };
        if let Some(version) = jsonrpc.filter(|version| *version != "2.0") {
            let message = format!("`jsonrpc` is {:?}, not \"2.0\"", shown(&version));
            let error = RpcError::new(ErrorCode::INVALID_REQUEST, message)
                .with_hint("this is JSON-RPC 2.0: send \"jsonrpc\":\"2.0\" or leave it out");
            return Err(Rejected { id, error });
        }
        let params = params.map_or(&b"[]"[..], |params| {
            let begin = params.get().as_ptr().addr() - text.as_ptr().addr();
            let end = begin + params.get().len();
            &frame[place(begin)..place(end - 1) + 1]
        });
        Ok(Self { id, method, params, frame })
    }

    /// The length in bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // None is empty.
    pub fn len(&self) -> usize {
        self.frame.len()
    }

    /// Reads the parameters of a method that takes few.
    pub fn params<T: Deserialize<'a>>(&self) -> Result<T, RpcError> {
        if self.params.len() > AT_ONCE {
            return Err(self.invalid(format!("`params` is longer than {AT_ONCE} bytes")));
        }
        serde_json::from_slice(self.params).map_err(|error| self.unread("", self.params, &error))
    }

    /// The error for an unreadable part of the request, with `what` it is.
    pub(crate) fn unread(&self, what: &str, part: &[u8], error: &serde_json::Error) -> RpcError {
        if error.is_data() {
            return self.invalid(format!("{what}{}", without_place(error)));
        }
        self.not_json(&part[place_of(part, error).min(part.len())..], &without_place(error))
    }

    /// The error for a request that is not JSON from `rest` on.
    pub(crate) fn not_json(&self, rest: &[u8], reason: &str) -> RpcError {
        not_json(rest.as_ptr().addr() - self.frame.as_ptr().addr(), reason)
    }

    /// Checks the parameters of a method that takes none: absent, `null`, `[]` or `{}`.
    pub fn no_params(&self) -> Result<(), RpcError> {
        // Longer parameters are not empty: no need to read them.
        if self.params.len() < 1024 {
            match self.params::<Value>()? {
                Value::Null => return Ok(()),
                Value::Array(items) if items.is_empty() => return Ok(()),
                Value::Object(members) if members.is_empty() => return Ok(()),
                _ => {}
            }
        }
        let message = format!("`{}` takes no parameters", self.method);
        let hint = "leave `params` out, or send an empty array";
        Err(RpcError::new(ErrorCode::INVALID_PARAMS, message).with_hint(hint))
    }

    /// The text of the parameters; an empty array if there are none.
    pub(crate) fn params_text(&self) -> &'a [u8] {
        self.params
    }

    /// The error for parameters that the method does not take.
    pub(crate) fn invalid(&self, message: String) -> RpcError {
        let hint = params::example(&self.method).map_or_else(
            || "docs/protocol-requests.md says what each method takes".to_owned(),
            |example| format!("for example: \"params\":{example}"),
        );
        RpcError::new(ErrorCode::INVALID_PARAMS, message).with_hint(hint)
    }

    /// The error for a method that the server does not have.
    pub fn method_not_found(&self, offered: &[&str]) -> RpcError {
        let message = format!("there is no method {:?}", shown(&self.method));
        RpcError::new(ErrorCode::METHOD_NOT_FOUND, message)
            .with_hint(format!("the methods are {}", offered.join(", ")))
    }
}

/// Reads a value. UTF-8 is checked once, and not again for each string in it.
fn from_bytes<'a, T: Deserialize<'a>>(text: &'a [u8]) -> serde_json::Result<T> {
    match std::str::from_utf8(text) {
        Ok(text) => serde_json::from_str(text),
        // Its error says where the text is not UTF-8.
        Err(_) => serde_json::from_slice(text),
    }
}

/// The place of a mistake in a text, in bytes.
fn place_of(text: &[u8], error: &serde_json::Error) -> usize {
    let lines = text.split_inclusive(|byte| *byte == b'\n').take(error.line().saturating_sub(1));
    (lines.map(<[u8]>::len).sum::<usize>() + error.column()).saturating_sub(1)
}

/// The error for text that is not JSON, with the place in bytes from the beginning of the request.
fn not_json(at: usize, reason: &str) -> RpcError {
    RpcError::new(ErrorCode::PARSE, format!("not JSON at byte {at}: {reason}")).with_hint(
        "a request is one JSON object, and its numbers fit a double; docs/protocol.md has examples",
    )
}

/// The id of a request that is otherwise invalid.
fn id_of(frame: &[u8]) -> Id {
    #[derive(Deserialize)]
    struct OnlyId {
        #[serde(default)]
        id: Id,
    }
    serde_json::from_slice::<OnlyId>(frame).map(|only| only.id).unwrap_or_default()
}

/// serde_json's message without line and column, which mean nothing in a request of one line.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = text.strip_suffix(&place).unwrap_or(&text);
    // The message quotes the client's text, and ends with what was expected.
    match text.char_indices().rev().nth(REST) {
        Some((rest, _)) if text.len() > 2 * REST => format!("{}{}", shown(text), &text[rest..]),
        _ => text.to_owned(),
    }
}

/// How many characters at the end of serde_json's message say what was expected.
const REST: usize = 200;

/// A request as a client sends it, ending in a line end.
pub fn encode_request<P: Serialize + ?Sized>(
    id: &Id,
    method: &str,
    params: &P,
) -> serde_json::Result<Vec<u8>> {
    #[derive(Serialize)]
    struct Envelope<'a, P: ?Sized> {
        jsonrpc: &'static str,
        id: &'a Id,
        method: &'a str,
        params: &'a P,
    }
    line(&Envelope { jsonrpc: "2.0", id, method, params })
}

/// A reply with a result, ending in a line end.
pub fn encode_result<T: Serialize + ?Sized>(id: &Id, result: &T) -> serde_json::Result<Vec<u8>> {
    #[derive(Serialize)]
    struct Envelope<'a, T: ?Sized> {
        jsonrpc: &'static str,
        id: &'a Id,
        result: &'a T,
    }
    line(&Envelope { jsonrpc: "2.0", id, result })
}

/// The reply to `bind` (a [`BindResult`](crate::result::BindResult)), written listener by listener:
/// a long one in several steps, without moving what is already written.
#[derive(Debug)]
pub struct BindReply {
    text: Vec<u8>,
    is_empty: bool,
}

impl BindReply {
    /// A reply without listeners, with room for `count`.
    pub fn new(id: &Id, count: usize) -> serde_json::Result<Self> {
        let mut text = Vec::with_capacity(64 + count * 128);
        text.extend_from_slice(br#"{"jsonrpc":"2.0","id":"#);
        serde_json::to_writer(&mut text, id)?;
        text.extend_from_slice(br#","result":{"listeners":["#);
        Ok(Self { text, is_empty: true })
    }

    /// Adds a listener, as [`Bound::encode`](crate::result::Bound::encode) gives it.
    pub fn push(&mut self, bound: &[u8]) {
        self.separate();
        self.text.extend_from_slice(bound);
    }

    /// Adds a listener whose text is not kept.
    pub fn add(&mut self, bound: &Bound) -> serde_json::Result<()> {
        self.separate();
        serde_json::to_writer(&mut self.text, bound)
    }

    fn separate(&mut self) {
        if !std::mem::take(&mut self.is_empty) {
            self.text.push(b',');
        }
    }

    /// The whole reply, ending in a line end.
    pub fn finish(mut self) -> Vec<u8> {
        self.text.extend_from_slice(b"]}}\n");
        self.text
    }
}

/// A reply with an error, ending in a line end.
pub fn encode_error(id: &Id, error: &RpcError) -> Vec<u8> {
    #[derive(Serialize)]
    struct Envelope<'a> {
        jsonrpc: &'static str,
        id: &'a Id,
        error: &'a RpcError,
    }
    // Serialization cannot fail here; if that changes, the peer still learns that something went
    // wrong.
    line(&Envelope { jsonrpc: "2.0", id, error }).unwrap_or_else(|_| {
        let text = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"internal"}}"#;
        format!("{text}\n").into_bytes()
    })
}

/// A broker's notification to a connection that has joined with `handover`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notification {
    /// The generation serves from now on: it may accept.
    Serve(Turn),
    /// The generation must stop accepting, and report it.
    Retire(Turn),
    /// The generation need not retire after all: the newer one went before it was let in.
    Stay(Turn),
    /// A notification that this version does not know, and ignores.
    Unknown,
}

/// The generation that a notification is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// The name of the service.
    pub service: String,
    /// The number of the generation.
    pub generation: u64,
    /// With `retire`: the newer generation that is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<u64>,
}

impl Notification {
    /// The notification as a broker sends it, ending in a line end.
    pub fn encode(&self) -> Vec<u8> {
        let (method, turn) = match self {
            Self::Serve(turn) => ("serve", turn),
            Self::Retire(turn) => ("retire", turn),
            Self::Stay(turn) => ("stay", turn),
            Self::Unknown => return Vec::new(),
        };
        // Serialization cannot fail here.
        notification(method, turn).unwrap_or_default()
    }

    /// Reads one line. None if it is a reply: a notification has a method.
    pub fn decode(line: &[u8]) -> serde_json::Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Envelope<'a> {
            #[serde(default, borrow)]
            method: Option<Cow<'a, str>>,
            #[serde(default, borrow)]
            params: Option<&'a RawValue>,
        }
        let Envelope { method, params } = serde_json::from_slice(line)?;
        let turn = || {
            let [turn] = serde_json::from_str::<[Turn; 1]>(params.map_or("[]", RawValue::get))?;
            Ok(turn)
        };
        match method.as_deref() {
            None => Ok(None),
            Some("serve") => turn().map(Self::Serve).map(Some),
            Some("retire") => turn().map(Self::Retire).map(Some),
            Some("stay") => turn().map(Self::Stay).map(Some),
            Some(_) => Ok(Some(Self::Unknown)),
        }
    }
}

/// A reply as a client reads it. Unknown members are ignored.
#[derive(Debug, Clone)]
pub struct Reply<T> {
    /// The id of the request that it answers.
    pub id: Id,
    /// The result, or the error.
    pub outcome: Result<T, RpcError>,
}

impl<T: DeserializeOwned> Reply<T> {
    /// Reads one line, with the result type of the method (a boxed [`RawValue`] for any). An error
    /// that is present and not null counts, whatever else there is.
    pub fn decode(line: &[u8]) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        #[serde(bound = "T: DeserializeOwned")]
        struct Envelope<T> {
            #[serde(default)]
            id: Id,
            #[serde(default)]
            result: Option<T>,
            #[serde(default)]
            error: Option<RpcError>,
        }
        // Check UTF-8 once for the whole line, and not again in each of thousands of strings.
        let line = std::str::from_utf8(line).map_err(serde::de::Error::custom)?;
        let Envelope { id, result, error } = serde_json::from_str(line)?;
        let outcome = match (error, result) {
            (Some(error), _) => Err(error),
            (None, Some(result)) => Ok(result),
            (None, None) => {
                return Err(serde::de::Error::custom("a reply without `result` and `error`"));
            }
        };
        Ok(Self { id, outcome })
    }
}

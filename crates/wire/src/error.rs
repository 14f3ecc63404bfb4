//! JSON-RPC errors with stable codes and a hint.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The code of an error. The numbers are part of the protocol and never change their meaning; a
/// client treats an unknown one as [`ErrorCode::INTERNAL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ErrorCode(pub i64);

impl ErrorCode {
    /// The bytes are not JSON.
    pub const PARSE: Self = Self(-32700);
    /// JSON, but not a request. Also a batch, which is not supported.
    pub const INVALID_REQUEST: Self = Self(-32600);
    /// No such method.
    pub const METHOD_NOT_FOUND: Self = Self(-32601);
    /// The method does not take these parameters.
    pub const INVALID_PARAMS: Self = Self(-32602);
    /// The server failed; its log says more.
    pub const INTERNAL: Self = Self(-32000);
    /// The request is longer than [`MAX_REQUEST`](crate::MAX_REQUEST).
    pub const TOO_LARGE: Self = Self(-32001);
    /// The caller may not do this.
    pub const DENIED: Self = Self(-32002);
    /// The address or name is held with other options.
    pub const CONFLICT: Self = Self(-32003);
    /// The address overlaps one that is held.
    pub const OVERLAP: Self = Self(-32004);
    /// The system refused to create, bind or listen; `data.errno` and `data.address` say more.
    pub const BIND_FAILED: Self = Self(-32005);
    /// No such listener.
    pub const NOT_FOUND: Self = Self(-32006);
    /// Another connection still uses the listener.
    pub const IN_USE: Self = Self(-32007);
    /// A limit is reached, for example RLIMIT_NOFILE; the message names it.
    pub const LIMIT: Self = Self(-32008);
    /// The rest of the request did not arrive in time.
    pub const TIMED_OUT: Self = Self(-32009);
    /// From a supervisor: the reload failed; the previous generation still serves.
    pub const RELOAD_FAILED: Self = Self(-32010);
    /// From a supervisor: the new generation serves, but a process that is no generation of the
    /// service accepts too.
    pub const NOT_ALONE: Self = Self(-32011);
    /// The binary was not replaced; nothing has changed.
    pub const UPGRADE_FAILED: Self = Self(-32012);
}

impl ErrorCode {
    /// The code as one word, for metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::PARSE | Self::INVALID_REQUEST | Self::METHOD_NOT_FOUND | Self::INVALID_PARAMS => {
                "invalid"
            }
            Self::TOO_LARGE => "too-large",
            Self::DENIED => "denied",
            Self::CONFLICT => "conflict",
            Self::OVERLAP => "overlap",
            Self::BIND_FAILED => "bind-failed",
            Self::NOT_FOUND => "not-found",
            Self::IN_USE => "in-use",
            Self::LIMIT => "limit",
            Self::TIMED_OUT => "timed-out",
            Self::RELOAD_FAILED => "reload-failed",
            Self::NOT_ALONE => "not-alone",
            Self::UPGRADE_FAILED => "upgrade-failed",
            _ => "internal",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The `error` member of a reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct RpcError {
    /// The kind of error.
    pub code: ErrorCode,
    /// What happened, and to what, as one sentence for a person.
    pub message: String,
    /// Details for programs, and `hint`, which tells a person what to do next.
    #[serde(
        default,
        skip_serializing_if = "Map::is_empty",
        deserialize_with = "object_or_nothing"
    )]
    pub data: Map<String, Value>,
}

impl RpcError {
    /// An error without data.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: Map::new() }
    }

    /// Adds a hint: what to do next.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        self.with("hint", hint.into())
    }

    /// Adds a member to `data`.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.data.insert(key.to_owned(), value.into());
        self
    }

    /// The hint, if the server knows what to do next.
    pub fn hint(&self) -> Option<&str> {
        self.data.get("hint").and_then(Value::as_str)
    }

    /// The system's error number, if there is one.
    pub fn errno(&self) -> Option<i32> {
        self.data.get("errno").and_then(Value::as_i64).and_then(|errno| errno.try_into().ok())
    }
}

/// Other servers may put anything into `data`; only an object has a meaning here.
fn object_or_nothing<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Map<String, Value>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Object(map) => map,
        _ => Map::new(),
    })
}

//! Parameters of the methods. An unknown key, a repeated key or a number out of range is an error
//! that names it and its element.

use std::fmt;

use bindonce_core::name::Name;
pub use bindonce_core::registry::State;
pub use bindonce_core::succession::Joining;
use serde::de::{self, Deserializer, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Serialize, Serializer};

use crate::error::{ErrorCode, RpcError};
use crate::omitted::is_default;

/// Example parameters of a method, for hints.
pub(crate) fn example(method: &str) -> Option<&'static str> {
    Some(match method {
        "bind" => r#"[{"address":"0.0.0.0","port":80}] or [{"listen":"web=0.0.0.0:80"}]"#,
        "join" => r#"[{"service":"haproxy","generation":7,"pid":1234,"state":"serving"}]"#,
        "release" => r#"["web"]"#,
        "retire" => "[7]",
        "store" => r#"[{"listen":"web=0.0.0.0:80"}]"#,
        "events" => r#"[{"since":1041,"follow":true}]"#,
        _ => return None,
    })
}

/// One element of `bind`'s parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// What to bind.
    pub target: Target,
    /// A listener that this element creates is closed with its last lease, unless it is confirmed
    /// before.
    pub tentative: bool,
    /// Options that differ from those of the held listener are changed in place where the kernel
    /// allows it, instead of being a conflict.
    pub change: bool,
}

/// The three ways to say what to bind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// multibinder's form: a TCP address. The port may be a number or text.
    Tcp {
        /// An IP address or a host name.
        address: String,
        /// The port; 0 lets the system choose.
        port: u16,
        /// Length of the accept queue.
        backlog: Option<u32>,
    },
    /// bindonce's own form: `[NAME=]ADDR[,OPT]...`, or the bare name of a held listener.
    Listen {
        /// The text.
        listen: String,
    },
    /// A held listener.
    Name {
        /// Its name.
        name: String,
    },
}

impl Bind {
    /// A claim in bindonce's own form, `[NAME=]ADDR[,OPT]...`.
    pub fn listen(text: impl Into<String>) -> Self {
        Self { target: Target::Listen { listen: text.into() }, tentative: false, change: false }
    }

    /// A claim of the held listener with this name.
    pub fn name(name: impl Into<String>) -> Self {
        Self { target: Target::Name { name: name.into() }, tentative: false, change: false }
    }
}

impl Serialize for Bind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut members = serializer.serialize_map(None)?;
        match &self.target {
            Target::Tcp { address, port, backlog } => {
                members.serialize_entry("address", address)?;
                members.serialize_entry("port", port)?;
                if let Some(backlog) = backlog {
                    members.serialize_entry("backlog", backlog)?;
                }
            }
            Target::Listen { listen } => members.serialize_entry("listen", listen)?,
            Target::Name { name } => members.serialize_entry("name", name)?,
        }
        if self.tentative {
            members.serialize_entry("tentative", &true)?;
        }
        if self.change {
            members.serialize_entry("change", &true)?;
        }
        members.end()
    }
}

impl<'de> Deserialize<'de> for Bind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Members {
            address: Option<String>,
            port: Option<Port>,
            backlog: Option<u32>,
            listen: Option<String>,
            name: Option<String>,
            #[serde(default)]
            tentative: bool,
            #[serde(default)]
            change: bool,
        }
        let Members { address, port, backlog, listen, name, tentative, change } =
            Members::deserialize(deserializer)?;
        let target = match (address, port, backlog, listen, name) {
            (Some(address), Some(Port(port)), backlog, None, None) => {
                Target::Tcp { address, port, backlog }
            }
            (None, None, None, Some(listen), None) => Target::Listen { listen },
            (None, None, None, None, Some(name)) => Target::Name { name },
            (Some(_), None, _, None, None) => return Err(de::Error::missing_field("port")),
            (None, Some(_), _, None, None) => return Err(de::Error::missing_field("address")),
            _ => {
                return Err(de::Error::custom(
                    "expected either `address` and `port` (with `backlog` if you like), or \
                     `listen`, or `name`",
                ));
            }
        };
        Ok(Self { target, tentative, change })
    }
}

/// A port as a number, or as digits in a string: the name resolution behind multibinder's server
/// accepts both.
struct Port(u16);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PortVisitor;
        impl Visitor<'_> for PortVisitor {
            type Value = Port;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a `port` from 0 to 65535")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Port, E> {
                u16::try_from(number)
                    .map(Port)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(number), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Port, E> {
                Some(text)
                    .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
                    .and_then(|text| text.parse().ok())
                    .map(Port)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(PortVisitor)
    }
}

/// One element of `store`'s parameters: the listener that the descriptor at the same place is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Give {
    /// The listener as claimed: `[NAME=]ADDR[,OPT]...`.
    pub listen: String,
    /// A listener that no broker has held before is closed with its last lease, unless it is
    /// claimed for good: a failed start leaves nothing behind.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tentative: bool,
}

/// The parameter of `events`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Events {
    /// The last event id that the caller knows; 0 if it knows none.
    #[serde(default)]
    pub since: u64,
    /// Whether to send each further event as it happens, for as long as the connection is open.
    #[serde(default)]
    pub follow: bool,
}

/// The parameter of `join` for a client that numbers and orders its generations itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Join {
    /// The name of the service.
    pub service: Name,
    /// The number of the generation.
    pub generation: u64,
    /// Its process; the caller's own if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its state.
    pub state: State,
}

impl Join {
    /// A generation, with its process unless that is the caller's own.
    pub fn new(service: Name, generation: u64, pid: Option<u32>, state: State) -> Self {
        Self { service, generation, pid, state }
    }
}

/// Requires a number, unless the broker keeps the order and gives one.
pub(crate) fn checked(joining: Joining) -> Result<Joining, RpcError> {
    if joining.generation.is_some() || joining.ordered {
        return Ok(joining);
    }
    let hint = example("join").unwrap_or_default();
    let message = "params[0]: missing field `generation`";
    Err(RpcError::new(ErrorCode::INVALID_PARAMS, message)
        .with_hint(format!("for example: \"params\":{hint}")))
}

impl From<Join> for Joining {
    fn from(join: Join) -> Self {
        let Join { service, generation, pid, state } = join;
        let generation = Some(generation);
        Self { service, generation, pid, state, ordered: false, successor: None }
    }
}

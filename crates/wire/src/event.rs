//! An event in a reply, in a notification, and in the file that keeps events: a JSON object on a
//! line of its own.

use std::borrow::Cow;

use bindonce_core::time::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::line::notification;

/// The method of the notification that carries an event to a follower.
pub const NOTIFICATION: &str = "event";

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Event {
    /// Grows with each event of a broker or a supervisor, even across its restarts.
    #[serde(default)]
    pub id: u64,
    /// The time, RFC 3339.
    #[serde(serialize_with = "to_text", deserialize_with = "from_text")]
    pub time: Timestamp,
    /// What happened, in one word that keeps its meaning, such as `listener-bound`
    /// (docs/operations.md lists them; more may come).
    pub kind: Cow<'static, str>,
    /// The service concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Box<str>>,
    /// The generation concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The process concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// What happened and why, as one line for a person.
    pub text: Box<str>,
}

impl Event {
    /// An event without service, generation and process.
    pub fn new(
        id: u64,
        time: Timestamp,
        kind: impl Into<Cow<'static, str>>,
        text: impl Into<Box<str>>,
    ) -> Self {
        let (kind, text) = (kind.into(), text.into());
        Self { id, time, kind, service: None, generation: None, pid: None, text }
    }
}

/// An event as a follower receives it: a JSON-RPC notification, ending in a line end.
pub fn encode_notification(event: &Event) -> serde_json::Result<Vec<u8>> {
    notification(NOTIFICATION, event)
}

/// Reads one line that a follower has received.
pub fn decode_notification(line: &[u8]) -> serde_json::Result<Event> {
    #[derive(Deserialize)]
    struct Envelope {
        method: String,
        params: [Event; 1],
    }
    let Envelope { method, params: [event] } = serde_json::from_slice(line)?;
    if method == NOTIFICATION {
        Ok(event)
    } else {
        Err(de::Error::custom(format_args!("a notification of {method:?}, not of an event")))
    }
}

fn to_text<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

fn from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = Cow::<'de, str>::deserialize(deserializer)?;
    Timestamp::parse(&text).ok_or_else(|| de::Error::custom("`time` is not RFC 3339 in UTC"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_reads_back_as_it_was_told() {
        let event = Event {
            id: 7,
            time: Timestamp(1_767_225_600_250),
            kind: "generation-serving".into(),
            service: Some("web".into()),
            generation: Some(3),
            pid: Some(812),
            text: "serving".into(),
        };
        let line = encode_notification(&event).expect("JSON");
        assert!(line.ends_with(b"}\n"));
        assert_eq!(decode_notification(&line).expect("an event"), event);
        let less: Event = serde_json::from_str(
            r#"{"time":"2026-01-01T00:00:00Z","kind":"new-in-2030","text":"x","more":[1]}"#,
        )
        .expect("a newer version says more");
        assert_eq!((less.id, &*less.kind, less.pid), (0, "new-in-2030", None));
        for bad in [
            r#"{"method":"other","params":[{"time":"2026-01-01T00:00:00Z","kind":"a","text":"b"}]}"#,
            "{}",
            "{",
        ] {
            assert!(decode_notification(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}

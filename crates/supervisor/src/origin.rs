//! The caller that gave a service another command line (`haproxy ... -sf PID`), as sent to the
//! supervisor and saved.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::PathBuf;

pub use bindonce_haproxy::config::Text;
use serde::{Deserialize, Serialize};

/// A caller that gave this service another command line (`haproxy ... -sf PID`). Generations start
/// with the caller's command line, directory and environment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The program and its arguments.
    pub command: Vec<Text>,
    /// The caller's working directory.
    pub directory: PathBuf,
    /// The environment variables that are UTF-8.
    pub environment: BTreeMap<String, String>,
    /// All other environment variables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environment_bytes: Vec<(Text, Text)>,
    /// Listeners that the caller inherited and gave to the broker, by descriptor number.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub passed: BTreeMap<i32, String>,
}

impl Origin {
    /// This process as the caller, with the given command line.
    ///
    /// # Errors
    /// Those of getcwd(3), for example that the directory is gone.
    pub fn here(command: impl Iterator<Item = OsString>) -> io::Result<Self> {
        let mut here = Self {
            command: command.map(Text::from).collect(),
            directory: std::env::current_dir()?,
            ..Self::default()
        };
        for (name, value) in std::env::vars_os() {
            match (Text::from(name), Text::from(value)) {
                (Text::Text(name), Text::Text(value)) => drop(here.environment.insert(name, value)),
                other => here.environment_bytes.push(other),
            }
        }
        Ok(here)
    }

    /// The whole environment.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        let text = self.environment.iter().map(|(name, value)| (name.as_ref(), value.as_ref()));
        let bytes =
            self.environment_bytes.iter().map(|(name, value)| (name.as_ref(), value.as_ref()));
        text.chain(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    #[test]
    fn what_is_not_text_is_sent_as_it_is() {
        let odd = OsString::from_vec(b"a\xff".to_vec());
        let origin = Origin {
            command: vec![OsString::from("haproxy").into(), odd.clone().into()],
            environment_bytes: vec![(OsString::from("X").into(), odd.clone().into())],
            ..Origin::default()
        };
        let sent = serde_json::to_string(&origin).expect("JSON");
        assert!(sent.contains("\"haproxy\""), "{sent}");
        let read: Origin = serde_json::from_str(&sent).expect("an origin");
        assert_eq!(read, origin);
        assert_eq!(read.variables().collect::<Vec<_>>(), [("X".as_ref(), odd.as_os_str())]);
    }
}

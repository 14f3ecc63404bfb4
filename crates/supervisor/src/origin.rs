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

    /// Whether this is the same start, whichever older processes (`-sf`, `-st`) each names.
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        let [one, two] = [self, other]
            .map(|origin| Self { command: without_older(&origin.command), ..origin.clone() });
        one == two
    }

    /// The whole environment.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        let text = self.environment.iter().map(|(name, value)| (name.as_ref(), value.as_ref()));
        let bytes =
            self.environment_bytes.iter().map(|(name, value)| (name.as_ref(), value.as_ref()));
        text.chain(bytes)
    }
}

/// A command line without `-sf` and `-st` and their pids.
fn without_older(words: &[Text]) -> Vec<Text> {
    let mut is_list = false;
    let stays = |word: &&Text| {
        let Text::Text(word) = word else { return true };
        is_list = word == "-sf" || word == "-st" || is_list && word.parse::<i32>().is_ok();
        !is_list
    };
    words.iter().filter(stays).cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    #[test]
    fn which_processes_it_replaces_makes_no_other_start() {
        let of = |words: &str| Origin {
            command: words.split(' ').map(|word| OsString::from(word).into()).collect(),
            ..Origin::default()
        };
        let one = of("haproxy -D -f a.cfg -sf 7 8");
        assert!(one.is_as(&of("haproxy -D -f a.cfg -sf 9")));
        assert!(one.is_as(&of("haproxy -sf -D -f a.cfg")));
        assert!(!one.is_as(&of("haproxy -D -f b.cfg -sf 7 8")));
        assert!(!of("haproxy -f 7").is_as(&of("haproxy -f 8")));
    }

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

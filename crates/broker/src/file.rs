//! The configuration file of a broker, in TOML.
//!
//! ```toml
//! listen = ["web=0.0.0.0:80,backlog=4096", "unix@/run/app.sock,mode=0660"]
//! user = "bindonce"
//! capabilities = ["net_raw"]
//! ```

use std::fs;
use std::path::Path;
use std::str::FromStr;

use bindonce_core::listener::Wanted;
use bindonce_sys::privileges::Capability;
use serde::Deserialize;

use crate::Error;

/// What a configuration file says. Nothing of it has been looked up on this system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct File {
    /// What to bind at the start.
    pub listen: Vec<Wanted>,
    /// Whom to become once the socket's directory is there, by name or number.
    pub user: Option<String>,
    /// The group to take instead of the user's own; only with a user.
    pub group: Option<String>,
    /// What to keep beside what the listeners above need; only with a user.
    pub capabilities: Vec<Capability>,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    #[serde(default)]
    listen: Vec<String>,
    user: Option<String>,
    group: Option<String>,
    #[serde(default)]
    capabilities: Vec<String>,
}

impl File {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, [`Error::Configuration`] with the path if it says
    /// something that cannot be.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let doing = "read the configuration";
        let text = fs::read_to_string(path).map_err(|source| Error::File {
            doing,
            path: path.to_owned(),
            source,
        })?;
        text.parse().map_err(|error| match error {
            Error::Configuration { reason, .. } => {
                Error::Configuration { path: Some(path.to_owned()), reason }
            }
            error => error,
        })
    }
}

impl FromStr for File {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |reason| Error::Configuration { path: None, reason };
        let Text { listen, user, group, capabilities } =
            toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
        if user.is_none() && (group.is_some() || !capabilities.is_empty()) {
            let reason = "`group` and `capabilities` mean something only with `user`";
            return Err(wrong(reason.to_owned()));
        }
        Ok(Self {
            listen: each("listen", &listen)?,
            user,
            group,
            capabilities: each("capabilities", &capabilities)?,
        })
    }
}

/// Reads every element of a list.
fn each<T: FromStr>(list: &str, texts: &[String]) -> Result<Vec<T>, Error>
where
    T::Err: std::fmt::Display,
{
    let read = |(index, text): (usize, &String)| {
        text.parse().map_err(|error| Error::Configuration {
            path: None,
            reason: format!("{list}[{index}]: {error}"),
        })
    };
    texts.iter().enumerate().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_names_what_is_wrong() {
        let read = |text: &str| text.parse::<File>();
        let wanted = read("listen = ['web=:80', '/run/a.sock,mode=0600']").expect("good").listen;
        let texts: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["web=0.0.0.0:80", "unix@/run/a.sock,mode=0600"]);
        assert_eq!(read("").expect("empty"), File::default());
        for (text, part) in [
            ("lisen = []", "lisen"),
            ("user = 'root'\ncapabilities = ['net_raw', 'everything']", "capabilities[1]"),
            ("group = 'root'", "only with `user`"),
            ("listen = 5", "line 1"),
            ("listen = [':80', 'localhost:80']", "listen[1]"),
        ] {
            let error = read(text).expect_err(text).to_string();
            assert!(error.contains(part), "{error}");
        }
        let error = File::read(Path::new("/bindonce/none.toml")).expect_err("absent").to_string();
        assert_eq!(error, "cannot read the configuration /bindonce/none.toml");
    }
}

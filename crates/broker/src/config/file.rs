//! The configuration file of a broker, in TOML.
//!
//! ```toml
//! listen = ["web=0.0.0.0:80,backlog=4096", "unix@/run/app.sock,mode=0660"]
//! user = "bindonce"
//! capabilities = ["net_raw"]
//!
//! [[rule]]                       # with any rule, only what a rule allows is allowed
//! user = "www-data"              # or uid; group or gid: all that are said
//! allow = ["bind", "release"]    # bind, use, list, release, store, admin
//! addresses = ["*:8000-8999"]    # all, if left out
//! names = ["web", "app-*"]       # what it may call listeners; nothing, if left out
//! services = ["app"]             # what it may join; nothing, if left out
//!
//! [limits]
//! connections = 4096
//! ```

use std::io;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use bindonce_core::listener::Wanted;
use bindonce_core::policy::Rule;
use bindonce_sys::file::{self, Unread};
use bindonce_sys::privileges::Capability;
use serde::Deserialize;

use super::Limits;
use super::settings::{RawLimits, RawRule, WrittenRule};
use crate::error::Error;

/// How long to wait for a file that is still being written.
const WRITTEN: Duration = Duration::from_secs(2);

/// The contents of a configuration file. Nothing has been looked up on this system yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct File {
    /// Listeners to bind at the start.
    pub listen: Vec<Wanted>,
    /// User to become once the socket's directory exists, by name or number.
    pub user: Option<String>,
    /// Group to use instead of the user's own; only with a user.
    pub group: Option<String>,
    /// Capabilities to keep besides those that the listeners above need; only with a user.
    pub capabilities: Vec<Capability>,
    /// Access rules. Without any, root and the broker's own user may do everything.
    pub rules: Vec<WrittenRule>,
    /// Limits on what clients may use.
    pub limits: Limits,
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
    #[serde(default)]
    rule: Vec<RawRule>,
    #[serde(default)]
    limits: RawLimits,
}

impl File {
    /// The rules, with their users and groups looked up on this system.
    ///
    /// # Errors
    /// [`Error::Configuration`] if there is no such user or group.
    pub fn rules(&self) -> Result<Vec<Rule>, Error> {
        let resolve = |(index, rule): (usize, &WrittenRule)| {
            rule.resolve().map_err(|error| Error::Configuration {
                path: None,
                reason: format!("rule[{index}]: {error}"),
            })
        };
        self.rules.iter().enumerate().map(resolve).collect()
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, [`Error::Configuration`] with the path if its contents
    /// are invalid.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let doing = "read the configuration";
        let failed = |source| Error::File { doing, path: path.to_owned(), source };
        let text = file::read(path, WRITTEN).map_err(|unread| match unread {
            Unread::System(error) => failed(error),
            unread => failed(io::Error::other(unread.to_string())),
        })?;
        let text = String::from_utf8(text).map_err(|error| failed(io::Error::other(error)))?;
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
        let Text { listen, user, group, capabilities, rule, limits } =
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
            rules: rule
                .into_iter()
                .enumerate()
                .map(|(index, raw)| raw.read().map_err(|e| wrong(format!("rule[{index}]: {e}"))))
                .collect::<Result<_, _>>()?,
            limits: limits.read().map_err(|error| wrong(format!("limits.{error}")))?,
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
            ("[[rule]]\nallow = ['bind']", "rule[0]: it names no user or group"),
            ("[[rule]]\nuid = 1\nallow = []", "`allow` is empty"),
            ("[[rule]]\nuid = 4294967295\nallow = ['use']", "4294967295"),
            ("[[rule]]\nuid = 1\nexe = '/bin/a'\nallow = ['use']", "`exe` gives no right"),
            ("[[rule]]\nunit = 'a.service'\nallow = ['use']", "SupplementaryGroups="),
            ("[[rule]]\ncgroup = '/a/*'\nallow = ['use']", "say `user` or `group`"),
            ("[[rule]]\nuid = 1\nallow = ['everything']", "everything"),
            ("[[rule]]\nuid = 1\nuser = 'root'\nallow = ['use']", "not both"),
            ("[[rule]]\nuid = 1\nallow = ['use']\naddresses = ['80']", "\"80\""),
            ("[[rule]]\nuid = 1\nallow = ['use']\nservices = ['a b']", "services: \"a b\""),
            ("[[rule]]\nuid = 1\nallow = ['use']\nnames = ['*a']", "names: \"*a\""),
            ("[limits]\nconnections = 0", "limits.connections"),
            ("[limits]\nrequest_bytes = 2000000", "1048576"),
            ("[limits]\nbuffered_bytes = 4096", "limits.buffered_bytes"),
            ("[limits]\nidle_time = 'soon'", "limits.idle_time"),
            ("[limits]\nidle = 1", "idle"),
        ] {
            let error = read(text).expect_err(text).to_string();
            assert!(error.contains(part), "{error}");
        }
        let error = File::read(Path::new("/bindonce/none.toml")).expect_err("absent").to_string();
        assert_eq!(error, "cannot read the configuration /bindonce/none.toml");
    }

    #[test]
    fn rules_and_limits_are_read() {
        let file: File =
            "[[rule]]\nuser = 'root'\nallow = ['bind', 'admin']\naddresses = ['*:80']\n\
                          [[rule]]\ngid = 7\nuid = 8\nallow = ['use']\n\
                          [limits]\nconnections = 10\nidle_time = '5m'\n"
                .parse()
                .expect("good");
        let rules = file.rules().expect("known");
        assert_eq!((rules[0].who.uid, rules[1].who.gid), (Some(0), Some(7)));
        assert_eq!(
            (file.limits.clients.connections, file.limits.clients.idle_time.as_secs()),
            (10, 300)
        );
        let file: File =
            "[[rule]]\nuser = 'nobody-at-all'\nallow = ['use']".parse().expect("not looked up");
        let error = file.rules().expect_err("unknown").to_string();
        assert!(error.contains("nobody-at-all"), "{error}");
    }

    /// docs/configuration.md is also bindonce.toml(5): its examples must parse, and it must name
    /// every key.
    #[test]
    fn the_documentation_knows_every_key() {
        let page = include_str!("../../../../docs/configuration.md");
        let examples: Vec<&str> = page.split("```toml\n").skip(1).collect();
        assert!(examples.len() >= 2);
        for example in examples {
            let text = example.split("```").next().expect("its text");
            text.parse::<File>().unwrap_or_else(|error| panic!("{error}: {text}"));
        }
        for (section, text) in [
            ("the file", "nothing = 1"),
            ("a rule", "[[rule]]\nallow = ['use']\nnothing = 1"),
            ("limits", "[limits]\nnothing = 1"),
        ] {
            let error = text.parse::<File>().expect_err(text).to_string();
            let known = error.rsplit("expected one of ").next().expect("what is known");
            let keys: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
            assert!(keys.len() >= 5, "{error}");
            for key in keys {
                let documented =
                    page.contains(&format!("`{key}`")) || page.contains(&format!("`[{key}]`"));
                assert!(
                    documented || page.contains(&format!("`[[{key}]]`")),
                    "{section}: {key} is missing"
                );
            }
        }
    }
}

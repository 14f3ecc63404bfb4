//! The rules and the limits of a configuration, as written in TOML.

use bindonce_core::duration;
use bindonce_core::policy::{InvalidNames, InvalidPattern, Names, Peer, Rule, UnknownVerb, Who};
use nix::unistd::{Group, User};
use serde::Deserialize;

use super::Limits;

/// Least `buffered_bytes`: one user gets half, and the longest request must fit, with room to grow.
const LEAST_BUFFERED: usize = 4 * bindonce_wire::MAX_REQUEST;

/// A rule as written in the file: its user and group have not been looked up yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenRule {
    user: Option<String>,
    group: Option<String>,
    rule: Rule,
}

impl WrittenRule {
    /// The rule, with its user and group looked up on this system.
    pub(crate) fn resolve(&self) -> Result<Rule, String> {
        let mut rule = self.rule.clone();
        if let Some(name) = &self.user {
            rule.who.uid = match User::from_name(name) {
                Ok(Some(user)) => Some(user.uid.as_raw()),
                Ok(None) => return Err(format!("there is no user {name:?} on this system")),
                Err(error) => return Err(format!("cannot look up the user {name:?}: {error}")),
            };
        }
        if let Some(name) = &self.group {
            rule.who.gid = match Group::from_name(name) {
                Ok(Some(group)) => Some(group.gid.as_raw()),
                Ok(None) => return Err(format!("there is no group {name:?} on this system")),
                Err(error) => return Err(format!("cannot look up the group {name:?}: {error}")),
            };
        }
        Ok(rule)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawRule {
    user: Option<String>,
    uid: Option<u32>,
    group: Option<String>,
    gid: Option<u32>,
    exe: Option<String>,
    unit: Option<String>,
    cgroup: Option<String>,
    allow: Vec<String>,
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    services: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawLimits {
    connections: Option<usize>,
    connections_per_user: Option<usize>,
    connections_without_rights: Option<usize>,
    buffered_bytes: Option<usize>,
    listeners: Option<usize>,
    listeners_per_user: Option<usize>,
    leases_per_user: Option<usize>,
    request_bytes: Option<usize>,
    request_time: Option<String>,
    idle_time: Option<String>,
    retire_time: Option<String>,
    descriptors_in_flight: Option<usize>,
}

impl RawRule {
    pub(crate) fn read(self) -> Result<WrittenRule, String> {
        if self.user.is_some() && self.uid.is_some() {
            return Err("say `user` or `uid`, not both".into());
        }
        if self.group.is_some() && self.gid.is_some() {
            return Err("say `group` or `gid`, not both".into());
        }
        for (given, key) in [(&self.exe, "exe"), (&self.unit, "unit"), (&self.cgroup, "cgroup")] {
            if given.is_some() {
                return Err(format!(
                    "`{key}` gives no right any more, because it can change while a connection \
                     stays: let the program run with a user or a group of its own (User=, \
                     SupplementaryGroups= in its unit), and say `user` or `group`"
                ));
            }
        }
        let Self { user, group, uid, gid, .. } = self;
        let who = Who { uid, gid };
        if who == Who::default() && user.is_none() && group.is_none() {
            return Err("it names no user or group: add user, uid, group or gid".into());
        }
        if [uid, gid].contains(&Some(Peer::UNKNOWN)) {
            return Err(format!("no user and no group has the number {}", Peer::UNKNOWN));
        }
        if self.allow.is_empty() {
            return Err("`allow` is empty: name bind, use, list, release, store or admin".into());
        }
        let verb =
            |text: &String| text.parse().map_err(|error: UnknownVerb| format!("allow: {error}"));
        let pattern = |text: &String| {
            text.parse().map_err(|error: InvalidPattern| format!("addresses: {error}"))
        };
        let names = |key: &str, texts: &[String]| -> Result<Vec<Names>, String> {
            let read = |text: &String| {
                text.parse().map_err(|error: InvalidNames| format!("{key}: {error}"))
            };
            texts.iter().map(read).collect()
        };
        let rule = Rule {
            who,
            names: names("names", &self.names)?,
            services: names("services", &self.services)?,
            allow: self.allow.iter().map(verb).collect::<Result<_, String>>()?,
            addresses: self.addresses.iter().map(pattern).collect::<Result<_, String>>()?,
        };
        Ok(WrittenRule { user, group, rule })
    }
}

impl RawLimits {
    pub(crate) fn read(self) -> Result<Limits, String> {
        let (given, mut limits) = (self, Limits::default());
        // A limit has the same name in the file and in `Limits`.
        macro_rules! set {
            ($limits:expr, $name:ident, $read:expr) => {
                if let Some(given) = given.$name {
                    $limits.$name =
                        $read(given).map_err(|error| format!("{}: {error}", stringify!($name)))?;
                }
            };
        }
        let up_to = |most: usize| {
            move |number: usize| match (1..=most).contains(&number) {
                true => Ok(number),
                false => Err(format!("{number} is not a number from 1 to {most}")),
            }
        };
        let count = up_to(1 << 20);
        let buffered = |bytes: usize| match bytes >= LEAST_BUFFERED {
            true => Ok(bytes),
            false => Err(format!("{bytes} is less than {LEAST_BUFFERED}")),
        };
        let time = |text: String| match duration::parse(&text) {
            Ok(time) if !time.is_zero() => Ok(time),
            Ok(_) => Err("must be greater than zero".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        set!(limits.clients, connections, count);
        set!(limits.clients, connections_per_user, count);
        set!(limits.clients, connections_without_rights, count);
        set!(limits.clients, buffered_bytes, buffered);
        set!(limits.clients, request_bytes, up_to(bindonce_wire::MAX_REQUEST));
        set!(limits.clients, request_time, time);
        set!(limits.clients, idle_time, time);
        set!(limits.clients, descriptors_in_flight, count);
        set!(limits, listeners, count);
        set!(limits, listeners_per_user, count);
        set!(limits, leases_per_user, count);
        set!(limits, retire_time, time);
        Ok(limits)
    }
}

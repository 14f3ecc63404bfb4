//! Listener options that differ between a new generation's lines and those of the serving one. They
//! are changed in place when the new one serves: a failed start leaves the listeners as they are.

use bindonce_core::listener::{Listener, Options};
use bindonce_sys::{limits, process};
use nix::unistd::{getegid, geteuid};

/// A listener that both generations have.
#[derive(Debug)]
pub(crate) struct OptionChange {
    /// The listener as the new generation's line has it.
    pub(crate) listener: Listener,
    /// Its options as the older generation has claimed them.
    pub(crate) was: Options,
}

impl OptionChange {
    /// The listener to ask the broker for. An option that the line no longer sets becomes what
    /// haproxy alone would use (`default`), if the listener exists because of this service.
    pub(crate) fn asked(self, default: Option<&Options>) -> Listener {
        let Self { mut listener, was } = self;
        if let Some(default) = default {
            let options = &mut listener.options;
            options.backlog = options.backlog.or_else(|| was.backlog.and(default.backlog));
            options.mode = options.mode.or_else(|| was.mode.and(default.mode));
            let or = |now: &Option<String>, was: &Option<String>, default: &Option<String>| {
                now.clone().or_else(|| was.as_ref().and(default.clone()))
            };
            options.user = or(&options.user, &was.user, &default.user);
            options.group = or(&options.group, &was.group, &default.group);
        }
        listener
    }
}

/// The options of a socket that this process binds without setting any.
pub(crate) fn default() -> Options {
    Options {
        backlog: Some(limits::somaxconn()),
        mode: process::umask().map(|umask| 0o777 & !umask),
        user: Some(geteuid().to_string()),
        group: Some(getegid().to_string()),
        ..Options::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generations::listeners::read;

    #[test]
    fn what_a_line_does_not_say_any_more_is_as_it_is_without_it() {
        let default: Options = "backlog=4096,mode=0755,user=0,group=0".parse().expect("options");
        for (was, now, ours, expected) in [
            (":80,backlog=5", ":80", true, "0.0.0.0:80,backlog=4096"),
            (":80,backlog=5", ":80", false, "0.0.0.0:80"),
            (":80", ":80,backlog=5", true, "0.0.0.0:80,backlog=5"),
            ("/a,mode=0600,user=7", "/a,user=8", true, "/a,mode=0755,user=8"),
            ("/a,group=7", "/a,mode=0600", true, "/a,mode=0600,group=0"),
        ] {
            let was = read(was).expect(was).options;
            let change = OptionChange { listener: read(now).expect(now), was };
            let asked = change.asked(ours.then_some(&default));
            assert_eq!(Some(&asked), read(expected).as_ref(), "{asked}");
        }
    }
}

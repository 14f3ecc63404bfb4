//! Users and groups that UNIX paths name (`user=`, `group=`), and their numbers.
//!
//! A name service (nscd, sssd, systemd) may take long to answer, or never answer. A process that
//! serves others must not wait for it, so it asks before it opens anything, on another thread and
//! with a deadline ([`Accounts::find`]). A name that has no number keeps only those listeners from
//! being opened that need it. A number in the place of a name needs no name service.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use bindonce_core::address::Address;
use bindonce_core::listener::{Listener, Options};
use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User};
use tokio::sync::Semaphore;

use super::node::FileOwner;
use crate::error::Error;
use crate::{patience, worker};

/// How long the name service may take for all names of one claim. Less than what a broker waits for
/// its requests before an upgrade in place.
const ANSWER: Duration = Duration::from_secs(5);

/// Most lookups at the same time, including those for which nothing waits any more. A name service
/// that does not answer stalls only these threads, and [`worker::within`] keeps most of its threads
/// for other work.
const AT_ONCE: usize = 8;

static PLACES: Semaphore = Semaphore::const_new(AT_ONCE);

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    User,
    Group,
}

/// Why a name has no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unresolved {
    /// There was no answer within [`ANSWER`].
    Late,
    /// This system has no such user or group.
    Unknown,
    /// The lookup failed.
    Failed(Errno),
}

type Found = Result<u32, Unresolved>;

/// The names of users and groups that listeners need, with their numbers once they are looked up.
#[derive(Debug, Default)]
pub struct Accounts {
    users: BTreeMap<String, Found>,
    groups: BTreeMap<String, Found>,
}

impl Accounts {
    /// Adds the names in the options of a listener. They have no numbers before [`Self::find`].
    pub fn add(&mut self, options: &Options) {
        let Self { users, groups } = self;
        for (known, name) in [(users, &options.user), (groups, &options.group)] {
            if let Some(name) = name
                && number(name).is_none()
                && !known.contains_key(name)
            {
                known.insert(name.clone(), Err(Unresolved::Late));
            }
        }
    }

    /// As [`Self::add`], for a held listener whose options become `wanted` in place.
    pub fn add_changed(&mut self, has: &Options, wanted: &Options) {
        if owner_differs(has, wanted) {
            self.add(wanted);
        }
    }

    /// Looks up every name on another thread. Waits 5 s at most, and not at all without names. The
    /// function that needs a name reports why it has no number.
    pub async fn find(&mut self) {
        if !self.is_empty() {
            // Boxed: few claims have names, and every claim would have room for this.
            Box::pin(self.find_by(ANSWER, by_name)).await;
        }
    }

    async fn find_by(
        &mut self,
        limit: Duration,
        ask: impl Fn(Kind, &str) -> Found + Clone + Send + 'static,
    ) {
        let users = self.users.iter_mut().map(|(name, found)| (Kind::User, name, found));
        let groups = self.groups.iter_mut().map(|(name, found)| (Kind::Group, name, found));
        let all = users.chain(groups);
        let asked = async move {
            for (kind, name, found) in all {
                *found = aside(limit, kind, name.clone(), ask.clone()).await;
            }
        };
        // Names that have no answer by then stay late.
        let _ = patience::timeout(limit, asked).await;
    }

    /// The names in these options, looked up on this thread for as long as the name service takes.
    pub(super) fn of(options: &Options) -> Self {
        let mut accounts = Self::default();
        accounts.add(options);
        accounts.users.iter_mut().for_each(|(name, found)| *found = by_name(Kind::User, name));
        accounts.groups.iter_mut().for_each(|(name, found)| *found = by_name(Kind::Group, name));
        accounts
    }

    fn is_empty(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty()
    }

    /// The number of a user or group, which may be its own name.
    fn number(&self, kind: Kind, name: &str) -> Found {
        let known = match kind {
            Kind::User => &self.users,
            Kind::Group => &self.groups,
        };
        // The options of a held listener may change between the lookup and its use. A name that was
        // not looked up then has no answer either.
        let found = || known.get(name).copied().unwrap_or(Err(Unresolved::Late));
        number(name).map_or_else(found, Ok)
    }
}

/// A user or group that was given as a number.
fn number(name: &str) -> Option<u32> {
    name.parse().ok()
}

/// Asks on another thread, which keeps its place until the name service has answered, even if
/// nothing waits for the answer any more.
async fn aside(
    limit: Duration,
    kind: Kind,
    name: String,
    ask: impl Fn(Kind, &str) -> Found + Send + 'static,
) -> Found {
    let place = PLACES.acquire().await;
    let answer = worker::within(limit, move || {
        let found = ask(kind, &name);
        drop(place);
        found
    });
    answer.await.unwrap_or_else(|error| {
        Err(match error.kind() {
            io::ErrorKind::TimedOut => Unresolved::Late,
            // No thread could be started.
            _ => Unresolved::Failed(error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw)),
        })
    })
}

fn by_name(kind: Kind, name: &str) -> Found {
    let found = match kind {
        Kind::User => User::from_name(name).map(|user| user.map(|user| user.uid.as_raw())),
        Kind::Group => Group::from_name(name).map(|group| group.map(|group| group.gid.as_raw())),
    };
    found.map_err(Unresolved::Failed)?.ok_or(Unresolved::Unknown)
}

/// Whether a change of options gives a path to another user or group.
pub(super) fn owner_differs(has: &Options, wanted: &Options) -> bool {
    wanted.user != has.user || wanted.group != has.group
}

/// `user=` and `group=` as numbers.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) user: Option<Uid>,
    pub(super) group: Option<Gid>,
}

impl Owner {
    /// The owner of a listener's path. Asks no name service.
    pub(super) fn of(listener: &Listener, accounts: &Accounts) -> Result<Self, Error> {
        let number = |kind: Kind, name: &str| {
            let found = accounts.number(kind, name);
            found.map_err(|why| refused(why, kind, name, &listener.address))
        };
        let Options { user, group, .. } = &listener.options;
        let user = user.as_deref().map(|name| number(Kind::User, name)).transpose()?;
        let group = group.as_deref().map(|name| number(Kind::Group, name)).transpose()?;
        Ok(Self { user: user.map(Uid::from_raw), group: group.map(Gid::from_raw) })
    }

    pub(super) fn is_set(&self) -> bool {
        self.user.is_some() || self.group.is_some()
    }

    /// What the owner of the path's file must be.
    pub(super) fn of_file(&self) -> FileOwner {
        FileOwner { user: self.user.map(Uid::as_raw), group: self.group.map(Gid::as_raw) }
    }
}

fn refused(why: Unresolved, kind: Kind, name: &str, address: &Address) -> Error {
    let (name, address) = (name.to_owned(), address.clone());
    let kind = match kind {
        Kind::User => "user",
        Kind::Group => "group",
    };
    match why {
        Unresolved::Late => Error::OwnerNotAnswered { kind, name, address, limit: ANSWER },
        Unresolved::Unknown => Error::UnknownOwner { kind, name, address },
        Unresolved::Failed(errno) => Error::OwnerLookup { kind, name, address, errno },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex, mpsc};

    use super::*;

    fn named(text: &str) -> Accounts {
        let mut accounts = Accounts::default();
        accounts.add(&text.parse::<Options>().expect(text));
        accounts
    }

    /// The name service answers for every name but one.
    #[tokio::test(flavor = "current_thread")]
    async fn lookups_that_stall_are_abandoned_and_take_few_threads() {
        let (end, ended) = mpsc::channel::<()>();
        let (ended, stalled) = (Arc::new(Mutex::new(ended)), Arc::new(AtomicUsize::new(0)));
        let begun = Arc::clone(&stalled);
        let ask = move |_: Kind, name: &str| -> Found {
            if name == "slow" {
                begun.fetch_add(1, Ordering::Relaxed);
                let _ = ended.lock().expect("no panic").recv();
            }
            Ok(7)
        };
        for _ in 0..2 * AT_ONCE {
            let mut slow = named("user=slow");
            slow.find_by(Duration::from_millis(10), ask.clone()).await;
            assert_eq!(slow.number(Kind::User, "slow"), Err(Unresolved::Late));
        }
        assert!(stalled.load(Ordering::Relaxed) <= AT_ONCE);
        drop(end);
        let mut quick = named("user=quick,group=quick");
        quick.find_by(Duration::from_secs(60), ask).await;
        assert_eq!(quick.number(Kind::User, "quick"), Ok(7));
        assert_eq!(quick.number(Kind::Group, "quick"), Ok(7));
    }

    #[test]
    fn a_refusal_names_the_user_or_group_and_a_number_needs_no_lookup() {
        let listener = |options: &str| -> Listener {
            format!("unix@/run/a,{options}").parse().expect("a listener")
        };
        for (options, who) in [("user=slow", "user \"slow\""), ("group=slow", "group \"slow\"")] {
            let refused = Owner::of(&listener(options), &named(options)).expect_err(options);
            let text = refused.to_string();
            assert!(text.contains(who), "{text}");
            assert!(text.contains("the name service did not answer within 5s"), "{text}");
            assert!(refused.hint().expect("a hint").contains("number"), "{refused}");
        }
        let numbers = "user=5,group=6";
        assert!(named(numbers).is_empty());
        let owner = Owner::of(&listener(numbers), &Accounts::default()).expect(numbers);
        assert_eq!((owner.user, owner.group), (Some(Uid::from_raw(5)), Some(Gid::from_raw(6))));
    }

    #[test]
    fn a_change_needs_names_only_for_another_owner() {
        let options = |text: &str| -> Options { text.parse().expect(text) };
        for (wanted, is_empty) in [("mode=0660,user=a", true), ("user=a,group=b", false)] {
            let mut accounts = Accounts::default();
            accounts.add_changed(&options("mode=0600,user=a"), &options(wanted));
            assert_eq!(accounts.is_empty(), is_empty, "{wanted}");
        }
    }
}

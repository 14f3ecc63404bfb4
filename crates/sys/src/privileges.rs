//! Gives up root irrevocably, except for the capabilities that listeners need.
//!
//! After [`drop_to`] the process is another user with a few capabilities, and cannot gain more: the
//! bounding set holds no others, and no_new_privs keeps set-user-ID programs from granting any. The
//! capabilities are ambient, so that an upgrade in place (an exec of the next version) has the same
//! and no more.

use std::ffi::CString;
use std::fmt;
use std::str::FromStr;

use bindonce_core::listener::Listener;
use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User, initgroups, setgroups, setresgid, setresuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
};

use crate::error::Error;
use crate::limits;

/// A capability that some listeners or features need (capabilities(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Capability {
    /// Binding a port below net.ipv4.ip_unprivileged_port_start.
    NetBindService,
    /// `interface=` (before Linux 5.7) and `transparent`.
    NetRaw,
    /// Changing the network; nothing here needs it, but the kernel accepts it for `transparent`
    /// too.
    NetAdmin,
    /// `user=` and `group=` of a UNIX path.
    Chown,
    /// Taking descriptors back from processes of other users (pidfd_getfd(2)), and finding the
    /// holders of a socket.
    SysPtrace,
    /// `netns=`.
    SysAdmin,
}

/// Each capability with its name in a configuration and its bit.
const ALL: [(Capability, &str, CapabilitySet); 6] = [
    (Capability::NetBindService, "net_bind_service", CapabilitySet::NET_BIND_SERVICE),
    (Capability::NetRaw, "net_raw", CapabilitySet::NET_RAW),
    (Capability::NetAdmin, "net_admin", CapabilitySet::NET_ADMIN),
    (Capability::Chown, "chown", CapabilitySet::CHOWN),
    (Capability::SysPtrace, "sys_ptrace", CapabilitySet::SYS_PTRACE),
    (Capability::SysAdmin, "sys_admin", CapabilitySet::SYS_ADMIN),
];

/// A word that names no [`Capability`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a capability that bindonce can keep: net_bind_service, net_raw, net_admin, chown, \
     sys_ptrace or sys_admin"
)]
pub struct UnknownCapability(pub String);

impl FromStr for Capability {
    type Err = UnknownCapability;

    fn from_str(text: &str) -> Result<Self, UnknownCapability> {
        let lower = text.to_ascii_lowercase();
        let word = lower.strip_prefix("cap_").unwrap_or(&lower);
        let found = ALL.iter().find(|(_, name, _)| *name == word);
        found.map(|(capability, ..)| *capability).ok_or_else(|| UnknownCapability(text.to_owned()))
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = ALL.iter().find(|(capability, ..)| capability == self).map(|(_, name, _)| *name);
        f.write_str(name.unwrap_or_default())
    }
}

/// The capabilities that these listeners need. A low port may be requested at any time, so the
/// first one is included unless this system lets every process bind every port.
pub fn needed<'a>(listeners: impl IntoIterator<Item = &'a Listener>) -> Vec<Capability> {
    let mut needed = Vec::new();
    if limits::unprivileged_ports() > 1 {
        needed.push(Capability::NetBindService);
    }
    for listener in listeners {
        let options = &listener.options;
        for (named, capability) in [
            (options.interface.is_some() || options.transparent, Capability::NetRaw),
            (options.user.is_some() || options.group.is_some(), Capability::Chown),
            (options.netns.is_some(), Capability::SysAdmin),
        ] {
            if named && !needed.contains(&capability) {
                needed.push(capability);
            }
        }
    }
    needed
}

/// The user to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// The name for looking up supplementary groups; None for a number without a name.
    name: Option<CString>,
}

impl Account {
    /// The account of a user, by name or number; its group is `group`, or else the user's own.
    ///
    /// # Errors
    /// [`Error::UnknownAccount`]; a number without an account needs a group.
    pub fn find(user: &str, group: Option<&str>) -> Result<Self, Error> {
        let unknown = |kind, name: &str| Error::UnknownAccount { kind, name: name.to_owned() };
        let call = |operation| move |errno| Error::call(operation, errno);
        let by_name = User::from_name(user).map_err(call("getpwnam"))?;
        let found = match (by_name, user.parse()) {
            (Some(found), _) => Some(found),
            (None, Ok(uid)) => User::from_uid(Uid::from_raw(uid)).map_err(call("getpwuid"))?,
            (None, Err(_)) => return Err(unknown("user", user)),
        };
        let gid = match group {
            None => found.as_ref().map(|found| found.gid.as_raw()),
            Some(group) => {
                match (Group::from_name(group).map_err(call("getgrnam"))?, group.parse()) {
                    (Some(found), _) => Some(found.gid.as_raw()),
                    (None, Ok(gid)) => Some(gid),
                    (None, Err(_)) => return Err(unknown("group", group)),
                }
            }
        };
        let uid = found.as_ref().map(|found| found.uid.as_raw()).or_else(|| user.parse().ok());
        let (Some(uid), Some(gid)) = (uid, gid) else { return Err(unknown("user", user)) };
        let name = found.and_then(|found| CString::new(found.name).ok());
        Ok(Self { uid, gid, name })
    }
}

/// Becomes `account`, irrevocably, with those capabilities of `keep` that this process has, and no
/// others. Call it while the process has one thread: capabilities belong to threads.
///
/// # Errors
/// `EPERM` without the right to do so. Part of it may have happened: the process must end then.
pub fn drop_to(account: &Account, keep: &[Capability]) -> Result<(), Error> {
    let nix = |operation| move |errno: Errno| Error::call(operation, errno);
    let call = |operation| move |errno: rustix::io::Errno| Error::call(operation, errno);
    let has = capabilities(None).map_err(call("capget"))?.permitted;
    let kept = ALL.iter().filter(|(capability, ..)| keep.contains(capability));
    let kept = kept.map(|(_, _, bit)| *bit).filter(|bit| has.contains(*bit));
    let kept: Vec<CapabilitySet> = kept.collect();
    let set: CapabilitySet = kept.iter().copied().collect();

    // Done while CAP_SETPCAP is available. The kernel refuses the first number that it does not
    // know.
    for number in 0..64 {
        let bit = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(bit) {
            Ok(true) if !set.contains(bit) => {
                remove_capability_from_bounding_set(bit).map_err(call("prctl(PR_CAPBSET_DROP)"))?;
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    set_keep_capabilities(true).map_err(call("prctl(PR_SET_KEEPCAPS)"))?;
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    match &account.name {
        Some(name) => initgroups(name, gid).map_err(nix("initgroups"))?,
        None => setgroups(&[gid]).map_err(nix("setgroups"))?,
    }
    setresgid(gid, gid, gid).map_err(nix("setresgid"))?;
    setresuid(uid, uid, uid).map_err(nix("setresuid"))?;
    let sets = CapabilitySets { effective: set, permitted: set, inheritable: set };
    set_capabilities(None, sets).map_err(call("capset"))?;
    clear_ambient_capability_set().map_err(call("prctl(PR_CAP_AMBIENT)"))?;
    for bit in kept {
        configure_capability_in_ambient_set(bit, true).map_err(call("prctl(PR_CAP_AMBIENT)"))?;
    }
    set_no_new_privs(true).map_err(call("prctl(PR_SET_NO_NEW_PRIVS)"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_need_what_their_options_say() {
        let listeners: Vec<Listener> =
            [":8080,transparent", "/run/a,user=1", ":80,netns=blue", ":81,interface=lo"]
                .map(|text| text.parse().expect(text))
                .into();
        let found = needed(&listeners);
        for capability in [Capability::NetRaw, Capability::Chown, Capability::SysAdmin] {
            assert_eq!(found.iter().filter(|found| **found == capability).count(), 1);
        }
        assert!(!found.contains(&Capability::SysPtrace));
        assert!(needed(&[]).len() <= 1);
    }

    #[test]
    fn names_are_those_of_the_manual_in_any_case() {
        for text in ["net_raw", "CAP_NET_RAW", "cap_net_raw"] {
            assert_eq!(text.parse(), Ok(Capability::NetRaw));
        }
        for (capability, name, _) in ALL {
            assert_eq!(name.parse(), Ok(capability));
            assert_eq!(capability.to_string(), name);
        }
        assert!("sys_module".parse::<Capability>().is_err());
    }

    #[test]
    fn accounts_are_found_by_name_or_number() {
        let root = Account::find("root", None).expect("root");
        assert_eq!((root.uid, root.gid), (0, 0));
        assert_eq!(Account::find("0", None).expect("root"), root);
        let numbers = Account::find("54321", Some("54322")).expect("numbers");
        assert_eq!((numbers.uid, numbers.gid, numbers.name), (54321, 54322, None));
        for (user, group) in [("no-such-user", None), ("54321", None), ("root", Some("no-such"))] {
            let error = Account::find(user, group).expect_err(user);
            assert!(matches!(error, Error::UnknownAccount { .. }), "{error}");
            assert!(error.hint().is_some());
        }
    }
}

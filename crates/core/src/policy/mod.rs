//! Decides who may do what, by the credentials that the kernel attached to the connection when it
//! was made: user and group (SO_PEERCRED, unix(7)) and supplementary groups (SO_PEERGROUPS).
//! Nothing is looked up by process id: by the time of a request the id may belong to another
//! process, and a process may have executed another file.
//!
//! Without rules, root and the user the broker runs as may do everything, everybody else nothing.
//! With rules, only what a rule allows is allowed, for root too. Nothing is cached: each request is
//! judged by itself.

mod pattern;
mod peer;
mod rule;
mod verb;

use crate::listener::ListenSpec;
use crate::name::Name;

pub use pattern::{InvalidPattern, Pattern};
pub use peer::Peer;
pub use rule::{InvalidNames, Names, Rule, Who};
pub use verb::{UnknownVerb, Verb};

/// The answer of a [`Policy`].
#[must_use = "a verdict that nobody looks at allows everything"]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The request may go on.
    Allow,
    /// The request is refused, with this denial.
    Deny(Box<Denial>),
}

impl Verdict {
    /// `Ok` where it allows, for use with `?`.
    ///
    /// # Errors
    /// The denial.
    pub fn into_result(self) -> Result<(), Box<Denial>> {
        match self {
            Self::Allow => Ok(()),
            Self::Deny(denial) => Err(denial),
        }
    }
}

/// Who was refused what. The text is for the refused peer and reveals nothing about the rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{peer} may not {verb} {}: {}",
    .subject.as_ref().map_or_else(|| "listeners".to_owned(), ListenSpec::to_string),
    .owner.map_or_else(|| "no rule allows it".to_owned(), |uid| format!("only root and uid {uid} may"))
)]
pub struct Denial {
    /// Who asked.
    pub peer: Peer,
    /// What the peer wanted to do.
    pub verb: Verb,
    /// The listeners concerned, if the question was about any.
    pub subject: Option<ListenSpec>,
    /// The user the broker runs as, if there are no rules.
    pub owner: Option<u32>,
}

impl Denial {
    /// A rule that would allow it, as written in a configuration.
    pub fn rule_needed(&self) -> String {
        let mut rule =
            format!("[[rule]] uid = {} allow = [\"{}\"]", self.peer.uid, self.verb.word());
        if let Some(spec) = &self.subject {
            rule.push_str(&format!(" addresses = [\"{}\"]", rule::addresses(spec)));
        }
        rule
    }
}

/// The rules of one broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    owner: u32,
    rules: Vec<Rule>,
}

impl Policy {
    /// Root and this user may do everything, everybody else nothing.
    pub fn owner_only(uid: u32) -> Self {
        Self { owner: uid, rules: Vec::new() }
    }

    /// Replaces the rules; without any, the policy is that of [`Policy::owner_only`].
    #[must_use]
    pub fn with_rules(self, rules: Vec<Rule>) -> Self {
        Self { rules, ..self }
    }

    /// Whether `peer` may do `verb` to `subject`; without a subject, to any listener at all.
    pub fn judge(
        &self,
        peer: Peer,
        groups: &[u32],
        verb: Verb,
        subject: Option<&ListenSpec>,
    ) -> Verdict {
        let allowed = if self.rules.is_empty() {
            peer.uid == 0 || (peer.uid == self.owner && self.owner != Peer::UNKNOWN)
        } else {
            self.rules.iter().any(|rule| rule.allows(peer, groups, verb, subject))
        };
        if allowed {
            return Verdict::Allow;
        }
        let owner = self.rules.is_empty().then_some(self.owner);
        Verdict::Deny(Box::new(Denial { peer, verb, subject: subject.cloned(), owner }))
    }

    /// Whether `peer` may do `verb` to every possible listener. No rule that names addresses allows
    /// that.
    pub fn judge_all(&self, peer: Peer, groups: &[u32], verb: Verb) -> Verdict {
        let verdict = self.judge(peer, groups, verb, None);
        let all = |rule: &Rule| rule.addresses.is_empty() && rule.allows(peer, groups, verb, None);
        if self.rules.is_empty() || self.rules.iter().any(all) {
            return verdict;
        }
        Verdict::Deny(Box::new(Denial { peer, verb, subject: None, owner: None }))
    }

    /// Whether this user may take names back from others: only root and the broker's user may.
    pub fn owns_names(&self, uid: u32) -> bool {
        owns_names(self.owner, uid)
    }

    /// Whether `peer` may give a listener this name.
    pub fn may_name(&self, peer: Peer, groups: &[u32], name: &Name) -> bool {
        let allows = |rule: &Rule| rule.allows_name(peer, groups, |rule| &rule.names, name);
        self.owns_names(peer.uid) || self.rules.iter().any(allows)
    }

    /// Whether `peer` may join this service, whichever user has it.
    pub fn may_join(&self, peer: Peer, groups: &[u32], service: &Name) -> bool {
        let allows = |rule: &Rule| rule.allows_name(peer, groups, |rule| &rule.services, service);
        self.owns_names(peer.uid) || self.rules.iter().any(allows)
    }

    /// Whether `peer` may do anything at all.
    pub fn knows(&self, peer: Peer, groups: &[u32]) -> bool {
        Verb::ALL.into_iter().any(|verb| self.judge(peer, groups, verb, None) == Verdict::Allow)
    }
}

/// Whether a user is root, or `owner`, the user the broker runs as.
pub fn owns_names(owner: u32, uid: u32) -> bool {
    uid == 0 || (uid == owner && uid != Peer::UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32) -> Peer {
        Peer { pid: 7, uid, gid: 70 }
    }

    fn spec(text: &str) -> ListenSpec {
        text.parse().expect(text)
    }

    #[test]
    fn without_rules_root_and_the_owner_may_everything_others_nothing() {
        let policy = Policy::owner_only(100);
        let subject = spec(":80");
        for verb in Verb::ALL {
            for (uid, allowed) in [(0, true), (100, true), (1, false), (Peer::UNKNOWN, false)] {
                let verdict = policy.judge(peer(uid), &[], verb, Some(&subject));
                assert_eq!(verdict == Verdict::Allow, allowed, "{verb} {uid}");
            }
        }
        let denied = policy.judge(peer(5), &[], Verb::Bind, Some(&subject));
        let denial = denied.into_result().expect_err("denied");
        let text = "uid 5 (pid 7) may not bind 0.0.0.0:80: only root and uid 100 may";
        assert_eq!(denial.to_string(), text);
    }

    #[test]
    fn with_rules_only_what_they_say_is_allowed() {
        let rule = |who, allow: &[Verb], addresses: &[&str]| Rule {
            who,
            allow: allow.to_vec(),
            addresses: addresses.iter().map(|text| text.parse().expect("pattern")).collect(),
            names: Vec::new(),
            services: Vec::new(),
        };
        let www = Who { uid: Some(33), ..Who::default() };
        let haproxy = Who { uid: Some(9), gid: Some(90) };
        let unknown = Who { uid: Some(Peer::UNKNOWN), ..Who::default() };
        let policy = Policy::owner_only(100).with_rules(vec![
            rule(www, &[Verb::Bind, Verb::Release], &["*:8000-8999", "/run/www/*"]),
            rule(haproxy, &[Verb::Use, Verb::List], &[]),
            rule(unknown, &Verb::ALL, &[]),
            rule(Who::default(), &Verb::ALL, &[]),
        ]);
        let none: [u32; 0] = [];
        let may = |uid, groups: &[u32], verb, text: &str| {
            policy.judge(peer(uid), groups, verb, Some(&spec(text))) == Verdict::Allow
        };
        assert!(may(33, &none, Verb::Bind, ":8080") && may(33, &none, Verb::Bind, ":8000-8999"));
        assert!(may(33, &none, Verb::Use, ":8080"), "who may bind may use");
        assert!(may(33, &none, Verb::Release, "/run/www/a"));
        assert!(!may(33, &none, Verb::Bind, ":80") && !may(33, &none, Verb::Bind, ":8999-9000"));
        assert!(!may(33, &none, Verb::List, ":8080") && !may(33, &none, Verb::Store, ":8080"));
        // Nobody else, not even root and the owner.
        assert!(!may(0, &none, Verb::Bind, ":8080") && !may(100, &none, Verb::Admin, ":8080"));
        // A peer whose id is unknown here matches no rule, and a rule without a condition matches
        // no peer.
        assert!(!may(Peer::UNKNOWN, &none, Verb::Use, ":1"));
        // Every condition of a rule must hold.
        let groups = [5, 90];
        assert!(may(9, &groups, Verb::Use, ":1") && !may(9, &groups, Verb::Bind, ":1"));
        assert!(!may(9, &[5], Verb::Use, ":1") && !may(8, &groups, Verb::Use, ":1"));
        assert!(policy.knows(peer(33), &none) && !policy.knows(peer(0), &none));
        // Only a rule without addresses covers every listener.
        assert_eq!(policy.judge_all(peer(9), &groups, Verb::List), Verdict::Allow);
        assert_eq!(policy.judge(peer(33), &none, Verb::Release, None), Verdict::Allow);
        assert_ne!(policy.judge_all(peer(33), &none, Verb::Release), Verdict::Allow);
        assert_ne!(policy.judge_all(peer(9), &none, Verb::List), Verdict::Allow);
        let denied = policy.judge(peer(5), &none, Verb::Bind, Some(&spec("web=:80-82,backlog=9")));
        let denial = denied.into_result().expect_err("denied");
        assert!(denial.to_string().ends_with("no rule allows it"), "{denial}");
        let needed = r#"[[rule]] uid = 5 allow = ["bind"] addresses = ["0.0.0.0:80-82"]"#;
        assert_eq!(denial.rule_needed(), needed);
    }

    #[test]
    fn a_name_is_for_whom_a_rule_says_it_and_for_root_and_the_owner() {
        let names =
            |texts: &[&str]| texts.iter().map(|text| text.parse().expect("names")).collect();
        let rule = Rule {
            who: Who { uid: Some(33), ..Who::default() },
            allow: vec![Verb::Bind],
            addresses: Vec::new(),
            names: names(&["web", "app-*"]),
            services: names(&["*"]),
        };
        let other = Rule { names: Vec::new(), services: Vec::new(), ..rule.clone() };
        let other = Rule { who: Who { uid: Some(34), ..Who::default() }, ..other };
        let policy = Policy::owner_only(100).with_rules(vec![rule, other]);
        let named = |uid, name: &str| policy.may_name(peer(uid), &[], &name.parse().expect(name));
        let joins = |uid, name: &str| policy.may_join(peer(uid), &[], &name.parse().expect(name));
        assert!(named(33, "web") && named(33, "app-1") && !named(33, "web2") && !named(33, "ap"));
        assert!(joins(33, "haproxy"));
        for (uid, may) in [(0, true), (100, true), (34, false), (5, false), (Peer::UNKNOWN, false)]
        {
            assert_eq!((named(uid, "web"), joins(uid, "haproxy")), (may, may), "{uid}");
        }
        for bad in ["", "a b", "*a", "a*b", "1-*", "-*"] {
            assert!(bad.parse::<Names>().is_err(), "{bad}");
        }
    }
}

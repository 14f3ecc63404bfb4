//! Sections: which lines belong together, and what a section inherits from `defaults`.

use std::collections::BTreeMap;

use super::Place;
use super::binds::BindLine;
use super::options::BindOptions;
use super::rendering::LeftAlone;
use super::server_state::Loads;

/// The kinds of sections, as far as listeners are concerned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Kind {
    Global,
    Defaults,
    /// `frontend`, `listen`, and `backend`: haproxy warns about a `bind` line
    /// there, and listens all the same (seen with 2.6.12).
    Proxy,
    Peers,
    LogForward,
    /// A section without listeners: all others, and the lines before the first section.
    #[default]
    Other,
}

impl Kind {
    /// The kind of section that a keyword opens, if it opens one (2.6 to 3.5-dev5).
    pub(super) fn of(keyword: &[u8]) -> Option<Self> {
        Some(match keyword {
            b"global" => Self::Global,
            b"defaults" => Self::Defaults,
            b"frontend" | b"listen" | b"backend" => Self::Proxy,
            b"peers" => Self::Peers,
            b"log-forward" => Self::LogForward,
            b"acme" | b"cache" | b"crt-store" | b"fcgi-app" | b"healthcheck" | b"http-errors"
            | b"log-profile" | b"mailers" | b"namespace_list" | b"program" | b"resolvers"
            | b"ring" | b"traces" | b"userlist" => Self::Other,
            _ => return None,
        })
    }
}

/// The settings of `defaults` that matter here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Proxy {
    /// `backlog`, for bind lines without their own.
    pub(super) backlog: Option<u32>,
    /// Whether the proxy is `disabled`.
    pub(super) disabled: bool,
    /// The source of the servers' state.
    pub(super) loads: Loads,
}

/// An open section.
#[derive(Debug, Clone, Default)]
pub(super) struct Section {
    pub(super) kind: Kind,
    /// The keyword and the name: `frontend web`.
    pub(super) label: String,
    /// The value of haproxy's `.SECTION`: `web`.
    pub(super) name: Vec<u8>,
    pub(super) proxy: Proxy,
    /// `default-bind` of `peers`.
    pub(super) default_bind: BindOptions,
    pub(super) lines: Vec<BindLine>,
    /// The local peer's address on a `peer` line: haproxy binds it itself.
    pub(super) own: Vec<LeftAlone>,
    /// Whether a line of `peers` names the local peer.
    pub(super) local_peer: bool,
    /// Whether it is a backend with at least one server.
    pub(super) has_servers: bool,
}

/// The open section, and what earlier sections have set.
#[derive(Debug, Default)]
pub(super) struct Sections {
    pub(super) open: Section,
    /// The first `program` section.
    pub(super) program: Option<(String, Place)>,
    defaults: BTreeMap<Vec<u8>, Proxy>,
    last_defaults: Proxy,
}

impl Sections {
    /// Opens a section on its first line.
    pub(super) fn begin(&mut self, kind: Kind, words: &[&[u8]], place: &Place) {
        self.open = Section::open(kind, words, &self.defaults, &self.last_defaults);
        if words[0] == b"program" {
            self.program.get_or_insert_with(|| (self.open.label.clone(), place.clone()));
        }
    }

    /// Ends the open section: all its lines are known now.
    pub(super) fn end(&mut self) -> Section {
        let section = std::mem::take(&mut self.open);
        if section.kind == Kind::Defaults {
            self.last_defaults = section.proxy.clone();
            self.defaults.insert(section.name.clone(), section.proxy.clone());
        }
        section
    }
}

impl Section {
    /// Opens a section on its first line.
    fn open(
        kind: Kind,
        words: &[&[u8]],
        defaults: &BTreeMap<Vec<u8>, Proxy>,
        last: &Proxy,
    ) -> Self {
        let name = words.get(1).copied().unwrap_or_default();
        let from = words.iter().position(|word| *word == b"from").filter(|&at| at > 0);
        let parent = from.and_then(|at| words.get(at + 1));
        let proxy = match (kind, parent) {
            (Kind::Proxy | Kind::Defaults, Some(parent)) => {
                defaults.get(*parent).cloned().unwrap_or_default()
            }
            (Kind::Proxy, None) => last.clone(),
            _ => Proxy::default(),
        };
        let label = [words[0], name].join(&b' ');
        Self {
            kind,
            label: String::from_utf8_lossy(&label).trim_end().to_owned(),
            name: if name.is_empty() { words[0] } else { name }.to_vec(),
            proxy,
            ..Self::default()
        }
    }

    /// Takes a line that has no address.
    pub(super) fn keyword(&mut self, words: &[&[u8]]) {
        let proxy = matches!(self.kind, Kind::Proxy | Kind::Defaults);
        if proxy {
            self.proxy.loads.take(words);
        }
        match words[0] {
            b"backlog" if proxy || self.kind == Kind::LogForward => {
                let mut own = BindOptions::default();
                own.take(b"backlog", words.get(1).copied().unwrap_or_default());
                self.proxy.backlog = own.backlog;
            }
            b"disabled" if proxy || self.kind == Kind::Peers => self.proxy.disabled = true,
            b"enabled" if proxy || self.kind == Kind::Peers => self.proxy.disabled = false,
            b"default-bind" if self.kind == Kind::Peers => {
                self.default_bind =
                    BindOptions::read(words[1..].iter().copied()).or(&self.default_bind);
            }
            b"server" | b"server-template" if self.kind == Kind::Proxy => {
                // haproxy ignores servers in a frontend, with a warning.
                self.has_servers = !self.label.starts_with("frontend");
            }
            _ => {}
        }
    }

    /// Whether the section may load the state of servers: only backends with servers that are not
    /// disabled do.
    pub(super) fn loads_server_states(&self) -> bool {
        self.kind == Kind::Proxy && self.has_servers && !self.proxy.disabled
    }

    /// Why haproxy does not listen on the section's bind lines at all, if it does not.
    pub(super) fn idle(&self) -> Option<&'static str> {
        if self.proxy.disabled {
            Some("the section is disabled, so haproxy does not listen")
        } else if self.kind == Kind::Peers && !self.local_peer {
            Some("no line names the local peer, so haproxy drops the section")
        } else {
            None
        }
    }

    /// The section's default options for bind lines. `unix-bind` applies to proxies only.
    pub(super) fn defaults(&self, unix: &BindOptions) -> BindOptions {
        let mut own = match self.kind {
            Kind::Proxy => unix.clone(),
            _ => self.default_bind.clone(),
        };
        own.backlog = own.backlog.or(self.proxy.backlog);
        own
    }
}

//! Takes one line of the configuration: it begins a section, binds an address, or changes something
//! for the lines after it.

use std::collections::BTreeSet;
use std::ops::Range;

use bindonce_core::address::Address;

use super::{Here, Walk};
use crate::config::address::is_descriptor;
use crate::config::binds::{self, BindLine, Surroundings};
use crate::config::claims::{Claims, left_alone};
use crate::config::options::BindOptions;
use crate::config::own_sockets;
use crate::config::quoting::printable;
use crate::config::reader::Word;
use crate::config::rendering::LeftAlone;
use crate::config::sections::{Kind, Section};
use crate::config::state::Done;
use crate::config::{ADMIN_CONNECTIONS, Error};

/// Why addresses for QUIC are left to haproxy.
const NO_QUIC: &str =
    "this haproxy takes no descriptor for QUIC: 2.8 and later do, where QUIC is built in";
/// Why `mptcp@` and `abnsz@` are left to haproxy.
const TOO_OLD: &str = "haproxy knows this family of addresses from 3.1 on";
const QUIC_OFF: &str = "the global section has switched QUIC off";

impl Walk<'_> {
    pub(super) fn line(&mut self, here: Here<'_>) -> Result<(), Error> {
        let Here { words, line, offset, place, .. } = here;
        let values = here.values();
        if let Some(kind) = Kind::of(values[0]) {
            if !self.first_pass {
                self.end_section()?;
                self.state.has_peers |= kind == Kind::Peers;
            }
            self.sections.begin(kind, &values, place);
            return Ok(());
        }
        let section = &mut self.sections.open;
        if section.kind == Kind::Global {
            return self.global(here);
        }
        if self.first_pass {
            return Ok(());
        }
        if section.kind == Kind::Proxy {
            self.global.stats_file.line(&section.name, &values);
        }
        let written = |word: Option<&Word>| {
            word.map_or(String::new(), |word| printable(&line[word.source.clone()]))
        };
        match (section.kind, values[0]) {
            (Kind::Defaults, b"bind") => {
                let reason = "haproxy does not allow bind in defaults";
                let left = left_alone(section, place, written(words.get(1)), reason);
                self.claims.left_alone.push(left);
            }
            (Kind::Proxy | Kind::Peers | Kind::LogForward, b"bind")
            | (Kind::LogForward, b"dgram-bind")
                if values.get(1).is_some_and(|word| !word.is_empty()) =>
            {
                let read = binds::read(words, line, offset, place.clone(), &self.surroundings())?;
                self.sections.open.lines.push(read);
            }
            (Kind::Peers, b"peer" | b"server")
                if values.get(1) == Some(&self.state.local_peer()) =>
            {
                section.local_peer = true;
                if values[0] == b"peer" {
                    let reason = "haproxy binds the address of the local peer by itself; write bind and server lines to share it";
                    let text = written(words.get(2));
                    let own =
                        values.get(2).map(|word| binds::own_addresses(word, &self.surroundings()));
                    let left = left_alone(&self.sections.open, place, text, reason);
                    let own = own.unwrap_or_default();
                    self.sections.open.own.push(LeftAlone { own, ..left });
                }
            }
            (Kind::Proxy, b"server") if values.get(2).is_some_and(|word| is_descriptor(word)) => {
                section.keyword(&values);
                let text = format!("server {}", printable(values[2]));
                self.claims.left_alone.push(LeftAlone {
                    descriptor: Some("cannot use file descriptor : Bad file descriptor".to_owned()),
                    listens: false,
                    ..left_alone(section, place, text, "a descriptor from outside")
                });
            }
            _ => section.keyword(&values),
        }
        Ok(())
    }

    /// Takes a line of `global`, which may change something for the lines after it.
    fn global(&mut self, here: Here<'_>) -> Result<(), Error> {
        let Here { source, words, offset, place, .. } = here;
        let values = here.values();
        if values[0] == b"localpeer" && self.input.command.local_peer.is_some() {
            return Ok(());
        }
        let looked = self.state.marks().looked;
        let made = self.claims.variables.len();
        let late = match self.state.global(&values, self.first_pass) {
            Done::Environment => looked,
            Done::Reset => looked || made > 0,
            Done::ByPasses => true,
            Done::Nothing | Done::Other => false,
        };
        // The lines before this one depend on whether haproxy has two passes and so has taken this
        // line already.
        if late {
            self.unknowns.depend();
        }
        if values[0] == b"resetenv" {
            self.edits.reset(words, offset, place, source, made);
        }
        if self.first_pass {
            return Ok(());
        }
        if values[0] == b"master-worker" && !self.has_master() {
            // The supervisor takes the place of that master.
            let Range { start, end } = words[0].source;
            self.edits.edit(offset + start..offset + end, b"#master-worker".to_vec());
        }
        if let [b"stats", b"maxconn", most, ..] = values.as_slice() {
            // haproxy refuses all but a positive C int, in its own words.
            let room = u64::from(i32::MAX.unsigned_abs()) - ADMIN_CONNECTIONS;
            let most = str::from_utf8(most).ok().and_then(|most| most.parse::<u64>().ok());
            if let Some(most) = most.filter(|most| (1..=room).contains(most)) {
                let Range { start, end } = words[2].source;
                let most = most + ADMIN_CONNECTIONS;
                self.edits.edit(offset + start..offset + end, most.to_string().into_bytes());
            }
            return Ok(());
        }
        if let [b"stats", b"socket", rest @ ..] = values.as_slice() {
            let address = rest.first().copied().unwrap_or_default();
            return self.stats_socket(address, here);
        }
        if let Some((range, text)) = self.global.take(words, &place.file, self.edits.copy(), offset)
        {
            self.edits.edit(range, text);
        }
        Ok(())
    }

    /// haproxy binds an admin socket itself, unless it is on a descriptor.
    fn stats_socket(&mut self, address: &[u8], here: Here<'_>) -> Result<(), Error> {
        let Here { words, line, offset, place, .. } = here;
        let reason = "an admin socket belongs to one generation; the newest has it";
        let text = format!("stats socket {}", printable(address));
        let (mut descriptor, mut bound) = (None, None);
        let own = {
            // `unix-bind prefix` does not apply to admin sockets.
            let around = Surroundings { prefix: b"", ..self.surroundings() };
            let own = binds::own_addresses(address, &around);
            if address.split(|&byte| byte == b',').any(is_descriptor) {
                let mut read = binds::read(&words[1..], line, offset, place.clone(), &around)?;
                read.leave_addresses(reason);
                descriptor = read.foreign();
                bound = descriptor.is_none().then_some(read);
            } else if own.iter().any(|own| own.port().is_some()) {
                let marks = self.state.marks();
                let read = binds::read(&words[1..], line, offset, place.clone(), &around);
                self.state.restore(marks);
                // An error in the line is left to haproxy to report.
                let section = read.ok().map(|bound| self.of_stats_socket(bound));
                let place = (self.edits.copy(), self.claims.left_alone.len());
                drop(around);
                self.stats_sockets.extend(section.map(|section| (place.0, place.1, section)));
            }
            own
        };
        if let Some(bound) = bound {
            let section = self.of_stats_socket(bound);
            return self.claim(&section);
        }
        let left = left_alone(&self.sections.open, place, text, reason);
        self.claims.left_alone.push(LeftAlone { descriptor, own, ..left });
        Ok(())
    }

    /// An admin socket that is a listener like any other: on a descriptor that haproxy inherits, or
    /// at an address that overlaps one of the broker's.
    fn of_stats_socket(&self, bound: BindLine) -> Section {
        let open = &self.sections.open;
        let section = Section { kind: open.kind, label: open.label.clone(), ..Section::default() };
        Section { lines: vec![bound], ..section }
    }

    /// Claims the listeners of a section.
    fn claim(&mut self, section: &Section) -> Result<(), Error> {
        let unix =
            if section.kind == Kind::Global { &BindOptions::default() } else { &self.global.unix };
        for (range, text) in self.claims.section(section, unix, self.input.world, &self.unknowns)? {
            self.edits.edit(range, text);
        }
        Ok(())
    }

    /// Claims the admin sockets that overlap a listener of the broker, beside which haproxy could
    /// not bind them itself.
    pub(super) fn claim_stats_sockets(&mut self) -> Result<(), Error> {
        let unix = BindOptions::default();
        let mut claimed = BTreeSet::new();
        let overlaps = |claims: &Claims, left: usize| {
            let own = claims.left_alone.get(left).map(|left| left.own.as_slice());
            own.unwrap_or_default().iter().any(|own| own_sockets::overlaps(own, &claims.bindings))
        };
        // A socket claimed here may overlap a further one.
        while let Some(at) =
            self.stats_sockets.iter().position(|(_, left, _)| overlaps(&self.claims, *left))
        {
            let (copy, left, section) = self.stats_sockets.remove(at);
            claimed.insert(left);
            for (range, text) in
                self.claims.section(&section, &unix, self.input.world, &self.unknowns)?
            {
                self.edits.add(copy, range, text);
            }
        }
        for left in claimed.into_iter().rev() {
            self.claims.left_alone.remove(left);
        }
        Ok(())
    }

    fn before_3_1(&self) -> Option<&'static str> {
        (!self.unknowns.holds(b"version_atleast(3.1)")).then_some(TOO_OLD)
    }

    /// The context outside its line that an address depends on.
    fn surroundings(&self) -> Surroundings<'_> {
        // Whether haproxy resolves host names with getaddrinfo() here.
        let getaddrinfo =
            !self.input.has_argument(b"-dG") && self.state.enabled(b"GETADDRINFO") != Some(false);
        // Both terms are looked up before the match, so that one round of questions covers both.
        let no_quic = || {
            let terms = [&b"feature(QUIC)"[..], b"version_atleast(2.8)"];
            match terms.map(|term| self.unknowns.holds(term)) {
                _ if self.quic_is_off => Some(QUIC_OFF),
                [true, true] => None,
                _ => Some(NO_QUIC),
            }
        };
        Surroundings {
            world: self.input.world,
            state: &self.state,
            getaddrinfo,
            directory: &self.input.directory,
            prefix: self.global.prefix.as_deref().unwrap_or_default(),
            missing: self.input.missing,
            no_quic: Box::new(no_quic),
            own: Box::new(move |wanted| match &wanted.first {
                Address::Quic(_) => no_quic(),
                Address::Unpadded(_) => self.before_3_1(),
                _ if wanted.mptcp => self.before_3_1(),
                _ => None,
            }),
        }
    }

    /// Ends a section: all its lines are known now.
    pub(super) fn end_section(&mut self) -> Result<(), Error> {
        let section = self.sections.end();
        if section.loads_server_states() {
            self.global.server_states.loaded_by(&section.name, &section.proxy.loads);
        }
        self.claim(&section)
    }
}

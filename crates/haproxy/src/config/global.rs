//! Lines of `global`, and what they change for the lines after them.

use std::os::unix::ffi::OsStrExt as _;

use super::Place;
use super::reader::{Word, printable};
use super::state::Done;
use super::walk::Walk;

impl Walk<'_> {
    pub(super) fn global(
        &mut self,
        words: &[Word],
        values: &[&[u8]],
        offset: usize,
        place: &Place,
    ) {
        let value = |index: usize| values.get(index).copied().unwrap_or_default();
        if values[0] == b"localpeer" && self.command.local_peer.is_some() {
            return;
        }
        let looked = self.state.marks().looked;
        let done = self.state.global(values, self.first_pass);
        let late = match done {
            Done::Environment => looked,
            Done::Reset => looked || !self.out.variables.is_empty(),
            Done::Nothing | Done::Other => false,
        };
        // It matters whether haproxy has done this already when it comes to the lines before.
        self.asks.set(self.asks.get() || (late && self.answers.is_none()));
        if values[0] == b"resetenv" {
            self.reset(words, offset, place);
        }
        if self.first_pass {
            return;
        }
        match values[0] {
            b"unix-bind" => {
                for pair in values[1..].chunks(2) {
                    match pair {
                        [b"prefix", prefix] => {
                            self.prefix.get_or_insert_with(|| prefix.to_vec());
                        }
                        [option, value] => {
                            self.unix.take(option, value);
                        }
                        _ => {}
                    }
                }
            }
            b"stats" if value(1) == b"socket" => {
                let reason = "an admin socket belongs to one generation; the newest has it";
                let text = format!("stats socket {}", printable(value(2)));
                let descriptor = value(2).split(|&byte| byte == b',').any(is_descriptor);
                self.left_alone(text, place, reason, descriptor);
            }
            b"default-path" => {
                let file = place.file.clone();
                if let Some(text) = self.path.set(&file, value(1), value(2)) {
                    let source = &words[1].source;
                    self.edit(offset + source.start..offset + source.end, text);
                }
            }
            b"daemon" => self.pid_file.daemon(),
            b"pidfile" => {
                let source = &words[0].source;
                let keyword = offset + source.start..offset + source.end;
                self.pid_file.take(value(1), self.out.files.len() - 1, keyword);
            }
            keyword => self.server_states.take(keyword, value(1)),
        }
    }

    /// Whether haproxy asks getaddrinfo() for host names here.
    pub(super) fn uses_getaddrinfo(&self) -> bool {
        let disabled = |word: &std::ffi::OsString| word.as_bytes().starts_with(b"-dG");
        !self.command.arguments.iter().any(disabled)
            && self.state.enabled(b"GETADDRINFO") != Some(false)
    }
}

/// Whether an address is the number of a descriptor.
pub(super) fn is_descriptor(address: &[u8]) -> bool {
    let heads: [&[u8]; 3] = [b"stream+", b"dgram+", b"quic+"];
    let bare = heads.iter().find_map(|head| address.strip_prefix(*head)).unwrap_or(address);
    bare.starts_with(b"fd@") || bare.starts_with(b"sockpair@")
}

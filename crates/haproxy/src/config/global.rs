//! The settings of `global` for later sections and for the start, apart from
//! [`super::state::State`].

use std::ops::Range;
use std::path::Path;

use super::default_path::DefaultPath;
use super::options::BindOptions;
use super::pid_file::PidFile;
use super::reader::Word;
use super::server_state::ServerStates;
use super::stats_file;

#[derive(Debug, Default)]
pub(super) struct Global {
    /// `unix-bind prefix`.
    pub(super) prefix: Option<Vec<u8>>,
    /// The options of `unix-bind`.
    pub(super) unix: BindOptions,
    pub(super) path: DefaultPath,
    pub(super) server_states: ServerStates,
    pub(super) stats_file: stats_file::Reading,
    pub(super) pid_file: PidFile,
    /// `mworker-max-reloads`: the last such line counts.
    pub(super) max_reloads: Option<u64>,
    /// Whether there is a `cluster-secret`.
    pub(super) has_cluster_secret: bool,
    /// Whether haproxy does not listen for QUIC. The last such line applies to all addresses,
    /// earlier ones too.
    pub(super) no_quic: bool,
}

impl Global {
    /// Takes a line of `file`, which begins at `offset` in the copy with this number. Gives the
    /// change to the copy, if one is needed.
    pub(super) fn take(
        &mut self,
        words: &[Word],
        file: &Path,
        copy: usize,
        offset: usize,
    ) -> Option<(Range<usize>, Vec<u8>)> {
        let value = |index: usize| words.get(index).map_or(&[][..], |word| &word.value);
        let place = |index: usize| {
            let source: &Range<usize> = &words[index].source;
            offset + source.start..offset + source.end
        };
        match value(0) {
            b"unix-bind" => {
                for pair in words[1..].chunks(2) {
                    match pair {
                        [option, value] if option.value == b"prefix" => {
                            self.prefix.get_or_insert_with(|| value.value.clone());
                        }
                        [option, value] => drop(self.unix.take(&option.value, &value.value)),
                        _ => {}
                    }
                }
            }
            b"default-path" => {
                let text = self.path.set(file, value(1), value(2))?;
                return Some((place(1), text));
            }
            b"cluster-secret" => self.has_cluster_secret = true,
            b"stats-file" => self.stats_file.take(value(1)),
            b"no-quic" => self.no_quic = true,
            b"tune.quic.listen" => self.no_quic = value(1) == b"off",
            b"daemon" => self.pid_file.is_daemon = true,
            b"mworker-max-reloads" => {
                let most = std::str::from_utf8(value(1)).ok().and_then(|text| text.parse().ok());
                self.max_reloads = most.or(self.max_reloads);
            }
            b"pidfile" => self.pid_file.take(value(1), copy, place(0)),
            keyword => self.server_states.take(keyword, value(1)),
        }
        None
    }
}

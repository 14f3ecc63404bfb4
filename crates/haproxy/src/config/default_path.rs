//! `default-path`: keeps the meaning of relative paths although the copy that haproxy reads is in
//! another directory.
//!
//! `config` and `parent` are relative to their own file, and haproxy applies them again at the
//! start of every further file. In the copy they become `origin` with the directory of the user's
//! file. Where a further file is in another directory, a file of two lines is inserted before it.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::quoting::quoted;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Mode {
    /// `current`, which is the default, or `origin`: independent of the file.
    #[default]
    Fixed,
    Config,
    Parent,
}

/// haproxy's current mode, and the directory that the copies have set.
#[derive(Debug, Clone, Default)]
pub(super) struct DefaultPath {
    mode: Mode,
    origin: Vec<u8>,
}

impl DefaultPath {
    /// Takes a `default-path` line of `file`. Gives the replacement for its second word, if it
    /// needs one.
    pub(super) fn set(&mut self, file: &Path, mode: &[u8], origin: &[u8]) -> Option<Vec<u8>> {
        self.mode = match mode {
            b"config" => Mode::Config,
            b"parent" => Mode::Parent,
            b"current" => Mode::Fixed,
            b"origin" => {
                self.origin = origin.to_vec();
                Mode::Fixed
            }
            // haproxy refuses the line.
            _ => return None,
        };
        if self.mode == Mode::Fixed {
            return None;
        }
        self.origin = self.directory(file);
        Some([b"origin ", &quoted(&self.origin)[..]].concat())
    }

    /// The text to insert before a further file.
    pub(super) fn start_of(&mut self, file: &Path) -> Option<Vec<u8>> {
        if self.mode == Mode::Fixed {
            return None;
        }
        let directory = self.directory(file);
        if directory == self.origin {
            return None;
        }
        self.origin = directory;
        let text = [b"global\n    default-path origin ", &quoted(&self.origin)[..], b"\n"];
        Some(text.concat())
    }

    /// The directory as haproxy takes it from the path: everything before the last slash. Without
    /// one, and for a file in `/`, it is the directory in which haproxy was started.
    fn directory(&self, file: &Path) -> Vec<u8> {
        let path = file.as_os_str().as_bytes();
        let slash = path.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
        let mut directory = path[..slash].to_vec();
        match (self.mode, directory.is_empty()) {
            (Mode::Parent, true) => directory.extend(b".."),
            (Mode::Parent, false) => directory.extend(b"/.."),
            (_, true) => directory.push(b'.'),
            (_, false) => {}
        }
        directory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_its_directory() {
        for (file, config, parent) in [
            ("/etc/haproxy/a.cfg", "/etc/haproxy", "/etc/haproxy/.."),
            ("conf/a.cfg", "conf", "conf/.."),
            ("a.cfg", ".", ".."),
            ("/a.cfg", ".", ".."),
        ] {
            let file = Path::new(file);
            let set = |mode: &[u8]| DefaultPath::default().set(file, mode, b"");
            assert_eq!(set(b"config"), Some(format!("origin \"{config}\"").into_bytes()));
            assert_eq!(set(b"parent"), Some(format!("origin \"{parent}\"").into_bytes()));
            assert_eq!(set(b"current"), None);
        }
    }

    #[test]
    fn a_further_file_elsewhere_starts_anew() {
        let mut path = DefaultPath::default();
        assert_eq!(path.start_of(Path::new("/a/1.cfg")), None);
        path.set(Path::new("/a/1.cfg"), b"config", b"");
        assert_eq!(path.start_of(Path::new("/a/2.cfg")), None);
        let text = path.start_of(Path::new("/b/3.cfg")).expect("another directory");
        assert_eq!(text, b"global\n    default-path origin \"/b\"\n");
        path.set(Path::new("/b/3.cfg"), b"origin", b"/x");
        assert_eq!(path.start_of(Path::new("/c/4.cfg")), None);
    }
}

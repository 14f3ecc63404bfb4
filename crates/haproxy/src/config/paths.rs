//! Puts the user's paths back into haproxy's output.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Maps each rendered file to the user's file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PathMap {
    /// Rendered path and user's path, longest rendered path first, so that no path matches the
    /// beginning of a longer one.
    pairs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl PathMap {
    /// Builds the map from pairs of (rendered path, user's path).
    pub(super) fn new<I: IntoIterator<Item = (PathBuf, PathBuf)>>(pairs: I) -> Self {
        let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
        let mut pairs: Vec<_> =
            pairs.into_iter().map(|(copy, user)| (bytes(&copy), bytes(&user))).collect();
        pairs.retain(|(copy, _)| !copy.is_empty());
        pairs.sort_by_key(|(copy, _)| std::cmp::Reverse(copy.len()));
        Self { pairs }
    }

    /// Rewrites the rendered paths in `text` (whole lines of haproxy's output) to the user's paths.
    /// Every other byte stays.
    pub(super) fn user_place(&self, text: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len());
        let mut at = 0;
        while at < text.len() {
            let found = self.pairs.iter().find(|(copy, _)| {
                // A longer name must not match, as /dev/fd/12 for /dev/fd/1.
                let after = text.get(at + copy.len());
                text[at..].starts_with(copy) && !after.is_some_and(u8::is_ascii_alphanumeric)
            });
            if let Some((copy, user)) = found {
                out.extend_from_slice(user);
                at += copy.len();
            } else {
                out.push(text[at]);
                at += 1;
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn haproxy_names_the_users_file() {
        let map = PathMap::new([
            ("/run/b/cfg/7/1-a.cfg".into(), "/etc/haproxy/a.cfg".into()),
            ("/run/b/cfg/7/1-a.cfg.d".into(), "conf/b.cfg".into()),
        ]);
        let text = b"[ALERT] (1) : config : parsing [/run/b/cfg/7/1-a.cfg:12] : \xff\n[/run/b/cfg/7/1-a.cfg.d:3]\n";
        assert_eq!(
            map.user_place(text),
            b"[ALERT] (1) : config : parsing [/etc/haproxy/a.cfg:12] : \xff\n[conf/b.cfg:3]\n"
        );
        let map = PathMap::new([("/dev/fd/1".into(), "a.cfg".into())]);
        assert_eq!(map.user_place(b"/dev/fd/1:/dev/fd/12"), b"a.cfg:/dev/fd/12");
        assert_eq!(PathMap::default().user_place(b"x"), b"x");
    }
}

//! Checks whether other users could replace the files in a directory.
//!
//! A privileged process must not keep files that it executes, obeys or overwrites where another
//! user can swap a directory or plant a symbolic link. A directory is trusted if it and everything
//! on the way to it belongs to root or to one user, and nobody else may write there. From then on
//! only these two can change that, so the path can be used as it is.

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, Uid, chownat};

use crate::path_walk::{Step, is_of, is_sticky, others_write, walk, walk_or_make};

/// Why a directory is not trusted: the first component of its path that another user controls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Untrusted {
    /// The directory or the symbolic link.
    pub path: PathBuf,
    /// The user id of its owner.
    pub owner: u32,
    /// Its permissions.
    pub mode: u32,
    /// Whether the owner is the reason, rather than the permissions.
    pub foreign: bool,
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.foreign {
            true => write!(f, "{path} belongs to user {}", self.owner),
            false => write!(f, "others may write to {path} (mode {:04o})", self.mode),
        }
    }
}

impl std::error::Error for Untrusted {}

/// Checks a directory and everything on the way to it, for the user `uid`. Symbolic links of root
/// or of that user are followed, and checked likewise. A directory with the sticky bit may be
/// writable for all: there nobody can remove or rename files of another user.
///
/// # Errors
/// Errors from the system calls: the directory must exist.
pub fn directory(path: &Path, uid: u32) -> io::Result<Result<(), Untrusted>> {
    Ok(match walk(path, |step| check(step, uid))? {
        ControlFlow::Break(untrusted) => Err(untrusted),
        ControlFlow::Continue(_) => Ok(()),
    })
}

/// An open directory, and the findings on the way to it.
#[derive(Debug)]
pub struct Made {
    directory: OwnedFd,
    /// Whether the directory was missing and was created.
    pub created: bool,
    /// The first component of the path that another user controls.
    pub untrusted: Option<Untrusted>,
}

impl Made {
    /// Gives the directory to a user and a group, by its descriptor, whatever is at its path by
    /// now.
    ///
    /// # Errors
    /// Errors from fchownat(2).
    pub fn give(&self, uid: u32, gid: u32) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        Ok(chownat(&self.directory, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
    }
}

/// Opens a directory. It and its parents are created with this mode if missing. With `strict`
/// nothing is created in a directory that is not trusted; the reason is returned instead.
///
/// # Errors
/// Errors from the system calls.
pub fn make(path: &Path, uid: u32, mode: u32, strict: bool) -> io::Result<Result<Made, Untrusted>> {
    let (mut first, mut there) = (None, true);
    let walked = walk_or_make(path, Some(Mode::from_raw_mode(mode)), |step| {
        match check(step, uid) {
            ControlFlow::Break(untrusted) if strict => return ControlFlow::Break(untrusted),
            ControlFlow::Break(untrusted) => _ = first.get_or_insert(untrusted),
            ControlFlow::Continue(()) => {}
        }
        there = !step.created;
        ControlFlow::Continue(())
    })?;
    Ok(match walked {
        ControlFlow::Break(untrusted) => Err(untrusted),
        ControlFlow::Continue(directory) => {
            Ok(Made { directory, created: !there, untrusted: first })
        }
    })
}

fn check(step: &Step<'_>, uid: u32) -> ControlFlow<Untrusted> {
    let foreign = !is_of(step.entry, uid);
    // Everybody may write "to" a link, which means nothing: the permissions of its directory decide
    // who may replace it.
    let open = !step.is_link() && others_write(step.entry) && !is_sticky(step.entry);
    if !foreign && !open {
        return ControlFlow::Continue(());
    }
    ControlFlow::Break(Untrusted {
        path: step.path.to_owned(),
        owner: step.entry.st_uid,
        mode: step.entry.st_mode & 0o7777,
        foreign,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;
    use crate::testing;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    #[test]
    fn whoever_may_write_on_the_way_makes_it_untrusted() {
        let scene = testing::Directory::new("trusted");
        let uid = rustix::process::geteuid().as_raw();
        let (outer, inner) = (scene.path().join("outer"), scene.path().join("outer/inner"));
        fs::create_dir_all(&inner).expect("mkdir");
        mode(&outer, 0o755);
        let check = |path: &Path| directory(path, uid).expect("it is there");
        assert_eq!(check(&inner), Ok(()));
        // For a user other than its owner it is not trusted.
        if uid != 0 {
            assert!(directory(&inner, uid + 1).expect("it is there").is_err());
        }
        for (bits, trusted) in [(0o775, uid == 0), (0o777, false), (0o1777, true), (0o755, true)] {
            mode(&outer, bits);
            assert_eq!(check(&inner).is_ok(), trusted, "{bits:o}");
            assert_eq!(check(&outer).is_ok(), trusted, "{bits:o}");
        }
        let link = scene.path().join("link");
        symlink("outer/../outer/inner", &link).expect("symlink");
        assert_eq!(check(&link), Ok(()));
        mode(&outer, 0o777);
        let untrusted = check(&link).expect_err("writable for all");
        assert_eq!((&untrusted.path, untrusted.mode), (&outer, 0o777));
        assert!(untrusted.to_string().contains("(mode 0777)"), "{untrusted}");
        assert!(directory(&scene.path().join("none"), uid).is_err());
    }

    #[test]
    fn a_directory_is_made_only_where_it_is_trusted() {
        let scene = testing::Directory::new("trusted-made");
        let uid = rustix::process::geteuid().as_raw();
        let (outer, link) = (scene.path().join("outer"), scene.path().join("link"));
        fs::create_dir(&outer).expect("mkdir");
        symlink("outer/by/link", &link).expect("symlink");
        let bits = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode();
        mode(&outer, 0o755);
        let made = make(&link, uid, 0o775, true).expect("made").expect("trusted");
        assert!(made.created && made.untrusted.is_none());
        assert_eq!(bits(&outer.join("by/link")) & 0o7777, 0o775);
        let again = make(&link, uid, 0o700, true).expect("it is there");
        // Other users may be in the directory's group, which can write there by now.
        assert_eq!(again.map(|made| made.created).ok(), (uid == 0).then_some(false));
        assert_eq!(bits(&outer.join("by/link")) & 0o7777, 0o775, "what is there stays as it is");
        mode(&outer, 0o777);
        let refused = make(&outer.join("inner/most"), uid, 0o755, true).expect("looked at");
        assert_eq!(refused.expect_err("writable for all").path, outer);
        assert!(!outer.join("inner").exists());
        let made = make(&outer.join("inner/most"), uid, 0o755, false).expect("made");
        let made = made.expect("whatever others can do");
        assert!(made.created && made.untrusted.is_some_and(|first| first.path == outer));
        if uid == 0 {
            // Another user's link to a place where only root may create anything.
            let theirs = scene.path().join("theirs");
            symlink(scene.path().join("victim/new"), &theirs).expect("symlink");
            std::os::unix::fs::lchown(&theirs, Some(65_533), None).expect("lchown");
            let refused = make(&theirs.join("run"), uid, 0o755, true).expect("looked at");
            assert_eq!(refused.expect_err("theirs").path, theirs);
            assert!(!scene.path().join("victim").exists());
            let made = make(&scene.path().join("given"), uid, 0o755, true).expect("made");
            made.expect("trusted").give(65_533, 65_533).expect("chown");
            let untrusted = directory(&scene.path().join("given"), uid).expect("it is there");
            assert_eq!(untrusted.expect_err("given away").owner, 65_533);
        }
    }

    #[test]
    fn what_belongs_to_another_user_is_untrusted() {
        let uid = rustix::process::geteuid().as_raw();
        if uid != 0 {
            return testing::skip("needs root to give a directory away");
        }
        let scene = testing::Directory::new("trusted-owner");
        let (theirs, link) = (scene.path().join("theirs"), scene.path().join("link"));
        fs::create_dir(&theirs).expect("mkdir");
        #[expect(clippy::disallowed_methods, reason = "in a directory of the test's own")]
        chown(&theirs, Some(65_533), None).expect("chown");
        let untrusted = directory(&theirs, uid).expect("it is there").expect_err("theirs");
        assert!(untrusted.to_string().ends_with("belongs to user 65533"), "{untrusted}");
        assert_eq!(directory(&theirs, 65_533).expect("it is there"), Ok(()));
        // A link that its owner may redirect at any time.
        symlink("/", &link).expect("symlink");
        std::os::unix::fs::lchown(&link, Some(65_533), None).expect("lchown");
        assert!(directory(&link, uid).expect("it is there").is_err());
    }
}

//! Finds a program as exec does, and explains why it cannot be executed.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::error::{Error, errno_of};

/// The path of `program`, looked up as exec does: in `PATH` unless it has a slash. Call it to
/// report a mistake before any work is done for the program.
///
/// # Errors
/// [`Error::Exec`] with `ENOENT`, or with `EACCES` if the file exists but cannot be executed.
pub fn find(program: &OsStr) -> Result<PathBuf, Error> {
    let fail = |errno| Error::Exec { program: program.to_owned(), errno };
    if program.as_encoded_bytes().contains(&b'/') {
        let path = PathBuf::from(program);
        return executable(&path).map(|()| path).map_err(fail);
    }
    // The default of execvp(3) if PATH is not set.
    let search = env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let mut worst = Errno::ENOENT;
    for directory in env::split_paths(&search) {
        let path = directory.join(program);
        match executable(&path) {
            Ok(()) => return Ok(path),
            // A directory of PATH that this user may not search proves nothing about the program.
            Err(Errno::EACCES) if path.exists() => worst = Errno::EACCES,
            Err(_) => {}
        }
    }
    Err(fail(worst))
}

fn executable(path: &Path) -> Result<(), Errno> {
    let found = path.metadata().map_err(|error| errno_of(&error))?;
    if !found.is_file() {
        return Err(Errno::EACCES);
    }
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK)
        .map_err(|error| Errno::from_raw(error.raw_os_error()))
}

/// The error for a failed exec, with the program and a hint. A problem of the program itself takes
/// precedence over the errno of execvp(3), which is `EACCES` for a missing program as soon as one
/// directory of PATH may not be searched.
pub fn cannot_execute(program: &OsStr, error: &io::Error) -> Error {
    let errno = errno_of(error);
    find(program).err().unwrap_or_else(|| Error::Exec { program: program.to_owned(), errno })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_exec_finds_them() {
        assert!(find(OsStr::new("sh")).expect("in PATH").is_absolute());
        assert_eq!(find(OsStr::new("/bin/sh")), Ok(PathBuf::from("/bin/sh")));
        let absent = find(OsStr::new("bindonce-none")).expect_err("absent");
        assert!(absent.hint().expect("hint").contains("PATH"), "{absent}");
        let absent = find(OsStr::new("./bindonce-none")).expect_err("absent");
        assert_eq!(absent.errno(), Some(Errno::ENOENT as i32));
        let directory = find(OsStr::new("/proc/")).expect_err("a directory");
        assert_eq!(directory.errno(), Some(Errno::EACCES as i32));
    }
}

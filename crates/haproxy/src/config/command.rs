//! The haproxy command that a person writes after `--`.
//!
//! Words are read as haproxy 2.6 to 3.x read them: an option is known by its
//! first letters, and everything after a `--` is a configuration file. The
//! arguments are kept in their order; the configuration files are taken
//! out, since haproxy is started on rendered copies of them, and so is what
//! the supervisor does in haproxy's place.

use std::ffi::{OsStr, OsString};
use std::iter::Peekable;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::Error;

/// A haproxy command, without its configuration files and what the supervisor does in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The program: a path, or a name to be found in `PATH`.
    pub program: OsString,
    /// The arguments that haproxy is started with, in their order.
    pub arguments: Vec<OsString>,
    /// The configuration files and directories as written, in their order.
    pub files: Vec<PathBuf>,
    /// `-C`: the directory that haproxy changes to before it reads anything.
    pub directory: Option<PathBuf>,
    /// `-L`: the name of the local peer.
    pub local_peer: Option<OsString>,
    /// `-W` or `-Ws`: a master process with workers.
    pub master_worker: bool,
    /// `-S`: the sockets of the master CLI, as written. haproxy does not get them: the supervisor serves them.
    pub master_sockets: Vec<OsString>,
}

const DAEMON: &str = "bindonce supervises haproxy in the foreground; leave it out, and let systemd \
                      or the shell put bindonce itself into the background";
const PID_FILE: &str = "haproxy runs in the foreground here; `bindonce status` tells the pid of every generation, and a \
     `pidfile` line beside `daemon` or `master-worker` names the file that gets the supervisor's";
const OLD_PIDS: &str =
    "bindonce retires the older generations itself; leave it out and run `bindonce reload`";
const OLD_SOCKET: &str =
    "the sockets come from the broker, not from an older haproxy; leave it out";
const CHECK: &str = "to check a configuration run `bindonce check -- haproxy -f FILE`";
const EXITS: &str = "it makes haproxy print something and exit; run haproxy itself for that";

impl Command {
    /// Reads the words after `--`: the program, then its arguments.
    ///
    /// # Errors
    /// [`Error::Refused`] for arguments that are the supervisor's own to give
    /// (`-D`, `-p`, `-sf`, `-st`, `-x`) or that end haproxy at once;
    /// [`Error::NoFiles`] when no configuration is named.
    pub fn parse<I>(words: I) -> Result<Self, Error>
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        let mut words = words.into_iter().map(Into::into).peekable();
        let program = words.next().ok_or(Error::NoProgram)?;
        let mut command = Self {
            program,
            arguments: Vec::new(),
            files: Vec::new(),
            directory: None,
            local_peer: None,
            master_worker: false,
            master_sockets: Vec::new(),
        };
        while let Some(word) = words.next() {
            command.take(word, &mut words)?;
        }
        if command.files.is_empty() {
            return Err(Error::NoFiles);
        }
        Ok(command)
    }

    /// The arguments to start haproxy with, on `files` in place of the user's
    /// own. Further arguments may follow.
    pub fn arguments_on<I>(&self, files: I) -> Vec<OsString>
    where
        I: IntoIterator,
        I::Item: AsRef<Path>,
    {
        let mut all = self.arguments.clone();
        for file in files {
            all.push("-f".into());
            all.push(file.as_ref().as_os_str().to_owned());
        }
        all
    }

    fn take(
        &mut self,
        word: OsString,
        rest: &mut Peekable<impl Iterator<Item = OsString>>,
    ) -> Result<(), Error> {
        let Some(flag) = word.as_bytes().strip_prefix(b"-") else {
            return Err(Error::UnknownArgument { argument: word });
        };
        match flag {
            b"-" => self.files.extend(rest.map(PathBuf::from)),
            [b'v', ..] | [b'd', b'K', ..] | [b'h', ..] => return Err(refused(word, EXITS)),
            // Since 3.2 the sources to trace may be the next word.
            b"dt" => {
                self.arguments.push(word);
                self.arguments.extend(rest.next_if(|next| !next.as_bytes().starts_with(b"-")));
            }
            [b'd' | b'V' | b'q' | b'4', ..] => self.arguments.push(word),
            [b'c', ..] => return Err(refused(word, CHECK)),
            [b'D', ..] => return Err(refused(word, DAEMON)),
            [b'W', ..] => {
                self.master_worker = true;
                self.arguments.push(word);
            }
            [b'x', ..] => return Err(refused(word, OLD_SOCKET)),
            [b's', b'f' | b't', ..] => return Err(refused(word, OLD_PIDS)),
            [b'p', ..] => return Err(refused(word, PID_FILE)),
            [b'f', ..] => self.files.push(value(&word, rest)?.into()),
            [b'C', ..] => {
                let directory = value(&word, rest)?;
                self.directory = Some(PathBuf::from(&directory));
                self.arguments.extend([word, directory]);
            }
            [b'L', ..] => {
                let peer = value(&word, rest)?;
                self.local_peer = Some(peer.clone());
                self.arguments.extend([word, peer]);
            }
            [b'S', ..] => self.master_sockets.push(value(&word, rest)?),
            [b'n' | b'm' | b'N', ..] => {
                let value = value(&word, rest)?;
                self.arguments.extend([word, value]);
            }
            _ => return Err(Error::UnknownArgument { argument: word }),
        }
        Ok(())
    }
}

fn refused(argument: OsString, hint: &'static str) -> Error {
    Error::Refused { argument, hint }
}

fn value(option: &OsStr, rest: &mut dyn Iterator<Item = OsString>) -> Result<OsString, Error> {
    rest.next().ok_or_else(|| Error::MissingValue { argument: option.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, Error> {
        Command::parse(line.split_whitespace())
    }

    #[test]
    fn takes_the_files_out_and_keeps_the_rest_in_order() {
        let command = parse(
            "/usr/sbin/haproxy -Ws -f a.cfg -C /srv -n 100 -f d -S /m,mode,600 -dG -L me -- x y",
        )
        .expect("a good command");
        assert_eq!(command.program, "/usr/sbin/haproxy");
        assert_eq!(command.files, ["a.cfg", "d", "x", "y"].map(PathBuf::from));
        assert_eq!(command.arguments, ["-Ws", "-C", "/srv", "-n", "100", "-dG", "-L", "me"]);
        assert_eq!(command.master_sockets, ["/m,mode,600"]);
        assert_eq!(command.directory.as_deref(), Some(Path::new("/srv")));
        assert_eq!(command.local_peer.as_deref(), Some(OsStr::new("me")));
        assert!(command.master_worker);
        let traced = parse("haproxy -4 -dt h1 -dt -f a").expect("good").arguments;
        assert_eq!(traced, ["-4", "-dt", "h1", "-dt"]);
        let arguments = parse("haproxy -q -f a").expect("good").arguments_on(["/run/1/a.cfg"]);
        assert_eq!(arguments, ["-q", "-f", "/run/1/a.cfg"]);
    }

    #[test]
    fn refuses_what_the_supervisor_owns_with_a_hint() {
        for (line, word) in [
            ("haproxy -D -f a", "-D"),
            ("haproxy -f a -p /run/x.pid", "-p"),
            ("haproxy -f a -sf 12 13", "-sf"),
            ("haproxy -f a -st", "-st"),
            ("haproxy -x /run/sock -f a", "-x"),
            ("haproxy -c -f a", "-c"),
            ("haproxy -vv -f a", "-vv"),
        ] {
            match parse(line) {
                Err(Error::Refused { argument, hint }) => {
                    assert_eq!(argument, word);
                    assert!(hint.len() > 20, "{line}");
                }
                other => panic!("{line}: {other:?}"),
            }
        }
    }

    #[test]
    fn names_what_is_missing() {
        assert!(matches!(parse(""), Err(Error::NoProgram)));
        assert!(matches!(parse("haproxy -db"), Err(Error::NoFiles)));
        assert!(matches!(parse("haproxy -f"), Err(Error::MissingValue { .. })));
        assert!(matches!(parse("haproxy a.cfg"), Err(Error::UnknownArgument { .. })));
        assert!(matches!(parse("haproxy -f a -Z"), Err(Error::UnknownArgument { .. })));
    }
}

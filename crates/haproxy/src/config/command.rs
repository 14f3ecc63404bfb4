//! The haproxy command after `--`, or the one with which another program starts haproxy.
//!
//! Words are read as haproxy 2.6 to 3.x read them: the first letters decide which option a word is,
//! and everything after a `--` is a configuration file. The arguments keep their order.
//! Configuration files are taken out, since haproxy is started on rendered copies of them, and so
//! are the options that the supervisor carries out in haproxy's place: [`Role`].

use std::ffi::{OsStr, OsString};
use std::iter::Peekable;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::Error;

/// A haproxy command, with its configuration files and the supervisor's part taken out of the
/// arguments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// The program: a path, or a name to look up in `PATH`.
    pub program: OsString,
    /// The arguments that haproxy is started with, in their order.
    pub arguments: Vec<OsString>,
    /// The configuration files and directories as written, in their order.
    pub files: Vec<PathBuf>,
    /// `-C`: the directory that haproxy changes to before it reads anything.
    pub directory: Option<PathBuf>,
    /// `-L`: the name of the local peer.
    pub local_peer: Option<OsString>,
    /// Whether each generation is a haproxy master with its own workers.
    pub nested_master: bool,
    /// `-S`: the sockets of the master CLI, as written. They are not passed to haproxy: the
    /// supervisor serves them.
    pub master_sockets: Vec<OsString>,
    /// The supervisor's part of the command.
    pub role: Role,
    /// Options whose meaning depends on the haproxy version, for [`Self::settle`].
    unsettled: Vec<OsString>,
}

/// The part of a command line that concerns the started process, rather than each generation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Role {
    /// `-W` or `-Ws`: a master.
    pub master: Option<Master>,
    /// `-D`: the process continues in the background.
    pub daemon: bool,
    /// `-Ws`, `-db` or `-d`: the process stays in the foreground, whatever `daemon` says in a
    /// configuration. `-D` has precedence.
    pub foreground: bool,
    /// `-p`: the pid file.
    pub pid_file: Option<PathBuf>,
    /// `-sf` or `-st`, perhaps without pids: the process replaces another.
    pub is_successor: bool,
    /// `-sf` or `-st`: the pids of the processes to replace.
    pub older: Vec<i32>,
    /// `-st`: the replaced processes end at once.
    pub at_once: bool,
    /// `-x`: the admin socket of an older haproxy, from which to take the listeners.
    pub transfer: Option<OsString>,
}

/// The kind of master that the command asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Master {
    /// `-W`.
    Plain,
    /// `-Ws`: the master reports its state to the service manager.
    Notifying,
}

impl Role {
    /// Whether it replaces a process that runs, by `-sf`, `-st` or `-x`. Where the pid file of that
    /// process is gone, a `-sf $(cat FILE)` has no pids.
    pub fn replaces(&self) -> bool {
        self.is_successor || self.transfer.is_some()
    }
}

const CHECK: &str = "to check a configuration run `bindonce check -- haproxy -f FILE`";
const EXITS: &str = "it makes haproxy print something and exit; run haproxy itself for that";

impl Command {
    /// Reads the program, then its arguments.
    ///
    /// # Errors
    /// [`Error::Refused`] for arguments with which haproxy prints an answer or checks the
    /// configuration and then exits; [`Error::NoFiles`] when no configuration is named; other
    /// errors for arguments that haproxy refuses too.
    pub fn parse<I>(words: I) -> Result<Self, Error>
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        let mut words = words.into_iter().map(Into::into).peekable();
        let program = words.next().ok_or(Error::NoProgram)?;
        let mut command = Self { program, ..Self::default() };
        while let Some(word) = words.next() {
            command.take(word, &mut words)?;
        }
        if command.files.is_empty() {
            return Err(Error::NoFiles);
        }
        Ok(command)
    }

    /// Whether the meaning of an option still depends on the haproxy version.
    pub fn is_unsettled(&self) -> bool {
        !self.unsettled.is_empty()
    }

    /// Settles the options that depend on the version, by haproxy's usage text (`-h`): an option
    /// that the text does not list means `-d`.
    ///
    /// # Errors
    /// [`Error::Refused`] for an option with which this haproxy prints something and exits.
    pub fn settle(&mut self, usage: &str) -> Result<(), Error> {
        for word in std::mem::take(&mut self.unsettled) {
            let option = String::from_utf8_lossy(word.as_bytes().get(..3).unwrap_or_default());
            let names = |line: &str| line.trim_start().starts_with(option.as_ref());
            if !usage.lines().any(names) {
                self.role.foreground = true;
            } else if ANSWERED.contains(&option.as_ref()) {
                return Err(refused(word, EXITS));
            }
        }
        Ok(())
    }

    /// The same command, with each generation as a haproxy master.
    #[must_use]
    pub fn with_nested_master(mut self) -> Self {
        self.nested_master = true;
        self.arguments.push("-W".into());
        self
    }

    /// The arguments to start haproxy with, on `files` in place of the user's own. The caller may
    /// append further arguments.
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
            [b'v' | b'h', ..] | [b'c', b'c', ..] | b"dMhelp" => return Err(refused(word, EXITS)),
            // Since 3.2 the next word may name the sources to trace.
            b"dt" => {
                let sources = rest.next_if(|next| !next.as_bytes().starts_with(b"-"));
                if sources.as_ref().is_some_and(|sources| sources == "help") {
                    return Err(refused(word, EXITS));
                }
                self.unsettled.push(word.clone());
                self.arguments.push(word);
                self.arguments.extend(sources);
            }
            [b'd', b'b', ..] => self.role.foreground = true,
            [b'd', kind, ..] if OF_SOME.contains(kind) => {
                self.unsettled.push(word.clone());
                self.arguments.push(word);
            }
            [b'd' | b'V' | b'q' | b'4', ..] => {
                self.role.foreground |= is_debug(flag);
                self.arguments.push(word);
            }
            [b'c', ..] => return Err(refused(word, CHECK)),
            [b'D', ..] => self.role.daemon = true,
            [b'W', b's', ..] => {
                self.role.master = Some(Master::Notifying);
                self.role.foreground = true;
            }
            [b'W', ..] => {
                self.role.master.get_or_insert(Master::Plain);
            }
            [b'x', ..] => self.role.transfer = Some(value(&word, rest)?),
            [b's', kind @ (b'f' | b't'), ..] => {
                self.role.is_successor = true;
                self.role.at_once = *kind == b't';
                while let Some(text) = rest.next_if(|next| !next.as_bytes().starts_with(b"-")) {
                    let pid = text.to_str().and_then(|text| text.trim().parse().ok());
                    let pid = pid.filter(|pid| *pid > 0).ok_or(Error::NoPid { text })?;
                    self.role.older.push(pid);
                }
            }
            [b'p', ..] => self.role.pid_file = Some(value(&word, rest)?.into()),
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

/// Letters after `-d` that some versions know as an option of its own; other versions read `-d`
/// alone.
const OF_SOME: &[u8] = b"ACFITZct";

/// The options of [`OF_SOME`] with which haproxy prints something and exits.
const ANSWERED: [&str; 2] = ["-dA", "-dC"];

/// Whether a flag is `-d`, which includes a `-d` with letters that no haproxy version knows (tried
/// with 2.6.12, 3.0.11 and 3.2.26).
fn is_debug(flag: &[u8]) -> bool {
    match flag {
        [b'd', kind, ..] => !b"bDeGKLMprRSVW".contains(kind) && !OF_SOME.contains(kind),
        [b'd'] => true,
        _ => false,
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
        assert_eq!(command.arguments, ["-C", "/srv", "-n", "100", "-dG", "-L", "me"]);
        assert_eq!(command.master_sockets, ["/m,mode,600"]);
        assert_eq!(command.directory.as_deref(), Some(Path::new("/srv")));
        assert_eq!(command.local_peer.as_deref(), Some(OsStr::new("me")));
        let traced = parse("haproxy -4 -dt h1 -dt -f a").expect("good").arguments;
        assert_eq!(traced, ["-4", "-dt", "h1", "-dt"]);
        let arguments = parse("haproxy -q -f a").expect("good").arguments_on(["/run/1/a.cfg"]);
        assert_eq!(arguments, ["-q", "-f", "/run/1/a.cfg"]);
    }

    #[test]
    fn what_the_supervisor_does_itself_is_not_passed_on() {
        let role = |line| {
            let command: Command = parse(line).expect(line);
            assert_eq!(command.arguments, [""; 0], "{line}");
            command.role
        };
        let plain = Role::default();
        let notifying = Role { master: Some(Master::Notifying), foreground: true, ..plain.clone() };
        assert_eq!(role("haproxy -W -Ws -f a"), notifying);
        let daemon = Role {
            daemon: true,
            pid_file: Some("/run/x.pid".into()),
            is_successor: true,
            older: vec![12, 13],
            transfer: Some("/run/admin".into()),
            ..plain.clone()
        };
        assert_eq!(role("haproxy -D -f a -p /run/x.pid -sf 12 13 -x /run/admin"), daemon);
        assert!(role("haproxy -D -db -f a").daemon && role("haproxy -db -D -f a").daemon);
        let successor = Role { is_successor: true, at_once: true, ..plain.clone() };
        assert_eq!(role("haproxy -f a -st"), successor);
        assert!(successor.replaces() && !plain.replaces());
        assert!(role("haproxy -f a -x /run/admin").replaces());
        assert_eq!(role("haproxy -W -db -f a").master, Some(Master::Plain));
        for (line, foreground) in [("-db", true), ("-d", true), ("-dr", false), ("-dM", false)] {
            let command = parse(&format!("haproxy {line} -f a")).expect(line);
            assert_eq!(command.role.foreground, foreground, "{line}");
        }
    }

    #[test]
    fn what_haproxy_answers_without_serving_is_refused_with_a_hint() {
        for (line, word) in [
            ("haproxy -c -f a", "-c"),
            ("haproxy -vv -f a", "-vv"),
            ("haproxy -cc 1", "-cc"),
            ("haproxy -f a -dMhelp", "-dMhelp"),
            ("haproxy -f a -dt help", "-dt"),
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
    fn what_haproxy_serves_with_is_passed_on() {
        for option in ["-dK", "-dKall", "-dL", "-dk", "-dA", "-dC", "-dCkey", "-dM", "-dthelp"] {
            let command = parse(&format!("haproxy -f a {option}")).expect(option);
            assert_eq!(command.arguments, [option]);
        }
    }

    #[test]
    fn what_depends_on_the_version_is_decided_by_its_usage() {
        let usage =
            "Usage : haproxy\n        -dC[[key],line] display\n        -dF disable fast-forward\n";
        let settled = |option: &str, usage: &str| {
            let mut command = parse(&format!("haproxy -f a {option}")).expect(option);
            command.settle(usage).map(|()| command.role.foreground)
        };
        assert!(matches!(settled("-dCkey", usage), Err(Error::Refused { .. })));
        assert_eq!(settled("-dCkey", "").ok(), Some(true));
        assert_eq!(settled("-dF", usage).ok(), Some(false));
        assert_eq!(settled("-dF", "").ok(), Some(true));
        assert_eq!(settled("-dT", "        -dT disable kTLS\n").ok(), Some(false));
        assert_eq!(settled("-dt", "        -dt activate traces\n").ok(), Some(false));
        assert_eq!(settled("-dM", "").ok(), Some(false));
        assert!(!parse("haproxy -f a -dK -dk").expect("good").is_unsettled());
    }

    #[test]
    fn names_what_is_missing() {
        assert!(matches!(parse(""), Err(Error::NoProgram)));
        assert!(matches!(parse("haproxy -db"), Err(Error::NoFiles)));
        assert!(matches!(parse("haproxy -f"), Err(Error::MissingValue { .. })));
        assert!(matches!(parse("haproxy a.cfg"), Err(Error::UnknownArgument { .. })));
        assert!(matches!(parse("haproxy -f a -Z"), Err(Error::UnknownArgument { .. })));
        assert!(matches!(parse("haproxy -f a -sf 12 x"), Err(Error::NoPid { .. })));
        assert!(matches!(parse("haproxy -f a -sf 0"), Err(Error::NoPid { .. })));
    }
}

//! `-S ADDR[,OPTION,VALUE]...`: the address of the master CLI and the rights of its clients
//! (management guide, section 3).

use std::ffi::OsStr;
use std::path::Path;

use bindonce_core::address::Address;
use bindonce_core::listener::{Listener, Options};

use super::address::{self, Context, Problem, Target, Wanted};
use super::{Command, Error, World, files};
use crate::cli::{Level, Version};

/// A socket of the master CLI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasterSocket {
    /// The text as written, which identifies the socket.
    pub text: String,
    /// The address.
    pub at: MasterAddress,
    /// The rights of its clients; admin by default.
    pub level: Level,
}

/// Where a master CLI listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MasterAddress {
    /// An address to bind.
    Listen(Listener),
    /// A listening socket that this process has inherited.
    Descriptor(i32),
}

impl MasterSocket {
    /// The variable that names all sockets of the master CLI.
    pub const VARIABLE: &str = "HAPROXY_MASTER_CLI";

    /// The value of [`Self::VARIABLE`].
    pub fn variable_of(sockets: &[Self]) -> String {
        sockets.iter().filter_map(Self::variable).collect::<Vec<_>>().join(";")
    }

    /// Whether the workers of a master of this version have [`Self::VARIABLE`]; in later versions
    /// only the master has it.
    pub fn is_in_workers(version: Version) -> bool {
        version < Version { major: 3, minor: 1, patch: 0 }
    }

    /// The master CLI sockets of a command.
    ///
    /// # Errors
    /// [`Error::MasterSocket`], in haproxy's words where it has them.
    pub fn all_of(command: &Command, world: &dyn World) -> Result<Vec<Self>, Error> {
        let directory = files::directory(command, world);
        command.master_sockets.iter().map(|word| Self::read(word, &directory, world)).collect()
    }

    /// Reads the word after `-S`; relative paths begin in `directory`.
    fn read(word: &OsStr, directory: &Path, world: &dyn World) -> Result<Self, Error> {
        let failed = |why: String| Error::MasterSocket { text: word.to_owned(), why };
        let text = word.to_str().ok_or_else(|| failed("it is not UTF-8".to_owned()))?;
        let mut words = text.split(',').filter(|word| !word.is_empty());
        let first = words.next().unwrap_or_default();
        let (mut options, mut level) = (Options::default(), Level::Admin);
        while let Some(option) = words.next() {
            let mut value =
                || words.next().ok_or_else(|| failed(format!("'{option}' : missing value")));
            match option {
                "level" => {
                    let name = value()?;
                    level = Level::read(name).ok_or_else(|| {
                        failed(format!(
                            "'level' only supports 'user', 'operator', and 'admin' (got '{name}')"
                        ))
                    })?;
                }
                "mode" => {
                    let text = value()?;
                    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
                    options.mode = Some(mode.ok_or_else(|| {
                        failed(format!("'mode' takes an octal number (got '{text}')"))
                    })?);
                }
                "uid" | "gid" => {
                    let text = value()?;
                    let number = text
                        .parse::<u32>()
                        .map_err(|_| failed(format!("'{option}' takes a number (got '{text}')")))?;
                    let owner =
                        if option == "uid" { &mut options.user } else { &mut options.group };
                    *owner = Some(number.to_string());
                }
                "user" => options.user = Some(value()?.to_owned()),
                "group" => options.group = Some(value()?.to_owned()),
                "backlog" => {
                    let text = value()?;
                    options.backlog =
                        Some(text.parse().map_err(|_| {
                            failed(format!("'backlog' takes a number (got '{text}')"))
                        })?);
                }
                "interface" => options.interface = Some(value()?.to_owned()),
                "v6only" => options.v6only = true,
                "transparent" => options.transparent = true,
                // Valid options of haproxy's that have no meaning here.
                "v4v6" | "accept-proxy" => {}
                "name" | "id" | "nice" | "maxconn" | "thread" | "severity-output" | "expose-fd" => {
                    value()?;
                }
                other => {
                    return Err(failed(format!("'{first}' : unknown keyword '{other}'.")));
                }
            }
        }
        let at = match at(first, directory, world).map_err(failed)? {
            Target::Descriptor(number) => {
                let number = std::str::from_utf8(&number).ok().and_then(|text| text.parse().ok());
                let number = number.filter(|number| *number > 2);
                MasterAddress::Descriptor(number.ok_or_else(|| {
                    failed("fd@ takes the number of a descriptor that was inherited".to_owned())
                })?)
            }
            Target::Listen(Wanted { first: address, last, mptcp })
                if address.port().is_none_or(|first| first == last) =>
            {
                options.mptcp = mptcp;
                let listener = Listener::new(None, address, options);
                MasterAddress::Listen(listener.map_err(|error| failed(error.to_string()))?)
            }
            Target::Listen(..) => return Err(failed("it is a range of ports".to_owned())),
            Target::Alone(why) => return Err(failed(why.to_owned())),
        };
        Ok(Self { text: text.to_owned(), at, level })
    }

    /// The text for the socket in HAPROXY_MASTER_CLI; None for an inherited one.
    fn variable(&self) -> Option<String> {
        match &self.at {
            MasterAddress::Listen(listener) => Some(match &listener.address {
                Address::Tcp(at) if at.is_ipv4() => format!("ipv4@{at}"),
                Address::Tcp(at) => format!("ipv6@{at}"),
                other => other.to_string(),
            }),
            MasterAddress::Descriptor(_) => None,
        }
    }
}

fn at(text: &str, directory: &Path, world: &dyn World) -> Result<Target, String> {
    let context = Context {
        datagram: false,
        prefix: b"",
        directory,
        resolved: &|path| world.resolved(path),
        resolve: &|host, family| world.resolve(host, family),
    };
    address::read(text.as_bytes(), &context).map_err(|problem| match problem {
        Problem::Bad(why) => why,
        Problem::Unresolved { host, source } => {
            format!("the name {host:?} has no address: {source}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::System;

    fn read(text: &str) -> Result<MasterSocket, String> {
        let world = System::at("haproxy".as_ref(), "/srv".into(), Vec::new().into_iter().collect());
        MasterSocket::read(text.as_ref(), Path::new("/srv"), &world).map_err(|e| e.to_string())
    }

    #[test]
    fn reads_addresses_and_options() {
        let socket = read("/run/m.sock,mode,600,uid,12,group,adm,level,operator").expect("good");
        let MasterAddress::Listen(listener) = &socket.at else { panic!("{socket:?}") };
        assert_eq!(listener.to_string(), "unix@/run/m.sock,mode=0600,user=12,group=adm");
        assert_eq!(socket.level, Level::Operator);
        for (text, variable) in [
            ("/run/m.sock", Some("unix@/run/m.sock")),
            ("unix@m.sock", Some("unix@/srv/m.sock")),
            ("abns@m,level,user", Some("abns@m")),
            ("127.0.0.1:9", Some("ipv4@127.0.0.1:9")),
            (":9", Some("ipv4@0.0.0.0:9")),
            ("ipv6@[::1]:9,name,x", Some("ipv6@[::1]:9")),
            ("fd@7,level,user", None),
        ] {
            let socket = read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(socket.variable().as_deref(), variable, "{text}");
        }
        assert_eq!(read("fd@7").map(|socket| socket.at), Ok(MasterAddress::Descriptor(7)));
    }

    #[test]
    fn names_what_is_wrong() {
        for (text, part) in [
            ("", "empty"),
            ("m.sock", "port"),
            ("/m,level,root", "only supports 'user', 'operator', and 'admin' (got 'root')"),
            ("/m,mode,9", "octal"),
            ("/m,mode", "missing value"),
            ("/m,sparkle", "unknown keyword 'sparkle'"),
            ("/m,uid,root", "number"),
            ("127.0.0.1:80-90", "range"),
            ("127.0.0.1:80,mode,600", "mode"),
            ("fd@0", "descriptor"),
            ("fd@x", "descriptor"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(part) && error.contains("-S"), "{text}: {error}");
        }
    }
}

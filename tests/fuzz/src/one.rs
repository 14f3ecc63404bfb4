//! A world of one configuration file, for the fuzz target and for the properties of `bindonce-haproxy`, which
//! takes this file by its path.

use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use bindonce_haproxy::config::{
    Answers, Command, Environment, Error, Family, Questions, Rendering, Supplied, World,
};

/// Renders the file of that path and text.
pub(crate) fn render(
    path: &str,
    text: &[u8],
    environment: Environment,
    answers: &Answers,
) -> Result<Rendering, Error> {
    let command = Command::parse(["haproxy", "-f", path])?;
    let world = One { text: text.to_vec(), environment, answers: answers.clone() };
    Rendering::of(&command, Supplied::default(), &world)
}

/// What a configuration may expand.
pub(crate) fn variables() -> Environment {
    let pairs = [("IP", "10.0.0.7"), ("LINE", "bind :7000 name x"), ("N", "9")];
    pairs.iter().map(|(name, value)| (name.as_bytes().into(), value.as_bytes().into())).collect()
}

/// One file, and the variables that it may use; every name has an address.
struct One {
    text: Vec<u8>,
    environment: Environment,
    answers: Answers,
}

impl World for One {
    fn directory(&self) -> PathBuf {
        "/srv".into()
    }

    fn environment(&self) -> Environment {
        self.environment.clone()
    }

    fn read(&self, _: &Path) -> io::Result<Vec<u8>> {
        Ok(self.text.clone())
    }

    fn list(&self, _: &Path) -> io::Result<Option<Vec<OsString>>> {
        Ok(None)
    }

    fn resolve(&self, _: &str, family: Option<Family>) -> io::Result<IpAddr> {
        Ok(match family {
            Some(Family::V6) => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
            Some(Family::V4) | None => IpAddr::from([192, 0, 2, 1]),
        })
    }

    fn ask(&self, questions: &Questions, _: &[OsString]) -> io::Result<Answers> {
        let answer = |term: &Vec<u8>| (term.clone(), Ok(term.len().is_multiple_of(2)));
        Ok(Answers { terms: questions.terms.iter().map(answer).collect(), ..self.answers.clone() })
    }

    fn has_device(&self, _: &str, _: Option<&str>) -> bool {
        true
    }

    fn host_name(&self) -> String {
        "host".to_owned()
    }
}

//! A user's haproxy configuration, and a template of one.

use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use bindonce_haproxy::config::reader::{self, Unset};
use bindonce_haproxy::config::{
    Answers, Command, Environment, Error, Family, Questions, Rendering, Supplied, World,
};

/// Renders one file, as it is and as a template. Its copy has the same lines under the same numbers,
/// each binding has a variable, and rendered once more it binds nothing by an address.
pub(crate) fn configuration(data: &[u8]) {
    let haproxies = [
        ("a.cfg", Unset::Empty, false),
        ("a.cfg", Unset::Joined, true),
        ("a.cfg", Unset::NoWord, true),
        ("a.cfg.erb", Unset::Empty, false),
    ];
    for (path, unset, discovery) in haproxies {
        let answers = Answers { unset, discovery, ..Answers::default() };
        let Ok(rendering) = render(path, data, variables(), &answers) else { continue };
        let copy = rendering.files.first().map(|file| file.text.clone()).unwrap_or_default();
        assert_eq!(reader::lines(&copy).count(), reader::lines(data).count(), "lines of the copy");
        let covered = rendering.variables.iter().flat_map(|variable| variable.bindings.clone());
        assert!(covered.eq(0..rendering.bindings.len()), "a variable for each binding");
        for binding in &rendering.bindings {
            let _ = binding.listener.key();
        }

        let numbers: Vec<i32> = (100..).take(rendering.bindings.len()).collect();
        let mut environment = variables();
        for (name, value) in rendering.environment(&numbers) {
            environment.insert(name.into_bytes(), value.into_bytes());
        }
        let again =
            render("a.cfg", &copy, environment, &answers).expect("the copy of a good one is good");
        assert_eq!(again.bindings, [], "the copy binds nothing by itself");
    }
}

fn render(
    path: &str,
    text: &[u8],
    environment: Environment,
    answers: &Answers,
) -> Result<Rendering, Error> {
    let command = Command::parse(["haproxy", "-f", path])?;
    let world = One { text: text.to_vec(), environment, answers: answers.clone() };
    Rendering::of(&command, Supplied::default(), &world)
}

fn variables() -> Environment {
    let pairs = [("IP", "10.0.0.7"), ("LINE", "bind :7000 name x"), ("N", "9")];
    pairs.iter().map(|(name, value)| (name.as_bytes().into(), value.as_bytes().into())).collect()
}

/// A world of one file, in which every name has an address.
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

    fn has_device(&self, _: &str) -> bool {
        true
    }

    fn host_name(&self) -> String {
        "host".to_owned()
    }
}

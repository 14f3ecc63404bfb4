//! Puts questions to the real haproxy: `haproxy -c` on a configuration of bindonce's own, with a
//! deadline.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bindonce_sys::subprocess::{Answer, User, answer_on};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::questions::{Answers, Questions};
use super::quoting::printable;
use super::remembered::Query;
use super::world::Environment;

/// Time limit for haproxy's answer; it needs some 20 ms.
const PATIENCE: Duration = Duration::from_secs(10);

/// Limit on terms that haproxy does not understand in one round of questions.
const REFUSALS: usize = 64;

/// The file that haproxy reads: its standard input.
const FILE: &str = "/dev/stdin";

/// The haproxy to ask, and how to run it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Haproxy<'a> {
    pub(super) program: &'a OsStr,
    /// All arguments of the user's command; those that affect the answers are passed on.
    pub(super) arguments: &'a [OsString],
    pub(super) directory: &'a Path,
    pub(super) environment: &'a Environment,
    /// The user that haproxy runs as, if not this process's own.
    pub(super) user: Option<User>,
}

/// Asks haproxy, unless its answers are known already.
///
/// # Errors
/// haproxy cannot be started, has not answered in time, was killed, or printed something else. The
/// error quotes the output or says what happened.
pub(super) fn ask(haproxy: &Haproxy<'_>, questions: &Questions) -> io::Result<Answers> {
    let query = haproxy.query(questions);
    if let Some(answers) = query.as_ref().and_then(Query::answers) {
        return Ok(answers);
    }
    let answers = find(haproxy, questions)?;
    if let Some(query) = query {
        query.remember(&answers);
    }
    Ok(answers)
}

fn find(haproxy: &Haproxy<'_>, questions: &Questions) -> io::Result<Answers> {
    let mut left = questions.clone();
    // Terms that cannot be asked together with others, with their results.
    let mut apart: Vec<(Vec<u8>, Result<bool, String>)> = Vec::new();
    loop {
        let answer = haproxy.read(&left.text())?;
        if let Some(mut answers) = left.answers(&answer.stderr) {
            answers.terms.extend(apart);
            return Ok(answers);
        }
        // A term that haproxy does not understand ends its reading and, in some versions, haproxy
        // itself.
        let text = String::from_utf8_lossy(&answer.stderr).into_owned();
        let blamed = left.refused(FILE, &text).filter(|_| apart.len() < REFUSALS);
        let (term, reason) = match (blamed, left.terms.len()) {
            (Some(blamed), _) => blamed,
            (None, 0) => return Err(io::Error::other(unexpected(&answer))),
            (None, 1) => (left.terms.first().cloned().unwrap_or_default(), unexpected(&answer)),
            (None, _) => {
                for term in std::mem::take(&mut left.terms) {
                    let one = Questions { terms: [term].into(), names: left.names.clone() };
                    apart.extend(find(haproxy, &one)?.terms);
                }
                continue;
            }
        };
        left.terms.remove(&term);
        apart.push((term, Err(reason)));
    }
}

impl Haproxy<'_> {
    /// The user's arguments that are passed on.
    fn switches(&self) -> impl Iterator<Item = &OsString> {
        self.arguments.iter().filter(|word| changes_answers(word))
    }

    /// Everything that the answers depend on; None if they must not be remembered.
    fn query(&self, questions: &Questions) -> Option<Query> {
        let Self { program, directory, environment, user, .. } = *self;
        let switches = self.switches().cloned().collect();
        Query::new(program, switches, directory, environment, user, questions)
    }

    /// Runs haproxy on a text.
    fn read(&self, text: &[u8]) -> io::Result<Answer> {
        let mut command = Command::new(self.program);
        command.arg("-c").args(self.switches());
        command.args(["-f", FILE]).current_dir(self.directory).env_clear();
        for (name, value) in self.environment {
            command.env(OsStr::from_bytes(name), OsStr::from_bytes(value));
        }
        let mut input = File::from(memfd_create("bindonce-asks", MFdFlags::MFD_CLOEXEC)?);
        input.write_all(text)?;
        input.rewind()?;
        answer_on(command, input, self.user, PATIENCE)
    }
}

/// Whether an argument of haproxy's changes the result of `enabled()`. All others are left out:
/// some make haproxy silent or make it print or do something else.
fn changes_answers(word: &OsStr) -> bool {
    matches!(
        word.as_bytes(),
        [b'-', b'd', b'e' | b'p' | b'k' | b'v' | b'S' | b'G' | b'R' | b'F' | b'V' | b'T' | b'Z']
    )
}

/// Why there is no answer: the exit status and haproxy's last line.
fn unexpected(answer: &Answer) -> String {
    let complaint = answer.complaint();
    let last = complaint.lines().next_back().unwrap_or_default();
    if answer.stderr.is_empty() {
        return complaint;
    }
    format!("{}; its last line: {}", answer.status, printable(last.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks a haproxy that is a script.
    fn asked(name: &str, script: &str, questions: &Questions) -> io::Result<Answers> {
        let folder = std::env::temp_dir().join(format!("bindonce-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("folder");
        let haproxy = folder.join("haproxy");
        std::fs::write(&haproxy, format!("#!/bin/sh\n{script}\n")).expect("script");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&haproxy, mode).expect("mode");
        let told = ask(
            &Haproxy {
                program: haproxy.as_os_str(),
                arguments: &[],
                directory: &folder,
                environment: &[(b"PATH".to_vec(), b"/usr/bin:/bin".to_vec())].into(),
                user: None,
            },
            questions,
        );
        std::fs::remove_dir_all(folder).expect("remove");
        told
    }

    #[test]
    fn what_went_wrong_has_a_reason() {
        for (name, script, why) in [
            ("silent", "exit 0", "it ended with exit code 0 and printed nothing"),
            ("killed", "kill -9 $$", "it was ended by SIGKILL and printed nothing"),
            ("odd", "cat >&2; echo two >&2; exit 3", "; its last line: two"),
        ] {
            let said = asked(name, script, &Questions::default()).expect_err(name).to_string();
            assert!(said.contains(why), "{said}");
        }
    }

    /// Answers of a real binary are remembered until anything about it changes; a script is asked
    /// each time.
    #[test]
    fn the_same_question_is_asked_once() {
        let environment = [(b"PATH".to_vec(), b"/usr/bin:/bin".to_vec())].into();
        let haproxy = |program| Haproxy {
            program: OsStr::new(program),
            arguments: &[],
            directory: Path::new("/"),
            environment: &environment,
            user: None,
        };
        let questions = Questions { terms: [b"once(1)".to_vec()].into(), ..Questions::default() };
        let asked = |program| haproxy(program).query(&questions);
        let answers =
            Answers { terms: [(b"once(1)".to_vec(), Ok(true))].into(), ..Answers::default() };
        assert!(asked("env").expect("a binary").answers().is_none());
        asked("env").expect("a binary").remember(&answers);
        assert_eq!(ask(&haproxy("env"), &questions).expect("known"), answers);
        assert_eq!(asked("/usr/bin/env").and_then(|it| it.answers()), Some(answers));
        assert!(asked("/usr/bin/cat").expect("a binary").answers().is_none());
        let other = haproxy("env").query(&Questions::default());
        assert!(other.expect("a binary").answers().is_none());
        for program in ["/usr/bin/ldd", "/no/such", "no-such", "/"] {
            assert!(asked(program).is_none(), "{program}");
        }
    }

    /// haproxy 3.0 crashes on some terms that it does not understand.
    #[test]
    fn a_term_that_kills_haproxy_is_told_from_the_others() {
        let terms = [&b"a(1)"[..], b"deadly(2)", b"z(3)"].map(<[u8]>::to_vec).into();
        let questions = Questions { terms, ..Questions::default() };
        let script = "text=$(cat)\ncase $text in *deadly*) kill -SEGV $$ ;; esac\n\
            echo \"$text\" | sed -n \"s/^.notice \\\"\\(.* holds\\|.* end\\)\\\"$/: '\\1'./p\" >&2";
        let told = asked("deadly", script, &questions).expect("an answer").terms;
        assert_eq!(told[&b"a(1)"[..]], Ok(true));
        assert_eq!(told[&b"z(3)"[..]], Ok(true));
        assert!(told[&b"deadly(2)"[..]].as_ref().is_err_and(|why| why.contains("SIGSEGV")));
    }

    #[test]
    fn only_switches_are_passed_on() {
        let all = ["-de", "-dR", "-q", "-W", "-dC", "-db", "-L", "x", "-dG"].map(OsString::from);
        let passed: Vec<_> = all.iter().filter(|word| changes_answers(word)).collect();
        assert_eq!(passed, ["-de", "-dR", "-dG"]);
    }
}

//! The state of one connection to the master CLI, and its effect on each command.

use super::super::{Level, Version};
use super::input::{payload, words};
use super::{MODES, TIMED};

/// Where a command goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// To the master itself.
    Master,
    /// To the haproxy process with this pid.
    Process(i32),
}

/// The form of the severity before each message of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Severity {
    None,
    Number,
    String,
}

impl Severity {
    fn read(words: &[&str]) -> Option<Self> {
        match *words.first()? {
            "none" => Some(Self::None),
            "number" => Some(Self::Number),
            "string" => Some(Self::String),
            _ => None,
        }
    }
}

/// The state of one connection.
#[derive(Debug, Clone)]
pub struct Session {
    /// The rights of the client.
    pub level: Level,
    expert: bool,
    experimental: bool,
    debug: bool,
    severity: Severity,
    /// Whether the connection stays open after a line.
    pub interactive: bool,
    /// Whether the client gets a prompt.
    pub prompt: bool,
    timed: bool,
    target: Target,
}

/// The outcome of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The command is done, without an answer.
    Done,
    /// The command is refused with this text, and all input received after it is dropped.
    Refused(String),
    /// The answer; later input is still processed.
    Say(String),
    /// The client ends the connection.
    Quit,
    /// The command goes to a target, without its prefix. The last field is the line that ends its
    /// payload, if it has one.
    Run(Target, Vec<u8>, Option<Vec<u8>>),
}

/// The most words of a command, without its prefix; older versions ignore further ones.
const MOST_WORDS: usize = 64;

/// From this version on more words are refused (tried with 3.2.26; 3.0.11 and 2.6.12 ignore them).
const COUNTED: Version = Version { major: 3, minor: 2, patch: 0 };

fn is_prefix(word: &(usize, &[u8])) -> bool {
    word.1.starts_with(b"@")
}

const PROMPT_USAGE: &str = "\
Usage: prompt [help | i | p | timed]*
Changes the default prompt and interactive mode. Available options:
  help    display this help
  i       set to interactive mode only (no prompt, multi-command)
  p       set to prompt+interactive mode (prompt + multi-command)
  timed   toggle displaying the current date in the prompt
Without any argument, toggles between i<->p.
";

impl Session {
    /// A new connection to a socket of this level.
    pub fn new(level: Level) -> Self {
        Self {
            level,
            expert: false,
            experimental: false,
            debug: false,
            severity: Severity::None,
            interactive: false,
            prompt: false,
            timed: false,
            target: Target::Master,
        }
    }

    /// Takes one command. `find` gives the process that a prefix (without its `@`) names.
    pub fn take(
        &mut self,
        command: &[u8],
        version: Version,
        find: impl Fn(&str) -> Option<Target>,
    ) -> Step {
        let words = words(command);
        if words.len() - usize::from(words.first().is_some_and(is_prefix)) > MOST_WORDS
            && version >= COUNTED
        {
            return Step::Say(format!(
                "Too many arguments. Commands must have at most {MOST_WORDS} arguments.\n\n"
            ));
        }
        let ends = payload(&words, version >= TIMED);
        let text: Vec<_> = words.iter().map(|(_, word)| String::from_utf8_lossy(word)).collect();
        let text: Vec<&str> = text.iter().map(AsRef::as_ref).collect();
        let Some(first) = text.first() else {
            return Step::Run(self.target, Vec::new(), None);
        };
        if let Some(prefix) = first.strip_prefix('@') {
            let Some(target) = find(prefix) else { return unknown_prefix(first) };
            return match words.get(1) {
                None => {
                    self.target = target;
                    Step::Done
                }
                Some((start, _)) => Step::Run(target, command[*start..].to_vec(), ends),
            };
        }
        let guarded = |needed: Level| {
            if self.level < needed {
                Err(Step::Refused("Permission denied!\n".to_owned()))
            } else {
                Ok(())
            }
        };
        let on = text.get(1) == Some(&"on");
        let done: Result<(), Step> = match (*first, text.as_slice()) {
            ("prompt", [_, options @ ..]) => self.set_prompt(options, version),
            ("quit", _) => Err(Step::Quit),
            ("operator", _) => guarded(Level::Operator).map(|()| self.level = Level::Operator),
            ("user", _) => guarded(Level::User).map(|()| self.level = Level::User),
            ("expert-mode", _) => guarded(Level::Admin).map(|()| self.expert = on),
            ("experimental-mode", _) => guarded(Level::Admin).map(|()| self.experimental = on),
            ("mcli-debug-mode", _) => guarded(Level::Admin).map(|()| self.debug = on),
            ("set", [_, "severity-output", rest @ ..]) => match Severity::read(rest) {
                Some(severity) => {
                    self.severity = severity;
                    Ok(())
                }
                None => Err(Step::Refused(
                    "one of 'none', 'number', 'string' is a required argument\n".to_owned(),
                )),
            },
            _ => return Step::Run(self.target, command.to_vec(), ends),
        };
        done.err().unwrap_or(Step::Done)
    }

    fn set_prompt(&mut self, options: &[&str], version: Version) -> Result<(), Step> {
        let timed = version >= TIMED && options.contains(&"timed");
        if version < MODES {
            if timed {
                self.timed = !self.timed;
                self.prompt = true;
            } else {
                self.prompt = !self.prompt;
            }
            self.interactive = self.prompt;
            return Ok(());
        }
        let mut mode = None;
        for option in options {
            match *option {
                "i" => mode = Some(false),
                "p" => mode = Some(true),
                "timed" => {}
                _ => return Err(Step::Refused(PROMPT_USAGE.to_owned())),
            }
        }
        if timed {
            self.timed = !self.timed;
            mode = mode.or(Some(true));
        }
        self.prompt = mode.unwrap_or(!self.prompt);
        self.interactive = true;
        Ok(())
    }

    /// The commands that put a generation into the state of this connection, sent before each
    /// command.
    pub fn preamble(&self) -> String {
        let mut text = self.lowered().to_owned();
        for command in self.modes() {
            text.push_str(command);
            text.push_str(" -;");
        }
        text
    }

    /// The part of the preamble that lowers the level.
    pub fn lowered(&self) -> &'static str {
        match self.level {
            Level::Admin => "",
            Level::Operator => "operator -;",
            Level::User => "user -;",
        }
    }

    /// The commands of the rest of the preamble.
    pub fn modes(&self) -> Vec<&'static str> {
        let severity = match self.severity {
            Severity::None => None,
            Severity::Number => Some("set severity-output number"),
            Severity::String => Some("set severity-output string"),
        };
        let expert = self.expert.then_some("expert-mode on");
        let experimental = self.experimental.then_some("experimental-mode on");
        severity.into_iter().chain(expert).chain(experimental).collect()
    }

    /// The commands that undo [`Self::modes`], for a connection that others will use.
    pub fn undone(&self) -> Vec<&'static str> {
        let severity = (self.severity != Severity::None).then_some("set severity-output none");
        let expert = self.expert.then_some("expert-mode off");
        let experimental = self.experimental.then_some("experimental-mode off");
        severity.into_iter().chain(expert).chain(experimental).collect()
    }

    /// Number of empty answers to [`Self::preamble`]: older versions answer some of its commands.
    pub fn empty_answers(&self, version: Version) -> usize {
        usize::from(version < TIMED && self.severity != Severity::None)
    }

    /// The `prompt` command that puts a generation into the mode of this connection.
    pub fn mode(&self) -> &'static str {
        match (self.prompt, self.timed) {
            (true, false) => "prompt p\n",
            (true, true) => "prompt p timed\n",
            (false, false) => "prompt i\n",
            (false, true) => "prompt i timed\n",
        }
    }

    /// The prompt while the connection waits for more of a payload.
    pub fn payload_prompt(&self) -> &'static str {
        if self.prompt { "+ " } else { "" }
    }

    /// The prompt while the connection waits for a command. `uptime` gives the uptime of a process
    /// in seconds.
    pub fn prompt(&self, failed: bool, uptime: impl Fn(Target) -> Option<u64>) -> String {
        if !self.prompt {
            return String::new();
        }
        let mut text = String::new();
        if self.timed {
            match uptime(self.target) {
                Some(up) => {
                    let (days, hours, minutes) = (up / 86400, up / 3600 % 24, up / 60 % 60);
                    text = format!("[{days}:{hours:02}:{minutes:02}:{:02}] ", up % 60);
                }
                None => text.push_str("[gone] "),
            }
        }
        match self.target {
            Target::Master if failed => text.push_str("master[ReloadFailed]"),
            Target::Master => text.push_str("master"),
            Target::Process(pid) => text.push_str(&pid.to_string()),
        }
        if self.expert || self.experimental || self.debug {
            text.push('(');
            text.push_str(if self.experimental { "x" } else { "" });
            text.push_str(if self.expert { "e" } else { "" });
            text.push_str(if self.debug { "d" } else { "" });
            text.push(')');
        }
        text + "> "
    }
}

fn unknown_prefix(prefix: &str) -> Step {
    Step::Refused(format!("Can't find the target PID matching the prefix '{prefix}'\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Version = Version { major: 3, minor: 2, patch: 0 };
    const OLD: Version = Version { major: 2, minor: 6, patch: 12 };

    fn find(prefix: &str) -> Option<Target> {
        match prefix {
            "" | "master" | "0" => Some(Target::Master),
            "1" | "!12" => Some(Target::Process(12)),
            _ => None,
        }
    }

    fn take(session: &mut Session, command: &str, version: Version) -> Step {
        session.take(command.as_bytes(), version, find)
    }

    fn shown(session: &Session) -> String {
        session.prompt(false, |_| Some(93784))
    }

    #[test]
    fn a_prefix_says_where_a_command_goes() {
        let mut session = Session::new(Level::Admin);
        let run = |target, text: &str| Step::Run(target, text.as_bytes().to_vec(), None);
        assert_eq!(take(&mut session, "show proc", NEW), run(Target::Master, "show proc"));
        let text = r"show  acl a\ b";
        assert_eq!(
            take(&mut session, &format!(" @1  {text}"), NEW),
            run(Target::Process(12), text)
        );
        assert_eq!(take(&mut session, "@!12 prompt", NEW), run(Target::Process(12), "prompt"));
        assert_eq!(take(&mut session, "@1", NEW), Step::Done);
        assert_eq!(take(&mut session, "show info", NEW), run(Target::Process(12), "show info"));
        assert_eq!(take(&mut session, "@", NEW), Step::Done);
        assert_eq!(take(&mut session, "show info", NEW), run(Target::Master, "show info"));
        let refused = "Can't find the target PID matching the prefix '@2'\n";
        assert_eq!(take(&mut session, "@2 show info", NEW), Step::Refused(refused.to_owned()));
        let step = take(&mut session, "@1 add map f <<%EOF", NEW);
        assert_eq!(
            step,
            Step::Run(Target::Process(12), b"add map f <<%EOF".to_vec(), Some(b"%EOF".to_vec()))
        );
    }

    #[test]
    fn more_words_than_a_command_may_have_are_refused_by_those_that_count_them() {
        let words = |count| vec!["x"; count].join(" ");
        let run = |target, text: String| Step::Run(target, text.into_bytes(), None);
        let mut session = Session::new(Level::Admin);
        let most = words(MOST_WORDS);
        assert_eq!(take(&mut session, &most, NEW), run(Target::Master, most.clone()));
        let step = take(&mut session, &format!("@1 {most}"), NEW);
        assert_eq!(step, run(Target::Process(12), most));
        let more = words(MOST_WORDS + 1);
        for text in [more.clone(), format!("@1 {more}")] {
            let Step::Say(said) = take(&mut session, &text, NEW) else { panic!("{text}") };
            assert_eq!(said, "Too many arguments. Commands must have at most 64 arguments.\n\n");
        }
        assert_eq!(take(&mut session, &more, OLD), run(Target::Master, more));
    }

    #[test]
    fn modes_hold_for_the_connection_and_for_generations() {
        let mut session = Session::new(Level::Admin);
        for command in
            ["expert-mode on", "experimental-mode on", "set severity-output number", "operator"]
        {
            assert_eq!(take(&mut session, command, NEW), Step::Done, "{command}");
        }
        assert_eq!(
            session.preamble(),
            "operator -;set severity-output number -;expert-mode on -;experimental-mode on -;"
        );
        let denied = Step::Refused("Permission denied!\n".to_owned());
        assert_eq!(take(&mut session, "expert-mode on", NEW), denied);
        assert_eq!(take(&mut session, "user", NEW), Step::Done);
        assert_eq!(take(&mut session, "operator", NEW), denied);
        assert!(session.preamble().starts_with("user -;"));
        assert!(matches!(take(&mut session, "set severity-output", NEW), Step::Refused(_)));
        assert!(matches!(take(&mut session, "set maxconn", NEW), Step::Run(Target::Master, ..)));
    }

    #[test]
    fn the_prompt_has_modes_from_3_1_on() {
        let mut session = Session::new(Level::Admin);
        assert_eq!(shown(&session), "");
        for (command, prompt, interactive) in [
            ("prompt", "master> ", true),
            ("prompt", "", true),
            ("prompt timed", "[1:02:03:04] master> ", true),
            ("prompt i", "", true),
            ("prompt p", "[1:02:03:04] master> ", true),
            ("prompt timed i", "", true),
            ("prompt p", "master> ", true),
            ("@1", "12> ", true),
            ("mcli-debug-mode on", "12(d)> ", true),
        ] {
            assert_eq!(take(&mut session, command, NEW), Step::Done, "{command}");
            assert_eq!(
                (shown(&session).as_str(), session.interactive),
                (prompt, interactive),
                "{command}"
            );
        }
        assert!(matches!(take(&mut session, "prompt n", NEW), Step::Refused(_)));
        let mut session = Session::new(Level::Admin);
        for (command, prompt) in
            [("prompt i", "master> "), ("prompt timed", ""), ("prompt", "master> ")]
        {
            assert_eq!(take(&mut session, command, OLD), Step::Done, "{command}");
            assert_eq!(shown(&session), prompt, "{command}");
            assert_eq!(session.interactive, !prompt.is_empty());
        }
        assert_eq!(session.prompt(true, |_| None), "master[ReloadFailed]> ");
    }
}

//! Questions that only the haproxy that will run can answer: how it treats variables that leave
//! nothing, whether it reads global sections ahead, which variables it sets, and which conditions
//! hold for its build and options.
//!
//! All questions are asked at once, with a generated configuration that `haproxy -c` reads:
//! `.notice` makes haproxy print what it has understood. So nothing depends on a table of versions,
//! which would be wrong for every distribution that has backported a change.

use std::collections::{BTreeMap, BTreeSet};

use super::quoting::{printable, quoted};
use super::reader::{Unset, find};

/// The known variables that haproxy sets while it reads (2.6 to 3.5-dev5).
const PREDEFINED: [&str; 9] = [
    "HAPROXY_BRANCH",
    "HAPROXY_HTTP_CLF_LOG_FMT",
    "HAPROXY_HTTPS_LOG_FMT",
    "HAPROXY_HTTP_LOG_FMT",
    "HAPROXY_KEYLOG_BC_LOG_FMT",
    "HAPROXY_KEYLOG_FC_LOG_FMT",
    "HAPROXY_STARTUP_VERSION",
    "HAPROXY_TCP_CLF_LOG_FMT",
    "HAPROXY_TCP_LOG_FMT",
];

/// The questions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Questions {
    /// Terms of conditions, such as `feature(QUIC)`, whose value does not depend on earlier lines.
    pub terms: BTreeSet<Vec<u8>>,
    /// Further variables that begin with `HAPROXY_`.
    pub names: BTreeSet<String>,
}

/// haproxy's answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers {
    /// How haproxy treats a variable that leaves nothing between its quotes.
    pub unset: Unset,
    /// Whether all global sections are read once before the files are read.
    pub discovery: bool,
    /// The variables of the questions and the known ones, with their values on the first line.
    pub variables: BTreeMap<String, Option<Vec<u8>>>,
    /// Whether a term holds, or why haproxy does not understand it.
    pub terms: BTreeMap<Vec<u8>, Result<bool, String>>,
}

impl Answers {
    /// The value of a variable of the questions.
    pub(super) fn variable(&self, name: &str) -> Option<&[u8]> {
        self.variables.get(name)?.as_deref()
    }

    /// Whether these answers cover terms that `others` do not.
    pub(super) fn adds_to(&self, others: &Self) -> bool {
        self.terms.keys().any(|term| !others.terms.contains_key(term))
    }
}

/// The beginning of each line that bindonce's own `.notice` prints.
const SIGN: &str = "bindonce-asks";

impl Questions {
    fn variables(&self) -> impl Iterator<Item = &str> {
        PREDEFINED.into_iter().chain(self.names.iter().map(String::as_str))
    }

    /// The configuration that asks, terms first: five lines each, from the first line on.
    pub(super) fn text(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, term) in self.terms.iter().enumerate() {
            out.extend(b".if ");
            out.extend(quoted(term));
            out.extend(format!("\n.notice \"{SIGN} term {number} holds\"\n.else\n").bytes());
            out.extend(format!(".notice \"{SIGN} term {number} fails\"\n.endif\n").bytes());
        }
        for name in self.variables() {
            let line = format!(
                ".if defined({name})\n.notice \"{SIGN} variable {name} ${{{name}}}\"\n.endif\n"
            );
            out.extend(line.bytes());
        }
        // `.notice` takes one word, and rejects a second one that is not empty.
        let line = format!(
            ".if defined(BINDONCE_READ_AHEAD)\n.notice \"{SIGN} reads ahead\"\n.endif\n\
             .notice \"{SIGN} empty\" \"${{BINDONCE_IS_NOT_SET[*]}}\" x\n\
             .notice \"{SIGN} join${{BINDONCE_IS_NOT_SET}}\" ed\n\
             .notice \"{SIGN} end\"\n\
             global\n    setenv BINDONCE_READ_AHEAD 1\n"
        );
        out.extend(line.bytes());
        out
    }

    /// The term that haproxy refuses in its message about a line of [`text`](Self::text), and the
    /// reason.
    pub(super) fn refused(&self, file: &str, output: &str) -> Option<(Vec<u8>, String)> {
        let head = format!("parsing [{file}:");
        output.lines().find_map(|line| {
            let (_, rest) = line.split_once(&head)?;
            let (number, reason) = rest.split_once(']')?;
            let number = number.parse::<usize>().ok()?.checked_sub(1)?;
            let (term, 0) = (number / 5, number % 5) else { return None };
            let reason = reason.trim_start_matches([' ', ':']);
            let reason = reason.rsplit_once(" in '.if'").map_or(reason, |(reason, _)| reason);
            Some((self.terms.iter().nth(term)?.clone(), printable(reason.as_bytes())))
        })
    }

    /// Reads haproxy's answers; None if haproxy has not read the configuration to its end.
    pub(super) fn answers(&self, output: &[u8]) -> Option<Answers> {
        let output = notices(output);
        let heard = |text: &str| output.contains(&text.as_bytes());
        if !heard("end") {
            return None;
        }
        let unset = match (heard("empty"), heard("joined")) {
            (true, _) => Unset::Empty,
            (false, true) => Unset::Joined,
            (false, false) => Unset::NoWord,
        };
        let value = |name: &str| {
            let head = format!("variable {name} ");
            output
                .iter()
                .find_map(|notice| notice.strip_prefix(head.as_bytes()).map(<[u8]>::to_vec))
        };
        let variables = self.variables().map(|name| (name.to_owned(), value(name))).collect();
        let terms = self.terms.iter().enumerate().filter_map(|(number, term)| {
            let holds = heard(&format!("term {number} holds"));
            (holds || heard(&format!("term {number} fails"))).then(|| (term.clone(), Ok(holds)))
        });
        Some(Answers { unset, discovery: heard("reads ahead"), variables, terms: terms.collect() })
    }
}

/// The lines of bindonce's `.notice` in haproxy's output, without the sign.
fn notices(output: &[u8]) -> Vec<&[u8]> {
    let head = format!(": '{SIGN} ").into_bytes();
    let mut rest = output;
    let mut out = Vec::new();
    while let Some(at) = find(rest, &head) {
        rest = &rest[at + head.len()..];
        // Each ends in a quote, a full stop and a line feed.
        let Some(end) = find(rest, b"'.\n") else { break };
        out.push(&rest[..end]);
        rest = &rest[end..];
    }
    out
}

/// All names that begin with `HAPROXY_` in a text.
pub(super) fn names(text: &[u8]) -> BTreeSet<String> {
    const HEAD: &[u8] = b"HAPROXY_";
    let mut rest = text;
    let mut names = BTreeSet::new();
    while let Some(at) = find(rest, HEAD) {
        rest = &rest[at..];
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        let length = rest.iter().position(|byte| !plain(byte)).unwrap_or(rest.len());
        // Letters, digits and underscores only.
        names.insert(String::from_utf8_lossy(&rest[..length]).into_owned());
        rest = &rest[length..];
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn questions() -> Questions {
        Questions {
            terms: [&b"feature(A)"[..], b"nonsense"].map(<[u8]>::to_vec).into(),
            names: names(b"x $HAPROXY_NEW ${HAPROXY_NEW} HAPROXY_"),
        }
    }

    #[test]
    fn answers_are_read_as_haproxy_prints_them() {
        let output = b"[NOTICE]   (19) : config : parsing [/dev/stdin:2]: 'bindonce-asks term 0 holds'.\n\
            [NOTICE]   (19) : haproxy version is 3.2.26-1\n\
            [NOTICE]   (19) : config : parsing [/dev/stdin:12]: 'bindonce-asks variable HAPROXY_BRANCH 3.2'.\n\
            [NOTICE]   (19) : config : parsing [/dev/stdin:13]: 'bindonce-asks variable HAPROXY_NEW it's'.\n\
            [NOTICE]   (19) : config : parsing [/dev/stdin:43]: 'bindonce-asks joined'.\n\
            [NOTICE]   (19) : config : parsing [/dev/stdin:43]: 'bindonce-asks reads ahead'.\n\
            [NOTICE]   (19) : config : parsing [/dev/stdin:44]: 'bindonce-asks end'.\n";
        let answers = questions().answers(output).expect("to the end");
        assert_eq!(answers.unset, Unset::Joined);
        assert!(answers.discovery);
        assert_eq!(answers.terms, [(b"feature(A)".to_vec(), Ok(true))].into());
        assert_eq!(answers.variables["HAPROXY_BRANCH"].as_deref(), Some(&b"3.2"[..]));
        assert_eq!(answers.variables["HAPROXY_NEW"].as_deref(), Some(&b"it's"[..]));
        assert_eq!(answers.variables["HAPROXY_TCP_LOG_FMT"], None);
        assert_eq!(questions().answers(&output[..200]), None);
    }

    #[test]
    fn a_complaint_is_about_one_term() {
        let output = "[ALERT]    (1) : config : parsing [/dev/stdin:6]: unparsable conditional expression 'nonsense' in '.if' at position 1:\n  .if nonsense\n      ^\n";
        let refused = questions().refused("/dev/stdin", output).expect("a term");
        assert_eq!(refused.0, b"nonsense");
        assert_eq!(refused.1, "unparsable conditional expression 'nonsense'");
        assert_eq!(questions().refused("/dev/stdin", "parsing [/dev/stdin:7]: x"), None);
        assert_eq!(questions().refused("/dev/stdin", "parsing [/dev/stdin:999]: x"), None);
    }
}

//! Variables that name a program's sockets in the form that it expects: `NGINX={fds:;};`.
//!
//! | placeholder | replaced by |
//! |---|---|
//! | `{fds}` | the numbers of all descriptors, separated by commas |
//! | `{fds:SEP}` | the same with the separator SEP |
//! | `{count}` | the number of descriptors |
//! | `{fd:NAME}` | the descriptor number of the listener NAME |
//! | `{service}`, `{generation}` | the service's name, the generation's number |
//! | `{{`, `}}` | a brace |

use std::str::FromStr;

use bindonce_core::name::Name;

/// A variable and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Template,
}

/// A text with placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Numbers(String),
    Count,
    Number(Name),
    Service,
    Generation,
}

/// What the placeholders stand for.
#[derive(Debug, Clone, Copy)]
pub struct Numbers<'a> {
    /// Name and number of each descriptor.
    pub descriptors: &'a [(Name, i32)],
    /// The name of the service.
    pub service: &'a Name,
    /// The number of the generation.
    pub generation: u64,
}

/// Why a variable cannot be parsed, or cannot be filled in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The text is not `NAME=TEXT`, or no shell would accept the name.
    #[error("{0:?} is no variable: write NAME=TEXT, as in NGINX='{{fds:;}};'")]
    NoVariable(String),
    /// A placeholder that does not exist.
    #[error(
        "{{{0}}} is no placeholder: there are {{fds}}, {{fds:SEPARATOR}}, {{count}}, {{fd:NAME}}, \
         {{service}} and {{generation}}; write {{{{ for a brace"
    )]
    UnknownPlaceholder(String),
    /// A brace that is not closed, or was not opened.
    #[error(
        "a brace in {0:?} has no partner: write {{{{ or }}}} for a brace that stands for itself"
    )]
    Unbalanced(String),
    /// `{fd:NAME}` names a listener that does not exist.
    #[error("{{fd:{0}}} names no listener: add --listen {0}=ADDR")]
    UnknownListener(Name),
}

impl FromStr for Variable {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        let (name, value) =
            text.split_once('=').ok_or_else(|| TemplateError::NoVariable(text.to_owned()))?;
        let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
        let good =
            name.starts_with(letter) && name.chars().all(|c| letter(c) || c.is_ascii_digit());
        if !good {
            return Err(TemplateError::NoVariable(text.to_owned()));
        }
        Ok(Self { name: name.to_owned(), value: value.parse()? })
    }
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        let unbalanced = || TemplateError::Unbalanced(text.to_owned());
        let (mut parts, mut plain) = (Vec::new(), String::new());
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            match c {
                '{' | '}' if rest.as_str().starts_with(c) => {
                    rest.next();
                    plain.push(c);
                }
                '{' => {
                    let (inside, after) = rest.as_str().split_once('}').ok_or_else(unbalanced)?;
                    rest = after.chars();
                    if !plain.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut plain)));
                    }
                    parts.push(Part::read(inside)?);
                }
                '}' => return Err(unbalanced()),
                c => plain.push(c),
            }
        }
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self(parts))
    }
}

impl Part {
    fn read(inside: &str) -> Result<Self, TemplateError> {
        let unknown = || TemplateError::UnknownPlaceholder(inside.to_owned());
        Ok(match inside.split_once(':') {
            Some(("fds", separator)) => Self::Numbers(separator.to_owned()),
            Some(("fd", name)) => Self::Number(name.parse().map_err(|_| unknown())?),
            Some(_) => return Err(unknown()),
            None => match inside {
                "fds" => Self::Numbers(",".to_owned()),
                "count" => Self::Count,
                "service" => Self::Service,
                "generation" => Self::Generation,
                _ => return Err(unknown()),
            },
        })
    }
}

impl Template {
    /// The text, filled in.
    ///
    /// # Errors
    /// [`TemplateError::UnknownListener`].
    pub fn fill(&self, numbers: Numbers<'_>) -> Result<String, TemplateError> {
        let Numbers { descriptors, service, generation } = numbers;
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Numbers(separator) => {
                    let all: Vec<_> =
                        descriptors.iter().map(|(_, number)| number.to_string()).collect();
                    text.push_str(&all.join(separator));
                }
                Part::Count => text.push_str(&descriptors.len().to_string()),
                Part::Number(name) => {
                    let found = descriptors.iter().find(|(known, _)| known == name);
                    let (_, number) =
                        found.ok_or_else(|| TemplateError::UnknownListener(name.clone()))?;
                    text.push_str(&number.to_string());
                }
                Part::Service => text.push_str(service.as_str()),
                Part::Generation => text.push_str(&generation.to_string()),
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(text: &str) -> Result<String, TemplateError> {
        let name = |name: &str| name.parse::<Name>().expect("a name");
        let descriptors = [(name("web"), 3), (name("admin"), 4)];
        let service = name("edge");
        let numbers = Numbers { descriptors: &descriptors, service: &service, generation: 7 };
        text.parse::<Variable>()?.value.fill(numbers)
    }

    #[test]
    fn programs_find_their_sockets_as_they_want_them() {
        for (text, expected) in [
            ("NGINX={fds:;};", "3;4;"),
            ("UNICORN_FD={fds}", "3,4"),
            ("EINHORN_FD_COUNT={count}", "2"),
            ("PUMA_INHERIT_0={fd:admin}:tcp://:9292", "4:tcp://:9292"),
            ("PIDFILE=/run/{service}-{generation}.pid", "/run/edge-7.pid"),
            ("JSON={{\"web\":{fd:web}}}", "{\"web\":3}"),
            ("EMPTY=", ""),
            ("_a1=b=c", "b=c"),
        ] {
            assert_eq!(fill(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (text, expected) in [
            ("NGINX", "NAME=TEXT"),
            ("1=x", "NAME=TEXT"),
            ("=x", "NAME=TEXT"),
            ("a b=x", "NAME=TEXT"),
            ("A={fds", "partner"),
            ("A=fds}", "partner"),
            ("A={}", "{} is no placeholder"),
            ("A={web}", "{web} is no placeholder"),
            ("A={fd:}", "{fd:} is no placeholder"),
            ("A={pid:x}", "is no placeholder"),
            ("A={fd:other}", "--listen other=ADDR"),
        ] {
            let error = fill(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}

//! From a command to its rendered copy. The files are read again each time haproxy had to be asked.

use std::collections::BTreeSet;
use std::io;

use super::command::Command;
use super::questions::Answers;
use super::rendering::{Rendering, Supplied};
use super::walk::{Stopped, Walk};
use super::world::World;
use super::{Error, files};

impl Rendering {
    /// Reads every file of a command and renders its copy.
    ///
    /// # Errors
    /// A file that cannot be read, text that haproxy would refuse where it matters for listeners,
    /// two bind lines on one address, and templates with other tags than `bind_tcp`. All other
    /// mistakes are left for haproxy to report.
    pub fn of(command: &Command, supplied: Supplied<'_>, world: &dyn World) -> Result<Self, Error> {
        let sources = files::read(command, world)?;
        let mut answers: Option<Answers> = None;
        let (mut under_master, mut missing) = (false, BTreeSet::new());
        let mut quic_is_off = false;
        // Reading the lines shows what only haproxy knows. One round of questions is the rule; a
        // further one is about terms that no earlier line could have shown.
        loop {
            let known = answers.as_ref();
            let walk =
                Walk::new(command, &supplied, world, &sources, known, under_master, &missing)?;
            let questions = match walk.run(quic_is_off) {
                Ok(rendering) => match rendering.missing_for_the_broker(world) {
                    none if none.is_empty() => return Ok(rendering),
                    devices => {
                        missing.extend(devices);
                        continue;
                    }
                },
                Err(Stopped::Error(error)) => return Err(error),
                Err(Stopped::Asks(questions)) => questions,
                Err(Stopped::UnderMaster) => {
                    under_master = true;
                    continue;
                }
                Err(Stopped::Quic { is_off }) => {
                    quic_is_off = is_off;
                    continue;
                }
            };
            let answer = world.ask(&questions, &command.arguments);
            let answer = answer
                .map_err(|source| Error::Unanswered { program: command.program.clone(), source })?;
            match &mut answers {
                None => answers = Some(answer),
                // The answer added nothing: the next question would be the same.
                Some(known) if !answer.adds_to(known) => {
                    let source = io::Error::other("it does not say whether a condition holds");
                    return Err(Error::Unanswered { program: command.program.clone(), source });
                }
                Some(known) => known.terms.extend(answer.terms),
            }
        }
    }
}

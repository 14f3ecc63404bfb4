//! What the keys do. One action runs at a time, and a generation is ended only after a second key
//! has confirmed it.

use super::{Action, Effect, Message, Model, Pane, SPANS, Sort};
use crate::command::top::keys::Key;
use crate::command::top::overview::{Generation, Service, Supervision};

/// Lines that PageUp and PageDown move.
const PAGE: usize = 10;

impl Model {
    pub(super) fn key(&mut self, key: Key) -> Vec<Effect> {
        match key {
            Key::Control('c') => return vec![Effect::Quit],
            Key::Control('l') => return vec![Effect::Redraw],
            Key::Control('z') => return vec![Effect::Suspend],
            _ => {}
        }
        if self.view.help {
            self.view.help = false;
            return Vec::new();
        }
        if let Some((service, generation)) = self.asking.take() {
            return match key {
                Key::Char('y' | 'Y') => self.act(Action::Retire { service, generation }),
                _ => self.say("nothing was ended"),
            };
        }
        match key {
            Key::Char('q') => return vec![Effect::Quit],
            Key::Escape if self.message.is_some() => self.message = None,
            Key::Escape => return vec![Effect::Quit],
            Key::Char('?' | 'h') => self.view.help = true,
            Key::Char('r') => return self.reload(),
            Key::Char('x' | 'R') => return self.retire(),
            Key::Char('s') => self.view.sort = self.view.sort.next(),
            Key::Char('+' | '=') => self.view.span = Some(self.span_index().saturating_sub(1)),
            Key::Char('-') => self.view.span = Some((self.span_index() + 1).min(SPANS.len() - 1)),
            Key::Char('0') => self.view.span = None,
            Key::Tab => self.view.pane = self.view.pane.next(),
            Key::BackTab => self.view.pane = self.view.pane.next().next(),
            Key::Up | Key::Char('k') => self.go(1, false),
            Key::Down | Key::Char('j') => self.go(1, true),
            Key::PageUp => self.go(PAGE, false),
            Key::PageDown => self.go(PAGE, true),
            Key::Home | Key::Char('g') => self.go(usize::MAX, false),
            Key::End | Key::Char('G') => self.go(usize::MAX, true),
            _ => {}
        }
        Vec::new()
    }

    fn go(&mut self, by: usize, down: bool) {
        let moved = |at: usize, len: usize, down: bool| match down {
            true => at.saturating_add(by).min(len.saturating_sub(1)),
            false => at.saturating_sub(by),
        };
        match self.view.pane {
            Pane::Services => {
                let rows = self.rows();
                let at = rows.iter().position(|row| Some(row) == self.view.chosen.as_ref());
                self.view.chosen = rows.get(moved(at.unwrap_or(0), rows.len(), down)).cloned();
            }
            Pane::Listeners => {
                self.view.listener = moved(self.view.listener, self.listeners.len(), down);
            }
            Pane::Events => self.view.back = moved(self.view.back, self.events.len(), !down),
        }
    }

    fn say(&mut self, text: impl Into<String>) -> Vec<Effect> {
        self.message = Some(Message::Notice(self.now, text.into()));
        Vec::new()
    }

    fn act(&mut self, action: Action) -> Vec<Effect> {
        self.message = None;
        self.doing = Some((action.clone(), self.now));
        vec![Effect::Act(action)]
    }

    /// The chosen service, if an action can start on it now; else shows why not.
    fn free(&mut self) -> Option<Service> {
        let text = match (&self.doing, self.service().cloned()) {
            (Some((action, _)), _) => format!("{} first: one thing at a time", action.gerund()),
            (None, None) => {
                "there is no service; start one with `bindonce run -- haproxy -f FILE`".to_owned()
            }
            (None, Some(service)) if service.supervision == Supervision::Nobody => {
                format!(
                    "\"{}\" has no supervisor: its program joined the broker by itself",
                    service.name
                )
            }
            (None, service) => return service,
        };
        self.say(text);
        None
    }

    fn reload(&mut self) -> Vec<Effect> {
        match self.free() {
            Some(service) => self.act(Action::Reload { service: service.name }),
            None => Vec::new(),
        }
    }

    fn retire(&mut self) -> Vec<Effect> {
        let Some(service) = self.free() else { return Vec::new() };
        let name = service.name;
        let drains = |generation: &&Generation| generation.state == "draining";
        let number = self.view.chosen.as_ref().and_then(|(_, number)| *number);
        let found = match number {
            None => service.generations.iter().find(drains),
            Some(number) => service.generations.iter().find(|known| known.number == number),
        };
        match (found, number) {
            (Some(generation), _) if drains(&generation) => {
                self.message = None;
                self.asking = Some((name, generation.number));
                Vec::new()
            }
            (Some(Generation { number, state, .. }), _) => self.say(format!(
                "generation {number} of \"{name}\" is {state}: only one that drains can be ended"
            )),
            (None, Some(number)) => {
                self.say(format!("generation {number} of \"{name}\" has ended"))
            }
            (None, None) => self.say(format!("no generation of \"{name}\" drains")),
        }
    }
}

impl Sort {
    fn next(self) -> Self {
        match self {
            Self::Name => Self::Queue,
            Self::Queue => Self::Users,
            Self::Users => Self::Name,
        }
    }

    /// As in "by ...".
    pub(in crate::command::top) fn word(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Queue => "queue",
            Self::Users => "users",
        }
    }
}

impl Pane {
    fn next(self) -> Self {
        match self {
            Self::Services => Self::Listeners,
            Self::Listeners => Self::Events,
            Self::Events => Self::Services,
        }
    }
}

impl Action {
    /// As in "... continues".
    pub(in crate::command::top) fn gerund(&self) -> String {
        match self {
            Self::Reload { service } => format!("reloading \"{service}\""),
            Self::Retire { service, generation } => {
                format!("ending generation {generation} of \"{service}\"")
            }
        }
    }
}

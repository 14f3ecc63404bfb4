//! Starting a program that is not haproxy. It finds its sockets as under systemd
//! (sd_listen_fds(3)), in a variable for each, and in the variables that the user has asked for.

use std::rc::Rc;

use bindonce_core::generation::GenerationId;
use bindonce_core::intercept::Scope;
use bindonce_core::name::Name;
use bindonce_sys::inherit;
use bindonce_sys::shim::Interception;
use bindonce_sys::spawn::Launch;

use super::order::{Order, passed};
use crate::error::Error;
use crate::generations::listeners::HeldListener;
use crate::generations::notifications::Notifications;
use crate::program::{Numbers, Program, Readiness};
use crate::settings::Settings;
use bindonce_haproxy::config::Messages;

/// The order that starts the program with these listeners.
pub(crate) fn order(
    program: &Program,
    settings: &Settings,
    id: GenerationId,
    listeners: &[Rc<HeldListener>],
) -> Result<Order, Error> {
    let mut launch = Launch::new(program.program.clone());
    launch.args.clone_from(&program.arguments);
    // A session of its own: it identifies all descendants, a terminal does not notice short stops,
    // and our death means nothing to the program.
    launch.service = true;
    launch.calls.intercept = match &program.intercept {
        None => Interception::Not,
        Some(_) if program.without_intercept => Interception::IfPossible,
        Some(_) => Interception::Always,
    };
    launch.calls.unlinks = program.intercept.as_ref().is_some_and(Scope::has_paths);
    let names: Vec<_> = listeners.iter().filter_map(|held| held.listener.name.clone()).collect();
    let descriptors: Vec<(Name, i32)> = names.iter().cloned().zip(inherit::FIRST..).collect();
    let mut set = |name: &str, value: String| launch.env.push((name.into(), value.into()));
    // A program that binds itself would take these variables for an activation without sockets.
    if !(listeners.is_empty() && program.intercept.is_some()) {
        set("LISTEN_FDS", listeners.len().to_string());
        let shown: Vec<_> = names.iter().map(Name::as_str).collect();
        set("LISTEN_FDNAMES", shown.join(":"));
    }
    for (name, number) in &descriptors {
        set(&name.variable(), number.to_string());
    }
    let numbers =
        Numbers { descriptors: &descriptors, service: &settings.service, generation: id.0 };
    for variable in &program.variables {
        set(&variable.name, variable.value.fill(numbers)?);
    }
    let notifications = match program.readiness {
        // A program that finds its socket listening already may not call listen(2).
        Readiness::Notify | Readiness::Listen => Some(Notifications::new()?),
        Readiness::Check(_) | Readiness::Delay(_) => None,
    };
    if let Some(notifications) = &notifications {
        set("NOTIFY_SOCKET", notifications.address().to_owned());
    }
    launch.descriptors = passed(listeners).collect();
    Ok(Order { launch, messages: Messages::default(), admin: None, notifications })
}

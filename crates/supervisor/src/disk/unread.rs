//! Detects changes on disk while no supervisor ran: the generation that is taken over may serve
//! another configuration than the current files and command line.

use std::time::Duration;

use bindonce_sys::worker;

use crate::context::Context;
use crate::generations::start::Prepared;

/// How long reading the files may take. The serving generation has no supervisor meanwhile.
const READ: Duration = Duration::from_secs(5);

/// The difference to the prepared start. None if nothing has changed, and for a program that reads
/// its own configuration.
pub(crate) async fn changed(cx: &Context, prepared: &Prepared) -> Option<String> {
    let Prepared::Haproxy(rendered) = prepared else { return None };
    if !cx.settings.kind.haproxy().is_some_and(|haproxy| rendered.is_of(haproxy)) {
        return Some("the command is another than it was started with".to_owned());
    }
    let world = rendered.kind.world(&cx.passed.known).ok()?;
    let (command, rendering) = (rendered.kind.command.clone(), (*rendered.rendering).clone());
    let read = worker::within(READ, move || rendering.reads_as_before(&command, &world)).await;
    match read.and_then(|read| read.map_err(std::io::Error::other)) {
        Ok(true) => None,
        Ok(false) => Some("its files have changed since they were read".to_owned()),
        Err(error) => Some(format!("its files cannot be read: {error}")),
    }
}

//! What has changed on disk while no supervisor was there: the generation that is taken over may serve another
//! configuration than the files and the command say by now.

use std::time::Duration;

use bindonce_sys::worker;

use crate::context::Context;
use crate::generations::start::Prepared;

/// How long the files may take to be read: what serves waits for its supervisor.
const READ: Duration = Duration::from_secs(5);

/// What has changed since this was prepared; none if nothing has, and of a program, which reads its configuration itself.
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

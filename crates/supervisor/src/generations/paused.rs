//! A haproxy that was paused for a handover which nobody has finished: its supervisor and the
//! watchdog were killed together.

use bindonce_sys::process::handles;
use bindonce_sys::signals::Signal;

use crate::context::Context;
use crate::generations::admin::Admin;
use crate::generations::generation::Generation;
use crate::generations::process;

/// Lets a haproxy that is to serve accept again, if a newer generation was being started when its
/// supervisor died, or if it does not answer on its admin socket. (A paused 2.6 answers there, and a
/// later version does not.) A haproxy that is not paused ignores the signal, except for frontends
/// that its operator has disabled.
pub(crate) fn resume(cx: &Context, generation: &mut Generation, was_replaced: bool) {
    let (id, kind) = (generation.id, &cx.settings.kind);
    let answers = generation.cli.admin.is_some();
    let is_silent = kind.has_admin() && !answers;
    if kind.haproxy().is_none() || !is_silent && !was_replaced {
        return;
    }
    // The signal would stop a process that does not handle it: a script in front of haproxy, or a
    // haproxy that has just been started.
    if !handles(generation.pid(), Signal::SIGTTIN) {
        return;
    }
    // It may have ended just now.
    let _ = generation.pidfd.send(Signal::SIGTTIN);
    let socket = cx.directory.admin(id);
    if is_silent && socket.exists() {
        generation.cli.admin = Some(Admin::connect(socket, process::on_answer(cx, id)));
    }
}

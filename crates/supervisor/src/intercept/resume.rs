//! Intercepted calls of a generation that an earlier supervisor has left. They are answered again,
//! or the log says how they fail.

use std::io;
use std::sync::Arc;

use bindonce_haproxy::config::Rendering;
use bindonce_sys::intercept::{Intercept, may_be_intercepted};

use crate::context::Context;
use crate::generations::generation::Generation;

/// Answers the calls of a generation that was taken over. If the supervisor and the watchdog were
/// both killed, no descriptor is left to answer them with.
pub(crate) fn serve_again(
    cx: &Context,
    generation: &mut Generation,
    rendering: Option<&Rendering>,
    left: Option<io::Result<Intercept>>,
) {
    let (id, pid) = (generation.id.0, generation.pid());
    let reload = cx.settings.command("reload");
    match left {
        Some(Ok(_)) if cx.settings.kind.program().is_some_and(|it| it.intercept.is_none()) => {
            let text = "it was started with --intercept, and this supervisor was not: its bind() fails with ENOSYS";
            tracing::warn!(
                generation = id,
                pid,
                "{text}; `{reload}` starts one that binds by itself"
            );
        }
        Some(Ok(calls)) => super::serve(cx, generation, Arc::new(calls), None),
        Some(Err(error)) => {
            tracing::error!(generation = id, pid, %error, "its bind() cannot be answered");
        }
        None if cx.settings.kind.program().is_none() => {
            // The filter of a haproxy that may bind while it serves does not cover bind(2).
            if rendering.is_some_and(|it| !it.binds_while_it_serves()) && may_be_intercepted(pid) {
                tracing::warn!(
                    generation = id,
                    pid,
                    "generation {id}: bind() fails with ENOSYS, because its supervisor and watchdog have ended. Its \
                     listeners still serve; servers added with `source` are unreachable. `{reload}` starts a \
                     generation whose bind() works"
                );
            }
        }
        None if !cx.settings.kind.is_intercepted() => {}
        None if !may_be_intercepted(pid) => {
            tracing::warn!(
                generation = id,
                pid,
                "generation {id} runs without --intercept; `{reload}` starts one with it"
            );
        }
        None => tracing::warn!(
            generation = id,
            pid,
            "its bind() fails with ENOSYS, since the supervisor that answered it is gone, and its watchdog: what it \
             has bound is served; `{reload}` starts one whose bind() is answered"
        ),
    }
}

//! Watches a generation: while it serves, whether it still listens; once it was told to stop,
//! whether it has stopped, and then how many connections are left.
//!
//! haproxy is asked on its admin connection, and then its descriptors must agree: it has stopped
//! when none of its processes has a descriptor of a listener. For any other program, and for a
//! haproxy without that connection, the descriptors alone decide.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::event;
use bindonce_core::generation::Event;
use bindonce_sys::worker;

use crate::context::Context;
use crate::generations::admin::{Admin, NoAnswer};
use crate::generations::counting::{self, Pace};
use crate::generations::family::{Descriptors, Family};
use crate::generations::foreign;
use crate::generations::generation::Generation;
use crate::generations::hanging::Hanging;
use crate::generations::idle::Closing;
use crate::generations::since::Since;
use crate::kind::Kind;
use crate::message::Message;
use bindonce_haproxy::cli::Info;

/// Time between two looks at a generation that was told to stop: at first, and later.
const STOP_LOOK: Duration = Duration::from_millis(2);
const STOP_LOOK_LATER: Duration = Duration::from_millis(10);
/// Time between two looks at a draining generation: at first, and later.
const DRAIN_LOOK: Duration = Duration::from_millis(100);
const DRAIN_LOOK_LATER: Duration = Duration::from_secs(1);
/// How long a look at what a program listens on may take.
const ELSEWHERE: Duration = Duration::from_secs(10);
/// Time between two looks at the serving generation: at first, and later.
const SERVING_LOOK: Duration = Duration::from_millis(100);
const SERVING_LOOK_LATER: Duration = Duration::from_secs(1);
/// How long an answer of the admin socket may take.
const ANSWER: Duration = Duration::from_secs(1);

/// Checks now and then whether another process has told the serving generation to stop, or its own
/// master to reload. Another generation must be started then.
pub(crate) fn watch_serving(cx: &Context, generation: &mut Generation) {
    let (cx, id) = (cx.clone(), generation.id);
    let kind = cx.settings.kind.clone();
    let mut admin = generation.cli.admin.clone();
    let family = Family::of(&kind, generation);
    // A program whose calls are intercepted may have bound nothing yet. This is called again when
    // it has.
    if kind.is_intercepted() && generation.listeners.is_empty() {
        return;
    }
    let task = crate::tasks::spawn(async move {
        let leaves = |how| cx.send(Message::Leaves(id, how));
        let mut known = family.workers();
        let mut said = false;
        for look in 0u32.. {
            let wait = if look < 10 { SERVING_LOOK } else { SERVING_LOOK_LATER };
            tokio::time::sleep(wait).await;
            let mut told = None;
            match &admin {
                Some(asked) => match asked.info(ANSWER).await {
                    Ok(info) if info.stopping => told = Some(info),
                    Ok(info) => {
                        cx.send(Message::Counts(id, Since::all(&info), false));
                        cx.send(Message::Left(id, info.connections));
                    }
                    Err(NoAnswer::InTime) => {}
                    // Its process may have ended. If it has not, its descriptors alone tell now.
                    Err(NoAnswer::Closed) => {
                        admin = None;
                        continue;
                    }
                },
                // The first process has the listeners from the start, and closes them when it
                // stops.
                None if !family.has_master && family.has(family.pid) => continue,
                None => {}
            }
            if family.has_master {
                let workers = family.workers();
                if workers.difference(&known).any(|pid| family.has(*pid)) {
                    leaves("haproxy's own master was told to reload");
                }
                known = workers;
            }
            // Without a listener of ours no descriptor shows anything.
            let may_have_closed = told.is_some() || admin.is_none() && !family.all.is_empty();
            if may_have_closed && matches!(family.look(told.as_ref()), Descriptors::Closed) {
                break;
            }
            if told.is_some() && !std::mem::replace(&mut said, true) && !family.has_master {
                leaves("another process has told this generation to stop");
            }
        }
        let text = match listens_elsewhere(kind, family.pid, &family.all).await {
            Some(addresses) => format!(
                "this program has closed the sockets that it was given and listens on {addresses} by \
                 itself, where bindonce protects nothing: let it take the descriptors (LISTEN_FDS, or \
                 --variable), or give its address to --listen; starting another"
            ),
            // The new worker has none of the listeners yet, or there is no new worker.
            None if family.has_master => {
                "no worker of haproxy's own master accepts any more: the master was told to \
                                          reload, or its worker to stop; starting another"
                    .to_owned()
            }
            None => "this generation stopped, but not at the supervisor's request; \
                     starting another"
                .to_owned(),
        };
        tracing::error!(generation = id.0, pid = family.pid, "{text}");
        cx.record(id, Some(family.pid), event::Kind::GenerationStopped, text);
        cx.later(Event::Stopped(id));
    });
    generation.tasks.watch(task.abort_handle());
}

/// Begins to watch whether a generation has stopped, and then what is left of it.
pub(crate) fn watch_stop(cx: &Context, generation: &mut Generation, pace: Rc<Pace>) {
    let (cx, id) = (cx.clone(), generation.id);
    let admin = generation.cli.admin.clone();
    let family = Family::of(&cx.settings.kind, generation);
    generation.tasks.end();
    let is_haproxy = cx.settings.kind.haproxy().is_some();
    let idle = Rc::clone(&generation.drain.idle);
    idle.set(idle.get().or(cx.settings.drain_idle));
    let task = crate::tasks::spawn(async move {
        let told = match &admin {
            Some(admin) => wait_for_close(&cx, &family, admin).await,
            None => None,
        };
        closed(&family, told.as_ref()).await;
        cx.later(Event::Stopped(id));
        // One that is only silent may answer later. Its connection keeps the process alive, so it
        // must be known when the last client has left.
        let mut admin = admin.filter(|admin| !admin.has_ended());
        let mut before = told.clone().unwrap_or_default();
        if let Some(info) = &told {
            cx.send(Message::Counts(id, Since::all(info), false));
        }
        let (mut closing, mut hanging) = (Closing::new(idle), Hanging::default());
        let mut untold = false;
        for look in 0u32.. {
            match &admin {
                Some(asked) => match asked.info(ANSWER).await {
                    Ok(info) => {
                        cx.send(Message::Counts(id, Since::all(&info), true));
                        cx.send(Message::Left(id, info.connections));
                        if info.connections > 0 && info != before {
                            counting::ask_draining(&cx, id, asked, &pace).await;
                        }
                        before = info.clone();
                        close_idle(&cx, &family, &mut closing, asked, &info).await;
                    }
                    Err(NoAnswer::InTime) => {}
                    Err(NoAnswer::Closed) => {
                        admin = None;
                        untold = true;
                    }
                },
                None if std::mem::take(&mut untold) => cx.send(Message::CannotTell(id)),
                // Only its exit is left.
                None if is_haproxy && hanging.look(family.workers()) => {
                    // The last client may have left after the last answer.
                    cx.send(Message::Left(id, 0));
                    return cx.later(Event::Hangs(id));
                }
                // Only a master can get closed listeners back.
                None if !is_haproxy => return,
                None => {}
            }
            if family.has_master && matches!(family.look(told.as_ref()), Descriptors::Open) {
                return cx.later(Event::Listens(id));
            }
            let wait = if look < 20 { DRAIN_LOOK } else { DRAIN_LOOK_LATER };
            tokio::time::sleep(wait).await;
        }
    });
    generation.tasks.watch(task.abort_handle());
}

/// Closes connections that have been idle for long enough, and reports how many, or why it cannot.
async fn close_idle(
    cx: &Context,
    family: &Family,
    closing: &mut Closing,
    admin: &Admin,
    info: &Info,
) {
    let (id, pid) = (family.id, info.pid.unwrap_or(family.pid));
    match closing.look(admin, info, pid).await {
        Ok(0) => {}
        Ok(count) => {
            tracing::info!(generation = id.0, pid, count, "closed idle connections (--drain-idle)");
            cx.send(Message::IdleClosed(id, count));
        }
        Err(error) => {
            let hint = match error.kind() {
                std::io::ErrorKind::PermissionDenied => {
                    "; allow bindonce to trace haproxy: CAP_SYS_PTRACE, or the same user"
                }
                _ => "",
            };
            tracing::warn!(
                generation = id.0,
                pid,
                "idle connections are no longer closed (--drain-idle): {error}{hint}"
            );
        }
    }
}

/// Waits until haproxy reports that it has closed its listeners, and sends an event when it reports
/// that it stops. None if its connection ends first, or is silent when no process has a descriptor
/// of a listener any more.
async fn wait_for_close(cx: &Context, family: &Family, admin: &Admin) -> Option<Info> {
    let (mut said, mut left) = (false, None);
    loop {
        match admin.info(ANSWER).await {
            Ok(info) => {
                if info.stopping && !std::mem::replace(&mut said, true) {
                    cx.later(Event::Stopping(family.id));
                }
                if left.replace(info.connections) != Some(info.connections) {
                    cx.send(Message::Left(family.id, info.connections));
                }
                if family.reports_closed(&info) {
                    return Some(info);
                }
            }
            // The descriptors show the same.
            Err(NoAnswer::InTime) if matches!(family.look(None), Descriptors::Closed) => {
                return None;
            }
            Err(NoAnswer::InTime) => {}
            Err(NoAnswer::Closed) => return None,
        }
        tokio::time::sleep(STOP_LOOK_LATER).await;
    }
}

/// Waits until no process of the generation has a descriptor of its listeners.
async fn closed(family: &Family, told: Option<&Info>) {
    for look in 0u32.. {
        match family.look(told) {
            Descriptors::Closed => return,
            Descriptors::Open => {}
            // This process lacks something for a moment (EMFILE).
            Descriptors::Hidden(error) if error.kind() != io::ErrorKind::PermissionDenied => {}
            // Further looks will show no more.
            Descriptors::Hidden(error) => {
                return tracing::warn!(
                    generation = family.id.0,
                    pid = family.pid,
                    "whether it has closed its listeners cannot be seen ({error}); their \
                     accept queues alone must tell: run as root with CAP_SYS_PTRACE"
                );
            }
        }
        let wait = if look < 20 { STOP_LOOK } else { STOP_LOOK_LATER };
        tokio::time::sleep(wait).await;
    }
}

/// The addresses that a program listens on besides these sockets. None for haproxy, which reports
/// itself whether it stops.
async fn listens_elsewhere(kind: Kind, pid: i32, inodes: &[u64]) -> Option<String> {
    kind.program()?;
    let known = inodes.iter().copied().collect();
    let look = move || foreign::listening(&kind.processes(pid), &known);
    let found = worker::within(ELSEWHERE, look).await.unwrap_or_default();
    let addresses: Vec<_> = found.into_iter().take(4).collect();
    (!addresses.is_empty()).then(|| addresses.join(", "))
}

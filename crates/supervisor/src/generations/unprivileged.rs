//! Whether haproxy may bind a socket for each QUIC connection, on the listener's port. Once it has
//! given up root, it may not do so below port 1024 without a capability. It then leaves all
//! connections on the listener and does not report that.

use bindonce_core::address::Address;
use bindonce_sys::{holders, limits, process, worker};

use crate::context::Context;
use crate::generations::foreign::LOOKS;
use crate::generations::generation::Generation;

/// Warns if a generation may not. It must run already: only then has it given up its rights.
pub(crate) fn look(cx: &Context, generation: &Generation) {
    let id = generation.id;
    let here = generation.listeners.iter().filter(|held| held.listener.options.netns.is_none());
    let quic = here.filter_map(|held| match held.bound {
        Address::Quic(at) => Some((at.port(), held.inode)),
        _ => None,
    });
    let Some((port, inode)) = quic.min() else { return };
    let (pid, kind) = (generation.pid(), cx.settings.kind.clone());
    let may_not = move || {
        let from = limits::unprivileged_ports();
        // In master-worker mode the worker serves, a child of the first process.
        let holds = |pid: &i32| holders::sockets(*pid).contains(&inode);
        let worker = kind.processes(pid).into_iter().rfind(holds)?;
        (port < from && process::binds_any_port(worker) == Some(false)).then_some((worker, from))
    };
    crate::tasks::spawn(async move {
        if let Some((pid, from)) = worker::within(LOOKS, may_not).await.ok().flatten() {
            tracing::warn!(
                generation = id.0,
                pid,
                "HTTP/3 connections stay on the listener, and a reload loses those that are open: haproxy binds a socket for \
                 each, and has given up the right to bind ports below {from}, as port {port}; with `setcap \
                 cap_net_bind_service` in the global section (2.9 and later) it keeps that right"
            );
        }
    });
}

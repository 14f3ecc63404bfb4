//! The net under haproxy: the supervisor sees each bind(2) of a starting generation before the
//! kernel does it.
//!
//! An address of a `bind` line that was not claimed, because haproxy reads a condition or a
//! variable differently, is claimed now, and haproxy gets the broker's socket. haproxy takes it for
//! its own: a pause would disconnect it for all, so such a generation is stopped instead. A UNIX
//! path stays haproxy's own: haproxy binds another name and renames it. All other binds are its own
//! too, and are reported.
//!
//! No call is looked at once the generation is ready: its later binds, and those of its children,
//! go to the kernel. The task lives as long as any process has the filter, as for any program.

use std::rc::Rc;

use bindonce_core::address::Address;
use bindonce_core::generation::GenerationId;
use bindonce_core::intercept::{Decision, Own, Ports, Scope, Socket, Target};
use bindonce_core::listener::{Listener, Options};

use crate::context::Context;
use crate::generations::start::Prepared;
use crate::handover::compare;
use crate::message::Message;

/// Decides about a bind(2) of haproxy.
pub(super) struct Net(pub(super) Option<Rc<Prepared>>);

impl Net {
    /// The decision, and the `bind` line that haproxy reads differently, if there is one.
    pub(super) fn decide(
        &self,
        cx: &Context,
        id: GenerationId,
        inode: u64,
        ports: &Ports,
        target: &Target,
        socket: &Socket,
    ) -> (Decision, Option<String>) {
        let own = socket.own(target);
        let rendering = self.0.as_ref().and_then(|prepared| prepared.rendering());
        if let (Own::At(address), Some(rendering)) = (&own, rendering)
            && !matches!(address, Address::Unix(_))
            && let Some(line) = compare::unclaimed_line(rendering, &address.to_string())
            && let Ok(named) = Listener::new(None, address.clone(), Options::default())
            && let claim @ Decision::Claim(_) =
                (Scope { named: vec![named] }).decide(ports, target, socket)
        {
            return (claim, Some(line));
        }
        if own != Own::Nothing {
            cx.send(Message::Binds(id, Some(inode), own));
        }
        (Decision::Continue("it is haproxy's own"), None)
    }
}

//! The net under haproxy: each bind(2) of a generation that starts is seen before it is done.
//!
//! An address of a `bind` line that was not claimed, because haproxy reads a condition or a variable otherwise, is claimed now, and
//! haproxy gets the broker's socket. It believes that it is its own: a pause would disconnect it for all, so that a generation
//! that has one is told to stop instead. A path stays its own: it binds another name, which it renames. What else it
//! binds is its own, and is told.
//!
//! Nothing is looked at once it is ready: what it binds then, and what its children bind, the kernel does. The task lives for as
//! long as a process has the filter, as for any program.

use std::rc::Rc;

use bindonce_core::address::Address;
use bindonce_core::generation::GenerationId;
use bindonce_core::intercept::{Decision, Own, Ports, Scope, Socket, Target};
use bindonce_core::listener::{Listener, Options};

use crate::context::Context;
use crate::generations::start::Prepared;
use crate::handover::compare;
use crate::message::Message;

/// What decides about a bind(2) of haproxy.
pub(super) struct Net(pub(super) Option<Rc<Prepared>>);

impl Net {
    /// What becomes of it, and the line that was read otherwise, if it is one.
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

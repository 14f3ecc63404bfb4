//! Waits until clients have received the descriptors that were sent to them
//! ([`super::unreceived`]).

use std::io;
use std::os::fd::AsFd as _;
use std::rc::Rc;

use bindonce_core::registry::ConnectionId;
use bindonce_sys::patience::{Patience, within};
use bindonce_sys::unreceived::Watched;
use tokio::task::yield_now;

use super::clients::Clients;
use super::link::Link;

/// How many connections are checked in one turn.
const AT_ONCE: usize = 512;

impl Clients {
    /// Waits until a client may be sent `count` more descriptors, because a connection of its user
    /// has received some. False if that does not happen in time.
    pub(super) async fn room_for(
        &self,
        link: &Link,
        count: usize,
        patience: &mut Patience,
    ) -> bool {
        let of = |link: &Rc<Link>| link.shares.unreceived.kept() != 0;
        let mut others = self.links();
        others.retain(of);
        for (number, other) in others.iter().enumerate() {
            other.settle();
            if number % AT_ONCE == AT_ONCE - 1 {
                yield_now().await;
            }
        }
        while !link.shares.unreceived.has_room(count) {
            // No receipt from here on is missed.
            let received = self.unreceived.received.notified();
            let mut own = self.links();
            own.retain(|other| of(other) && other.caller.peer.uid == link.caller.peer.uid);
            for other in &own {
                if let Err(error) = self.watch(other) {
                    tracing::warn!(%error, "cannot wait until clients receive what they were sent");
                    return false;
                }
                other.settle();
            }
            if !link.shares.unreceived.has_room(count) && within(patience, received).await.is_err()
            {
                return false;
            }
        }
        true
    }

    /// Waits until the peer of a connection that has ended has received all that was sent, or has
    /// closed its end.
    pub(super) async fn received(&self, link: &Link) {
        if link.settle() == 0 {
            return;
        }
        link.linger();
        if let Err(error) = self.watch(link) {
            tracing::warn!(%error, "cannot wait until a client that was cut off has received what it was sent");
            return;
        }
        while link.settle() != 0 {
            link.woken.notified().await;
        }
    }

    /// Wakes the replies that wait for a client to receive descriptors, for as long as the server
    /// runs.
    pub(super) async fn tell_received(&self) {
        let watched = match Watched::new() {
            Ok(watched) => self.unreceived.watched.get_or_init(|| watched),
            Err(error) => {
                return tracing::warn!(%error, "cannot watch what clients receive: a reply that waits for it is refused");
            }
        };
        while let Ok(numbers) = watched.next().await {
            for number in numbers {
                let Some(link) = self.link(ConnectionId(number)) else { continue };
                if link.settle() == 0 {
                    watched.remove(link.stream.as_fd());
                    self.unreceived.received.notify_waiters();
                    if link.lingers() {
                        link.woken.notify_one();
                    }
                }
            }
            yield_now().await;
        }
    }

    fn watch(&self, link: &Link) -> io::Result<()> {
        self.unreceived.watch(link.stream.as_fd(), link.caller.connection)
    }
}

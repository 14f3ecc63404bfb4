//! The texts of a listener that never change, written once.

use bindonce_core::address::Address;
use bindonce_core::listener::Listener;
use bindonce_core::name::Name;
use bindonce_wire::text;

/// The texts of a listener that never change, written once: one request may ask for thousands,
/// again and again.
#[derive(Debug)]
pub(crate) struct Described {
    /// Its address as asked for.
    pub(crate) address: Box<str>,
    /// The address that it has, if that is another.
    bound: Option<Box<str>>,
    /// What a reply says of it, from the value of `name` on, as long as it has no name.
    reply: Vec<u8>,
    /// Where in that what follows the name begins.
    rest: usize,
}

impl Described {
    /// Of a socket that is bound as the listener says.
    pub(crate) fn new(listener: &Listener, bound: &Address, inode: u64) -> Self {
        let address = listener.address.text().into_boxed_str();
        let bound = (*bound != listener.address).then(|| bound.text().into_boxed_str());
        let mut reply = Vec::with_capacity(3 * address.len() + 48);
        if listener.options.is_empty() {
            text::string(&mut reply, &address);
        } else {
            text::string(&mut reply, &Listener { name: None, ..listener.clone() }.label());
        }
        let rest = reply.len();
        reply.extend_from_slice(br#","address":"#);
        text::string(&mut reply, &address);
        reply.extend_from_slice(br#","bound":"#);
        text::string(&mut reply, bound.as_deref().unwrap_or(&address));
        reply.extend_from_slice(br#","inode":"#);
        text::number(&mut reply, inode);
        Self { address, bound, reply, rest }
    }

    /// The address that it has.
    pub(crate) fn bound(&self) -> &str {
        self.bound.as_deref().unwrap_or(&self.address)
    }

    /// Adds to a reply what it says of the listener, from the value of `name` on.
    pub(crate) fn write(&self, reply: &mut Vec<u8>, name: Option<&Name>) {
        match name {
            Some(name) => {
                text::string(reply, name.as_str());
                reply.extend_from_slice(&self.reply[self.rest..]);
            }
            None => reply.extend_from_slice(&self.reply),
        }
    }
}

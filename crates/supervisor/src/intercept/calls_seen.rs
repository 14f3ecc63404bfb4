//! The own sockets with which an intercepted program has called bind(2) or listen(2). A listening
//! socket that is neither one of these nor the broker's was bound in a way that no filter sees
//! (io_uring), or comes from elsewhere.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

/// The sockets, by inode, whose bind(2) or listen(2) was seen and left to the kernel.
#[derive(Debug, Clone, Default)]
pub(crate) struct CallsSeen(Rc<RefCell<BTreeSet<u64>>>);

impl CallsSeen {
    /// The most sockets remembered. A program that binds more (a client that binds before each
    /// connect) is not reported.
    const MOST: usize = 4096;

    /// Notes that a call with this socket was seen.
    pub(crate) fn add(&self, inode: u64) {
        let mut seen = self.0.borrow_mut();
        if seen.len() < Self::MOST {
            seen.insert(inode);
        }
    }

    /// All of them. None once the limit is reached.
    pub(crate) fn all(&self) -> Option<BTreeSet<u64>> {
        let seen = self.0.borrow();
        (seen.len() < Self::MOST).then(|| seen.clone())
    }
}

//! Which sockets of its own an intercepted program has called bind(2) or listen(2) with. What it listens on beside these and the broker's it
//! has bound in a way that no filter sees (io_uring), or has got from elsewhere.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

/// The sockets with which an intercepted program has called bind(2) or listen(2), and was left to the kernel.
#[derive(Debug, Clone, Default)]
pub(crate) struct CallsSeen(Rc<RefCell<BTreeSet<u64>>>);

impl CallsSeen {
    /// So many are remembered: a program that binds more (a client that binds before each connect) is not told about.
    const MOST: usize = 4096;

    /// A call with this one was seen.
    pub(crate) fn add(&self, inode: u64) {
        let mut seen = self.0.borrow_mut();
        if seen.len() < Self::MOST {
            seen.insert(inode);
        }
    }

    /// All of them; none where there were more.
    pub(crate) fn all(&self) -> Option<BTreeSet<u64>> {
        let seen = self.0.borrow();
        (seen.len() < Self::MOST).then(|| seen.clone())
    }
}

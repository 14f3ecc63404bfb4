//! Spare connections to a generation for clients of the master CLI, for the time when it accepts no
//! more.
//!
//! A haproxy that was told to stop accepts no new connection on its admin socket. So the spares are
//! opened when a reload begins, while it serves. There is one for each level, since a connection
//! that was lowered cannot be raised again. The supervisor's own connection is not among them: no
//! client may keep it waiting.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use bindonce_haproxy::cli::Level;

use crate::generations::admin::Admin;

/// The connections, by level. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spares(Rc<RefCell<BTreeMap<Level, Admin>>>);

impl Spares {
    /// Opens the connections that are not open.
    pub(crate) fn open(&self, path: &Path) {
        let mut spares = self.0.borrow_mut();
        for level in Level::ALL {
            spares.retain(|of, admin| *of != level || !admin.has_ended());
            spares.entry(level).or_insert_with(|| {
                let admin = Admin::connect(path.to_owned(), |_| ());
                if level != Level::Admin {
                    admin.tell(level.to_string());
                }
                admin
            });
        }
    }

    /// Takes over the connections of an earlier supervisor, or of an earlier image of this process.
    pub(crate) fn resume(&self, connections: BTreeMap<String, OwnedFd>) {
        let connections = connections.into_iter().filter_map(|(level, connection)| {
            Some((Level::read(&level)?, Admin::resume(connection, 0, |_| ())))
        });
        self.0.borrow_mut().extend(connections);
    }

    pub(crate) fn get(&self, level: Level) -> Option<Admin> {
        self.0.borrow().get(&level).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Admin> {
        self.0.borrow().values().cloned().collect()
    }

    /// Copies of the connections, for the next image of this process.
    pub(crate) fn connections(&self) -> Vec<(String, OwnedFd)> {
        let spares = self.0.borrow();
        let open = spares
            .iter()
            .filter_map(|(level, admin)| Some((level.to_string(), admin.connection()?)));
        open.collect()
    }

    pub(crate) fn close(&self) {
        for admin in std::mem::take(&mut *self.0.borrow_mut()).values() {
            admin.close();
        }
    }
}

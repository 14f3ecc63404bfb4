//! Reads the state that an earlier image of this process left to this one.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use bindonce_daemon::reexec;
use bindonce_sys::listen::UnixPath;
use bindonce_sys::{identity, inherit};
use bindonce_wire::manifest::{self, Manifest};
use tokio::net::UnixListener;

use crate::control::Control;
use crate::error::Error;

/// The variable that gives the next image the descriptor number of the memory file.
pub(super) const VARIABLE: &str = "BINDONCE_UPGRADE_FD";

/// Name of the memory file, so that no other file is taken for it.
pub(super) const NAME: &str = "bindonce-upgrade";

/// Longest state that is read, in bytes.
const MAX_STATE: u64 = 256 << 20;

/// State that an earlier image of this process left to this one.
#[derive(Debug)]
pub struct Inherited {
    pub(super) manifest: Manifest,
}

/// Takes the state that an earlier image of this process left, if there was one. Call it once.
///
/// # Errors
/// [`Error::State`] if it cannot be read.
pub fn inherited() -> Result<Option<Inherited>, Error> {
    let Some(number) = std::env::var(VARIABLE).ok().and_then(|text| text.parse::<RawFd>().ok())
    else {
        return Ok(None);
    };
    // The variable may come from another process, so check what the descriptor is.
    let link = std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap_or_default();
    if !link.as_os_str().to_string_lossy().starts_with(&format!("/memfd:{NAME}")) {
        return Ok(None);
    }
    let unreadable = |error: io::Error| Error::State { reason: error.to_string() };
    let (manifest, _) = read(&mut File::from(inherit::take(number).map_err(unreadable)?))?;
    reexec::take_name();
    let own = reexec::this_process();
    Ok((manifest.header.broker.process == Some(own)).then_some(Inherited { manifest }))
}

/// Reads a state that another image may leave, to prove that this binary can. Returns the answer to
/// that image, for standard output.
///
/// # Errors
/// [`Error::State`] with the reason.
pub fn check(state: &mut File) -> Result<String, Error> {
    let (manifest, bytes) = read(state)?;
    for entry in &manifest.listeners {
        let parsed = entry.listener().and_then(|_| entry.bound());
        parsed.map_err(|error| Error::State { reason: error.to_string() })?;
    }
    Ok(reexec::answer(manifest.listeners.len(), &bytes))
}

fn read(file: &mut File) -> Result<(Manifest, Vec<u8>), Error> {
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.take(MAX_STATE).read_to_end(&mut bytes))
        .map_err(|error| Error::State { reason: error.to_string() })?;
    let manifest = Manifest::decode(&bytes);
    Ok((manifest.map_err(|error| Error::State { reason: error.to_string() })?, bytes))
}

impl Inherited {
    /// Takes over the lock and the control socket.
    pub(crate) fn control(&self, socket: &Path) -> Result<(Control, UnixListener), Error> {
        let take = |name: &str| {
            let number = self.manifest.header.descriptors.get(name).copied().unwrap_or(-1);
            inherit::take(number).map_err(|source| Error::File {
                doing: "take over the descriptor of",
                path: PathBuf::from(name),
                source,
            })
        };
        let mut control = Control::resume(socket, take("lock")?)?;
        let listener = std::os::unix::net::UnixListener::from(take("control")?);
        let runtime = |source| Error::Runtime { socket: control.socket.clone(), source };
        let listener = UnixListener::from_std(listener).map_err(runtime)?;
        let file = control.socket.to_str().and_then(identity::file);
        control.keep(
            file.filter(|file| self.manifest.header.control.is_some_and(|was| same(was, file))),
        );
        Ok((control, listener))
    }
}

fn same(was: manifest::File, now: &UnixPath) -> bool {
    (was.dev, was.ino) == (now.dev, now.ino)
}

//! Starting one generation: read and render the configuration, claim what it
//! names, and start haproxy on the copy.
//!
//! Nothing that serves is touched here. Listeners that did not exist are claimed
//! tentatively: until the generation serves, they end with its connection to the
//! broker, so that a failed start leaves nothing bound, however it fails.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::rc::Rc;

use bindonce::Claim;
use bindonce_core::address::Address;
use bindonce_core::generation::GenerationId;
use bindonce_core::listener::{Listener, Options};
use bindonce_sys::process::Pidfd;
use bindonce_sys::spawn::Launch;

use super::directory::Directory;
use super::listeners::Held;
use super::output::Names;
use super::{Error, Settings, broker};
use crate::config::{PathMap, Rendering, Supplied, System};

/// The variable that carries the number of the admin socket's descriptor.
const ADMIN_VARIABLE: &str = "BINDONCE_ADMIN";

/// What systemd says to the supervisor, and to nothing that it starts.
pub(super) const OURS_ALONE: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];

/// What is added to the user's configuration, in a file of its own before all others.
const ADMIN_CONFIGURATION: &str = "\
# Written by bindonce: the supervisor's private way to ask this generation.
global
    stats socket \"fd@${BINDONCE_ADMIN}\" level admin
";

/// The first descriptor that haproxy gets. The admin socket comes first, since the number of any
/// descriptor must stay below haproxy's own limit.
const FIRST_DESCRIPTOR: i32 = bindonce_sys::inherit::FIRST;

/// A configuration that was read and rendered; more than one generation may run it.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) rendering: Rendering,
    /// The copies, in haproxy's order.
    files: Vec<PathBuf>,
    paths: PathMap,
}

impl Prepared {
    /// A haproxy that wants to keep the right to gain rights must not be held: without
    /// CAP_SYS_ADMIN that needs no_new_privs.
    fn may_be_held(&self) -> bool {
        const WORD: &[u8] = b"insecure-setuid-wanted";
        let says = |text: &[u8]| text.windows(WORD.len()).any(|window| window == WORD);
        !self.rendering.files.iter().any(|file| says(&file.text))
    }
}

/// A generation whose process has been started.
pub(super) struct Launched {
    pub(super) pidfd: Pidfd,
    pub(super) stderr: Option<OwnedFd>,
    /// Where the descriptor comes from that holds it at its readiness signal.
    pub(super) shim: Option<OwnedFd>,
    pub(super) names: Names,
    pub(super) prepared: Rc<Prepared>,
    pub(super) listeners: Vec<Rc<Held>>,
    /// The connection to the broker that holds the leases of this generation.
    pub(super) lease: bindonce::aio::Client,
    pub(super) admin: Option<PathBuf>,
}

/// What a start depends on besides its configuration.
#[derive(Debug, Clone, Copy)]
pub(super) struct How {
    /// An older generation is alive, so haproxy is given `-sf`.
    pub(super) older_alive: bool,
    /// haproxy must not use epoll, where its ghosts could not be removed.
    pub(super) no_epoll: bool,
}

/// Reads the user's files and writes the copies for generation `id`.
pub(super) async fn prepare(
    settings: &Settings,
    directory: &Directory,
    id: GenerationId,
) -> Result<Prepared, Error> {
    let (command, listeners) = (settings.command.clone(), settings.listeners.clone());
    // Reading may resolve host names and ask haproxy about conditions: not on our thread.
    let read = tokio::task::spawn_blocking(move || -> Result<Rendering, Error> {
        let world = System::new(&command.program).map_err(Error::system("find haproxy"))?;
        let supplied = Supplied { listeners: &listeners, keep: &[ADMIN_VARIABLE] };
        let rendering = Rendering::of(&command, supplied, &world)?;
        rendering.self_contained()?;
        Ok(rendering)
    });
    let rendering = match read.await {
        Ok(rendering) => rendering?,
        Err(error) => return Err(Error::system("read the configuration")(error.into())),
    };
    let write = Error::system("write the rendered configuration");
    let path = directory.make_configuration(id).map_err(write)?;
    let write = Error::system("write the rendered configuration");
    let mut files = rendering.write_to(&path).map_err(write)?;
    if settings.admin {
        let admin = path.join("bindonce-admin.cfg");
        let mut options = std::fs::File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        options
            .open(&admin)
            .and_then(|mut file| file.write_all(ADMIN_CONFIGURATION.as_bytes()))
            .map_err(Error::system("write the rendered configuration"))?;
        files.insert(0, admin);
    }
    let paths = rendering.path_map(&path);
    Ok(Prepared { rendering, files, paths })
}

/// Claims the listeners and starts haproxy; tells its pid before it can do anything.
pub(super) async fn launch(
    settings: &Settings,
    directory: &Directory,
    id: GenerationId,
    prepared: Rc<Prepared>,
    how: How,
    tell: impl FnOnce(i32),
) -> Result<Launched, Error> {
    let mut lease = broker::connect(&settings.socket).await?;
    broker::join(&mut lease, &settings.service, id, None, bindonce::State::Starting).await?;
    let listeners = claim(&mut lease, &prepared.rendering).await?;

    let mut launch = Launch::new(settings.command.program.clone());
    let copy = Error::system("copy a listener's descriptor");
    let mut descriptors = Vec::with_capacity(listeners.len() + 1);
    let admin = settings.admin.then(|| directory.admin(id));
    if let Some(path) = &admin {
        descriptors.push(listen_for_admin(path)?);
    }
    let first = FIRST_DESCRIPTOR + i32::from(admin.is_some());
    let copies: Result<Vec<_>, _> = listeners.iter().map(|held| held.fd.try_clone()).collect();
    descriptors.extend(copies.map_err(copy)?);
    let numbers: Vec<_> = (first..).take(listeners.len()).collect();
    if admin.is_some() {
        launch.env.push((ADMIN_VARIABLE.into(), FIRST_DESCRIPTOR.to_string().into()));
    }
    let texts = prepared.rendering.bindings.iter().map(|binding| binding.text.clone());
    let addresses = numbers.iter().copied().zip(texts).collect();
    let environment = prepared.rendering.environment(&numbers);
    launch.env.extend(environment.into_iter().map(|(name, value)| (name.into(), value.into())));
    launch.env_remove = OURS_ALONE.map(OsString::from).to_vec();
    launch.env.push(("BINDONCE_SERVICE".into(), settings.service.as_str().into()));
    launch.env.push(("BINDONCE_GENERATION".into(), id.0.to_string().into()));
    // Their variables are in the environment already: some stand for several descriptors.
    launch.descriptors = descriptors.into_iter().map(|fd| (String::new(), fd)).collect();
    launch.args = settings.command.arguments_on(&prepared.files);
    launch.args.push("-db".into());
    if how.no_epoll {
        launch.args.push("-de".into());
    }
    if how.older_alive || !settings.admin {
        // haproxy tells this pid, ours, when it has bound everything. Nobody else's pid is ever
        // given to it, so that it can pause nobody.
        launch.args.extend(["-sf".into(), std::process::id().to_string().into()]);
        launch.hold =
            (how.older_alive && prepared.may_be_held()).then_some(std::process::id().cast_signed());
    }
    launch.stderr = Stdio::piped();
    let started = launch.start_and_tell(tell)?;
    Ok(Launched {
        pidfd: started.pidfd,
        stderr: started.stderr,
        shim: started.shim,
        names: Names { paths: prepared.paths.clone(), addresses },
        prepared,
        listeners,
        lease,
        admin,
    })
}

async fn claim(
    lease: &mut bindonce::aio::Client,
    rendering: &Rendering,
) -> Result<Vec<Rc<Held>>, Error> {
    let wanted: Vec<&Listener> = rendering.bindings.iter().map(|b| &b.listener).collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let claims: Vec<_> = wanted
        .iter()
        .map(|listener| Claim::listen(listener.to_string()).tentative().changing())
        .collect();
    let leases = lease.claim(&claims).await.map_err(|error| refused(error, rendering))?;
    Ok(leases.into_iter().zip(wanted).map(|(lease, listener)| Held::new(lease, listener)).collect())
}

/// A claim that was refused, with the line of the user's that wants the address.
fn refused(error: bindonce::Error, rendering: &Rendering) -> Error {
    let address = error.refusal().and_then(|refusal| refusal.data.get("address")?.as_str());
    let binding = rendering.bindings.iter().find(|binding| {
        address.is_some_and(|address| binding.listener.address.to_string() == address)
    });
    let place = binding.or(match rendering.bindings.as_slice() {
        [only] => Some(only),
        _ => None,
    });
    match place {
        Some(binding) => Error::ClaimAt {
            place: binding.place.clone(),
            section: binding.section.clone(),
            source: Box::new(error),
        },
        None => Error::Claim(Box::new(error)),
    }
}

/// Binds a generation's admin socket: the supervisor's own, not the broker's.
fn listen_for_admin(path: &std::path::Path) -> Result<OwnedFd, Error> {
    let options = Options { mode: Some(0o600), ..Options::default() };
    let text = path.to_string_lossy().into_owned();
    let listener = Listener { name: None, address: Address::Unix(text), options };
    Ok(bindonce_sys::listen::open(&listener)?.fd)
}

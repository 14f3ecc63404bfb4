//! Starting haproxy: its configuration is read and rendered, and it is started on the copy.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use bindonce_sys::spawn::Launch;
use bindonce_sys::{listen, worker};

use super::order::{Order, Plan, passed};
use super::rendered::{self, FIRST_DESCRIPTOR, Facts, Rendered};
use crate::disk::directory::{CLUSTER_SECRET, Directory};
use crate::disk::{fallback, secret};
use crate::error::Error;
use crate::generations::listeners::HeldListener;
use crate::kind::{self, Haproxy};
use crate::passed::Passed;
use crate::settings::Settings;
use bindonce_haproxy::cli::Version;
use bindonce_haproxy::config::{
    ADMIN_CONNECTIONS, MasterSocket, Rendering, STATS_MAXCONN, Supplied,
};

/// The variable that carries the number of the admin socket's descriptor.
const ADMIN_VARIABLE: &str = "BINDONCE_ADMIN";

/// What is added to the user's configuration, in a file of its own before all others.
const OURS: &str = "# Written by bindonce.\nglobal\n";

/// The supervisor's private way to ask this generation. Its connections take none of those that the
/// user's admin sockets may have.
fn admin_lines() -> String {
    let most = STATS_MAXCONN + ADMIN_CONNECTIONS;
    format!("    stats socket \"fd@${{BINDONCE_ADMIN}}\" level admin\n    stats maxconn {most}\n")
}

/// Reads the user's files and writes the copies for a generation.
pub(crate) async fn render(
    settings: &Settings,
    kind: &Haproxy,
    directory: &Directory,
    plan: &Plan,
    passed: &Passed,
) -> Result<Rendered, Error> {
    let (id, serving) = (plan.id, plan.serving.as_ref());
    let (mut command, listeners) = (kind.command.clone(), settings.listeners.clone());
    // Conditions can depend on each of these.
    command.arguments.extend(plan.no_epoll.then(|| "-de".into()));
    let (service, generation) = (settings.service.to_string(), id.0.to_string());
    let (sockets, version) = (settings.master_cli.clone(), serving.and_then(|it| it.version));
    // Reading may resolve host names and ask haproxy about conditions: not on the loop's thread.
    let limit = settings.timing.ready_timeout;
    let mut world = kind.world(&passed.known).map_err(Error::system(
        "find the current directory of the supervisor (start it in one that is not removed)",
    ))?;
    (world.again, world.devices) = (plan.read_before, plan.devices.clone());
    world.haproxys = serving.map(|it| it.devices.clone()).unwrap_or_default();
    let read =
        worker::within(limit, move || -> Result<(Rendering, Option<String>, Vec<u8>), Error> {
            let sockets = master_cli(&sockets, version, &command.program)?;
            let mut ours =
                vec![("BINDONCE_SERVICE", &*service), ("BINDONCE_GENERATION", &*generation)];
            ours.extend(sockets.as_deref().map(|sockets| (MasterSocket::VARIABLE, sockets)));
            let world = world.with(&crate::broker::not_theirs(), &ours);
            let supplied = Supplied { listeners: &listeners, keep: &[ADMIN_VARIABLE] };
            let rendering = Rendering::of(&command, supplied, &world)?;
            rendering.self_contained()?;
            let text = serde_json::to_vec(&rendering).map_err(io::Error::from);
            Ok((rendering, sockets, text.map_err(Error::system("write the configuration down"))?))
        });
    let (rendering, master_cli, text) = match read.await {
        Ok(read) => read?,
        Err(error) => return Err(Error::system("read the configuration")(error)),
    };
    // A worker needs nothing to listen on.
    let is_master = rendering.mode.is_master || kind.command.role.master.is_some();
    let admin = kind.admin && (is_master || rendering.surely_listens());
    let mut own = if admin { format!("{OURS}{}", admin_lines()) } else { String::new() };
    if rendering.lacks_cluster_secret() {
        let secret = secret::cluster_secret(&directory.file(CLUSTER_SECRET));
        let secret = secret.map_err(Error::system("make a cluster-secret"))?;
        let head = if own.is_empty() { OURS } else { "" };
        own.push_str(&format!("{head}    cluster-secret {secret}\n"));
    }
    let (command, caller) = (rendered::words(kind), kind.caller.clone());
    let facts = Facts { admin, own: !own.is_empty(), master_cli, command, caller };
    let write = |path: io::Result<PathBuf>| -> io::Result<PathBuf> {
        let path = path?;
        rendered::write(&rendering, &text, &own, &facts, &path)?;
        Ok(path)
    };
    let path = match write(directory.make_configuration(id)) {
        Err(error)
            if plan.serving.is_none()
                && (fallback::is_refusal(&error) || directory.ours().is_err()) =>
        {
            write(directory.make_fallback_configuration(id))
        }
        done => done,
    };
    let path = path.map_err(Error::system("write the rendered configuration"))?;
    Ok(Rendered::new(kind.clone(), rendering, own, &path, facts))
}

/// The order that starts haproxy on the copies, with these listeners.
pub(crate) fn order(
    rendered: &Rendered,
    directory: &Directory,
    plan: &Plan,
    listeners: &[Rc<HeldListener>],
) -> Result<Order, Error> {
    let kind = &rendered.kind;
    let mut launch = Launch::new(kind.command.program.clone());
    kind.place(&mut launch);
    // haproxy does not start in a directory that has been removed. The copies lie elsewhere, and a
    // haproxy that has died must be restarted.
    let removed =
        || std::env::current_dir().is_err_and(|why| why.kind() == io::ErrorKind::NotFound);
    if launch.cwd.is_none() && removed() {
        launch.cwd = Some("/".into());
    }
    let mut descriptors = Vec::with_capacity(listeners.len() + 1);
    let facts = &rendered.facts;
    let mut admin = facts.admin.then(|| directory.admin(plan.id));
    if let Some(path) = &mut admin {
        let opened = match directory.ours().is_ok().then(|| listen::open_path(path, 0o600)) {
            Some(Err(error))
                if plan.serving.is_some() || !fallback::is_refusal(&refused_with(&error)) =>
            {
                return Err(error.into());
            }
            Some(Ok(opened)) => opened,
            Some(Err(_)) | None => {
                let other = directory.fallback_admin(plan.id);
                *path = other.map_err(Error::system("bind haproxy's admin socket"))?;
                listen::open_path(path, 0o600)?
            }
        };
        descriptors.push((String::new(), Arc::new(opened.fd)));
        launch.env.push((ADMIN_VARIABLE.into(), FIRST_DESCRIPTOR.to_string().into()));
    }
    let first = FIRST_DESCRIPTOR + i32::from(admin.is_some());
    // Passed without a variable each: `environment` sets them, and some stand for several
    // descriptors.
    descriptors.extend(passed(listeners));
    let numbers: Vec<_> = (first..).take(listeners.len()).collect();
    let environment = rendered.rendering.environment(&numbers);
    launch.env.extend(environment.into_iter().map(|(name, value)| (name.into(), value.into())));
    let master_cli = facts.master_cli.as_ref();
    launch.env.extend(master_cli.map(|sockets| (MasterSocket::VARIABLE.into(), sockets.into())));
    launch.descriptors = descriptors;
    launch.args = kind.command.arguments_on(&rendered.files);
    launch.args.push("-db".into());
    if plan.no_epoll {
        launch.args.push("-de".into());
    }
    if plan.older_alive || !facts.admin {
        // haproxy signals this pid, the supervisor's, when it has bound everything. It never gets
        // another pid, so it can pause no other process.
        launch.args.extend(["-sf".into(), std::process::id().to_string().into()]);
        launch.calls.hold = (plan.older_alive && rendered.may_be_held())
            .then_some(std::process::id().cast_signed());
    }
    launch.calls.binds = rendered.may_be_held() && !rendered.rendering.binds_while_it_serves();
    Ok(Order { launch, messages: rendered.messages(), admin, notifications: None })
}

/// The sockets of the master CLI, for the environment of a haproxy of this version. If None, of the
/// program's version.
fn master_cli(
    sockets: &[MasterSocket],
    version: Option<Version>,
    program: &OsStr,
) -> Result<Option<String>, Error> {
    if sockets.is_empty() {
        return Ok(None);
    }
    let version = version.map_or_else(|| kind::version_of(program), Ok)?;
    Ok(MasterSocket::is_in_workers(version).then(|| MasterSocket::variable_of(sockets)))
}

/// The error for a refused claim, with the user's line that wants the address.
pub(crate) fn refused(error: bindonce::Error, rendering: &Rendering) -> Error {
    let address = error.refusal().and_then(|refusal| refusal.data.get("address")?.as_str());
    let place = address.and_then(|address| rendering.binding_of(address));
    match place.or(match rendering.bindings.as_slice() {
        [only] => Some(only),
        _ => None,
    }) {
        Some(binding) => Error::ClaimAt {
            place: binding.place.clone(),
            section: binding.section.clone(),
            source: Box::new(error),
        },
        None => Error::claim(error),
    }
}

/// The system's error.
fn refused_with(error: &bindonce_sys::Error) -> io::Error {
    error.errno().map_or_else(|| io::Error::other("no answer"), io::Error::from_raw_os_error)
}

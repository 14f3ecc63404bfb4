//! The world of a golden test: the files of a folder, a few variables and hosts. Also a real
//! haproxy to check the results.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process;

use bindonce_core::address::Address;
use bindonce_core::listener::{ListenSpec, Listener};
use bindonce_haproxy::config::{
    Answers, Command, Environment, Error, Family, Questions, Rendering, Supplied, System, World,
    reader::Unset, templates,
};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// One folder of `tests/golden`.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    pub(crate) command: Command,
    pub(crate) keep: Vec<String>,
    pub(crate) listen: Vec<Listener>,
    environment: Environment,
    hosts: BTreeMap<String, IpAddr>,
    conditions: BTreeMap<String, bool>,
    /// haproxy's other answers: `unset`, `discovery`, and its variables.
    haproxy: BTreeMap<String, String>,
}

pub(crate) fn cases() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases: Vec<_> = std::fs::read_dir(root)
        .expect("tests/golden")
        .map(|entry| Case::read(entry.expect("entry").path()))
        .collect();
    cases.sort_by(|one, other| one.name.cmp(&other.name));
    cases
}

impl Case {
    /// Checks that another supervisor restores the same rendering from JSON and finds the files
    /// unchanged.
    #[track_caller]
    fn reads_back(&self, rendering: &Rendering) {
        let saved = serde_json::to_vec(rendering).expect("JSON");
        let mut back: Rendering = serde_json::from_slice(&saved).expect("JSON");
        for (file, copy) in back.files.iter_mut().zip(&rendering.files) {
            file.text.clone_from(&copy.text);
        }
        let same = back.reads_as_before(&self.command, self).expect("the files");
        assert!(same, "{}: the files read otherwise", self.name);
        assert_eq!(serde_json::to_vec(&back).expect("JSON"), saved, "{}", self.name);
    }

    fn read(folder: PathBuf) -> Self {
        let lines = |name: &str| -> Vec<String> {
            let text = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
            text.lines().map(str::to_owned).collect()
        };
        let pairs = |name: &str, by: char| -> Vec<(String, String)> {
            let split = |line: &String| {
                let (one, other) = line.split_once(by).expect(line);
                (one.to_owned(), other.to_owned())
            };
            lines(name).iter().map(split).collect()
        };
        let command = lines("command").join(" ");
        let command = if command.is_empty() { "haproxy -f input.cfg".to_owned() } else { command };
        let listen = lines("listen");
        let specs = listen.iter().map(|line| line.parse::<ListenSpec>().expect(line));
        Self {
            name: folder.file_name().expect("name").to_string_lossy().into_owned(),
            command: Command::parse(command.split_whitespace()).expect("command"),
            keep: lines("keep"),
            listen: specs.flat_map(|spec| spec.expand().collect::<Vec<_>>()).collect(),
            environment: pairs("env", '=')
                .into_iter()
                .map(|(name, value)| (name.into_bytes(), value.into_bytes()))
                .collect(),
            hosts: pairs("hosts", ' ')
                .into_iter()
                .map(|(name, ip)| (name, ip.parse().expect("ip")))
                .collect(),
            conditions: pairs("conditions", ' ')
                .into_iter()
                .map(|(value, expression)| (expression, value == "yes"))
                .collect(),
            haproxy: pairs("haproxy", '=').into_iter().collect(),
            folder,
        }
    }

    pub(crate) fn render(&self) -> Result<Rendering, Error> {
        let keep: Vec<&str> = self.keep.iter().map(String::as_str).collect();
        let supplied = Supplied { listeners: &self.listen, keep: &keep };
        let rendering = Rendering::of(&self.command, supplied, self)?;
        self.reads_back(&rendering);
        Ok(rendering)
    }

    /// The user's file; for a template, the configuration that it stands for.
    pub(crate) fn text_of(&self, path: &Path) -> Vec<u8> {
        let mut full = self.directory();
        full.extend(&self.command.directory);
        let text = self.read(&full.join(path)).expect("input");
        if templates::is_template(path) {
            templates::addresses(path, &text).expect("template")
        } else {
            text
        }
    }
}

/// The pretended path of the folder, so that expected results contain no path of a machine.
const PRETENDED: &str = "/srv/golden";

impl World for Case {
    fn directory(&self) -> PathBuf {
        PRETENDED.into()
    }

    fn environment(&self) -> Environment {
        self.environment.clone()
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let path = path.strip_prefix(PRETENDED).map_err(io::Error::other)?;
        std::fs::read(self.folder.join(path))
    }

    fn list(&self, path: &Path) -> io::Result<Option<Vec<OsString>>> {
        let path = path.strip_prefix(PRETENDED).map_err(io::Error::other)?;
        System::new("haproxy".as_ref())?.list(&self.folder.join(path))
    }

    fn resolve(&self, host: &str, _: Option<Family>) -> io::Result<IpAddr> {
        let found = self.hosts.get(host).copied();
        found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such host"))
    }

    fn ask(&self, questions: &Questions, _: &[OsString]) -> io::Result<Answers> {
        let answer = |term: &Vec<u8>| {
            let text = String::from_utf8_lossy(term).into_owned();
            let found = self.conditions.get(&text).copied();
            (term.clone(), found.ok_or_else(|| "haproxy cannot parse it".to_owned()))
        };
        let known = |name: &String| {
            let value = self.haproxy.get(name.as_str()).map(|value| value.clone().into_bytes());
            (name.clone(), value)
        };
        Ok(Answers {
            unset: match self.haproxy.get("unset").map(String::as_str) {
                Some("joined") => Unset::Joined,
                Some("no word") => Unset::NoWord,
                _ => Unset::Empty,
            },
            discovery: self.haproxy.contains_key("discovery"),
            variables: questions.names.iter().map(known).collect(),
            terms: questions.terms.iter().map(answer).collect(),
        })
    }

    fn has_device(&self, _: &str, _: Option<&str>) -> bool {
        true
    }

    fn host_name(&self) -> String {
        "thishost".to_owned()
    }
}

/// The haproxy of this system.
pub(crate) fn haproxy() -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&paths).collect();
    places.push("/usr/sbin".into());
    places.into_iter().map(|place| place.join("haproxy")).find(|path| path.is_file())
}

/// All available haproxies: the installed one, those that tests/haproxies has fetched, and the one
/// that BINDONCE_HAPROXY names.
pub(crate) fn haproxies() -> Vec<PathBuf> {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/haproxies");
    let fetched = ["3.0", "3.2"].map(|version| fetched.join(version).join("haproxy"));
    let more = std::env::var_os("BINDONCE_HAPROXY").map(PathBuf::from);
    haproxy().into_iter().chain(fetched).chain(more).filter(|path| path.is_file()).collect()
}

/// A folder under the system's temporary one, removed on drop.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bindonce-golden-{}-{name}", process::id()));
        std::fs::create_dir_all(&path).expect("scratch folder");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn check(
    case: &Case,
    haproxy: &Path,
    files: &[PathBuf],
    variables: &[(String, String)],
) -> Result<(), String> {
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    let output = process::Command::new(haproxy)
        .arg("-c")
        .args(case.command.arguments_on(files))
        .current_dir(&case.folder)
        .env_clear()
        .envs(case.environment.iter().map(|(name, value)| (text(name), text(value))))
        .envs(variables.iter().cloned())
        .output()
        .expect("run haproxy");
    if output.status.success() { Ok(()) } else { Err(text(&output.stderr)) }
}

/// Runs haproxy on the user's own files. Variables of `--listen` hold real sockets.
pub(crate) fn check_input(case: &Case, haproxy: &Path) -> Result<(), String> {
    let mut files = case.command.files.clone();
    let scratch = Scratch::new(&case.name);
    for file in &mut files {
        if templates::is_template(file) {
            let copy = scratch.0.join("template.cfg");
            std::fs::write(&copy, case.text_of(file)).expect("write");
            *file = copy;
        }
    }
    let sockets: Vec<OwnedFd> =
        case.listen.iter().map(|listener| socket(&scratch, &listener.address, 0)).collect();
    let named = case.listen.iter().zip(&sockets).filter_map(|(listener, socket)| {
        Some((listener.name.as_ref()?.variable(), socket.as_raw_fd().to_string()))
    });
    check(case, haproxy, &files, &named.collect::<Vec<_>>())
}

/// Runs haproxy on the copies, with a real socket for every binding.
pub(crate) fn check_copy(case: &Case, rendering: &Rendering, haproxy: &Path) -> Result<(), String> {
    let scratch = Scratch::new(&case.name);
    let files = rendering.write_to(&scratch.0).expect("write the copies");
    // A long range needs more descriptors than a test should take: one socket stands for all.
    let shared = rendering.bindings.len() > 200;
    let mut sockets: Vec<OwnedFd> = Vec::new();
    let mut numbers = Vec::new();
    for (index, binding) in rendering.bindings.iter().enumerate() {
        if !shared || index == 0 {
            sockets.push(socket(&scratch, &binding.listener.address, index));
        }
        numbers.push(sockets[sockets.len() - 1].as_raw_fd());
    }
    check(case, haproxy, &files, &rendering.environment(&numbers))
}

/// A socket of the address's kind at some free address, which a child inherits.
fn socket(scratch: &Scratch, address: &Address, index: usize) -> OwnedFd {
    let loopback = |ip: IpAddr| {
        if ip.is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" }
    };
    let socket: OwnedFd = match address {
        Address::Tcp(at) => TcpListener::bind(loopback(at.ip())).expect("bind").into(),
        Address::Udp(at) | Address::Quic(at) => {
            UdpSocket::bind(loopback(at.ip())).expect("bind").into()
        }
        _ => UnixListener::bind(scratch.0.join(format!("{index}.sock"))).expect("bind").into(),
    };
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty())).expect("clear close-on-exec");
    socket
}

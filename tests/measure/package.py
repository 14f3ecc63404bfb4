#!/usr/bin/env python3
"""The Debian package on a private Debian with a real systemd as PID 1: installs it, puts
haproxy.service under bindonce, then under load reloads and restarts everything, upgrades the
package, and tries one upgrade that cannot work; removes and purges it, and compares the files with
those before.

    tests/measure/package.py --binary PATH --load PATH [--root target/package/root] [--clients 5]

tests/package makes the root, which stays unchanged (writes go to an overlay in memory). Needs root,
overlayfs and cgroup2. Prints one JSON object, with the reason in "skipped" if it could not run.

This file runs in two stages: the outer builds the packages, starts `unshare` and drives the machine
by nsenter; the inner assembles the root and becomes systemd.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TARGET = os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target"))
PORT = 8080
LINK = "/etc/systemd/system/haproxy.service.d/bindonce.conf"
DROP_IN = "/usr/share/bindonce/haproxy.service.d/bindonce.conf"
FRONTEND = f"""
frontend web
    bind 127.0.0.1:{PORT}
    http-request return status 200 content-type text/plain hdr x-generation "%[env(BINDONCE_GENERATION)]" string "hello\\n"
"""
# Files that any installation or boot writes: records of dpkg and systemd, caches, logs.
RECORDS = ("/var/lib/dpkg/", "/var/log/", "/var/cache/", "/var/lib/systemd/", "/var/backups/", "/etc/machine-id", "/var/tmp/")
# The user `bindonce` stays (Debian's practice): these files gain a line, or are their backups.
ACCOUNTS = {f"/etc/{name}{dash}" for name in ("passwd", "group", "shadow", "gshadow") for dash in ("", "-")} | {"/etc/.pwd.lock"}


class Skip(Exception):
    """The reason why this cannot run here."""


def inner(shared, root):
    """In its own namespaces: assembles a root and becomes its systemd."""
    def mount(*words):
        subprocess.run(["mount", *words], check=True)
    mount("--make-rprivate", "/")
    memory, top = f"{shared}/memory", f"{shared}/top"
    os.makedirs(memory)
    os.makedirs(top)
    mount("-t", "tmpfs", "tmpfs", memory)
    os.makedirs(f"{memory}/upper")
    os.makedirs(f"{memory}/work")
    mount("-t", "overlay", "overlay", "-o", f"lowerdir={root},upperdir={memory}/upper,workdir={memory}/work", top)
    os.makedirs(f"{top}/shared", exist_ok=True)
    mount("--bind", f"{shared}/files", f"{top}/shared")
    mount("-t", "proc", "proc", f"{top}/proc")
    mount("-t", "sysfs", "-o", "ro", "sysfs", f"{top}/sys")
    # Our group is the root of this control group namespace. Version 2, whatever the machine uses.
    mount("-t", "cgroup2", "cgroup2", f"{top}/sys/fs/cgroup")
    for directory in ("run", "tmp"):
        mount("-t", "tmpfs", "tmpfs", f"{top}/{directory}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with open(f"{top}/etc/haproxy/haproxy.cfg", "a") as configuration:
        configuration.write(FRONTEND)
    # kill(1) is in procps, which this small root lacks.
    kill = pathlib.Path(top, "usr/bin/kill")
    if not kill.exists():
        kill.write_text('#!/bin/sh\nkill "$@"\n')
        kill.chmod(0o755)
    # A machine ID avoids the questions of a first boot.
    pathlib.Path(top, "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    os.environ["container"] = "other"
    # Not chroot: paths in /proc start at the root of the namespace.
    os.chdir(top)
    os.mkdir("old")
    subprocess.run(["pivot_root", ".", "old"], check=True)
    os.chdir("/")
    subprocess.run(["umount", "-l", "/old"], check=True)
    os.rmdir("/old")
    os.execv("/lib/systemd/systemd", ["systemd", "--system", "--show-status=no", "--log-target=journal"])


def control_group():
    """Creates a control group in the version 2 hierarchy, which becomes the root of a namespace."""
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[words.index("-") + 1] == "cgroup2":
            path = pathlib.Path(words[4], f"bindonce-package-{os.getpid()}")
            path.mkdir()
            return path
    raise Skip("no cgroup2 here for a systemd of its own")


def remove_groups(path):
    for directory, _, _ in os.walk(path, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(directory)


class Machine:
    """The booted system, and the commands that a person would type on it."""

    def __init__(self, shared, root):
        self.group = control_group()
        inside = ["unshare", "-pfmuinC", "--kill-child", sys.executable, __file__, "--inner", shared, "--root", root]
        self.console = open(f"{shared}/console", "wb")
        enter = lambda: (self.group / "cgroup.procs").write_text(str(os.getpid()))
        self.process = subprocess.Popen(inside, stdin=subprocess.DEVNULL, stdout=self.console, stderr=self.console, preexec_fn=enter)
        self.pid = eventually("the first process", self.first)

    def first(self):
        if self.process.poll() is not None:
            raise Skip("no namespaces or no overlay here: " + pathlib.Path(self.console.name).read_text(errors="replace")[-300:])
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        if not children:
            return None
        command = pathlib.Path(f"/proc/{children[0]}/comm").read_text().strip()
        return int(children[0]) if command == "systemd" else None

    def words(self, *words):
        return ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", "--", *words]

    def run(self, *words, timeout=120):
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        return subprocess.run(self.words(*words), capture_output=True, text=True, timeout=timeout, env=environment, stdin=subprocess.DEVNULL)

    def must(self, *words, timeout=120):
        done = self.run(*words, timeout=timeout)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(words)}: {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
        return done.stdout.strip()

    def show(self, unit, name):
        return self.must("systemctl", "show", "--value", "-p", name, unit)

    def files(self):
        """Every file of the root, with its type, mode, owner, size and target."""
        skip = " -o ".join(f"-path {path}" for path in ("/proc", "/sys", "/dev", "/run", "/tmp", "/shared"))
        listed = self.must("sh", "-c", f"find / \\( {skip} \\) -prune -o -type d -printf '%p\\t%y %m %u:%g\\n'"
                           " -o -printf '%p\\t%y %m %u:%g %s %l\\n'; find /tmp /run/bindonce -printf '%p\\t%y\\n' 2>/dev/null || true")
        files = {}
        for line in listed.splitlines():
            path, _, what = line.partition("\t")
            if path.startswith("/") and not path.startswith(RECORDS) and path not in ACCOUNTS and "systemd-private" not in path:
                files[path] = what
        return files

    def close(self):
        # All other processes end with its PID 1.
        self.process.kill()
        self.process.wait()
        self.console.close()
        deadline = time.monotonic() + 10
        while self.group.exists() and time.monotonic() < deadline:
            remove_groups(self.group)
            time.sleep(0.02)


def eventually(what, probe, seconds=60):
    end = time.monotonic() + seconds
    while True:
        try:
            if found := probe():
                return found
        except (OSError, RuntimeError):
            pass
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.02)


def packages(options, shared):
    """Builds a version with ./deploy/deb, and from that a second, and a third whose program cannot run."""
    out = f"{shared}/files"
    binary = f"{shared}/bindonce"
    shutil.copy(options.binary, binary)
    writer = pathlib.Path(options.binary).with_name("bindonce-package")
    if writer.exists():
        shutil.copy(writer, shared)
    subprocess.run(["strip", binary], check=False)  # only makes a debug build smaller
    built = subprocess.run([ROOT / "deploy/deb", "--fast", "--binary", binary, "--version", "0.1.0-1", "--out", out],
                           capture_output=True, text=True, timeout=170)
    if built.returncode != 0:
        raise RuntimeError(f"deploy/deb: {built.stderr[-1500:]}")
    names = [pathlib.Path(built.stdout.strip().splitlines()[-1]).name, "bindonce_second.deb", "bindonce_broken.deb"]
    tree = f"{shared}/tree"
    subprocess.run(["dpkg-deb", "-R", f"{out}/{names[0]}", tree], check=True)
    control = pathlib.Path(tree, "DEBIAN/control")
    first = control.read_text()

    def pack(version, name):
        control.write_text(first.replace("0.1.0-1", version))
        subprocess.run(["dpkg-deb", "-Znone", "-b", tree, f"{out}/{name}"], check=True, stdout=subprocess.DEVNULL)

    pack("0.1.0-2", names[1])
    # This program can ask for an upgrade, and nothing else.
    pathlib.Path(tree, "usr/bin/bindonce").write_text(
        "#!/bin/sh\ncase \"$*\" in *' upgrade'*) exec /shared/bindonce \"$@\" ;; esac\necho 'this program is broken' >&2\nexit 1\n")
    shutil.copy(binary, f"{out}/bindonce")
    pack("0.1.0-3", names[2])
    return [f"/shared/{name}" for name in names]


def answers(machine):
    """Whether haproxy answers on the machine."""
    script = f"exec 3<>/dev/tcp/127.0.0.1/{PORT}; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; timeout 5 cat <&3"
    return "hello" in machine.run("bash", "-c", script).stdout


def reloads(machine):
    """The number of reloads that the master CLI counts; Debian's unit asks for that CLI."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(f"/proc/{machine.pid}/root/run/haproxy-master.sock")
        client.sendall(b"show proc\n")
        answer = b"".join(iter(lambda: client.recv(65536), b"")).decode()
    return int(re.search(r"^\d+ +master +(\d+) \[failed: 0\]", answer, re.M)[1])


def reload(machine):
    """Reloads and waits for the end: the unit's own command only sends a signal."""
    before = reloads(machine)
    machine.must("systemctl", "reload", "haproxy")
    eventually("the reload", lambda: reloads(machine) > before)


def running(machine, unit):
    """The unit's main process, and the file that it executes."""
    pid = machine.show(unit, "MainPID")
    return pid, machine.must("readlink", f"/proc/{pid}/exe")


def failed_units(machine):
    """The failed units, except gettys: they give up in the end, as the machine has no terminal."""
    units = machine.must("systemctl", "--failed", "--plain", "--no-legend").split("\n")
    return {unit for unit in units if "getty" not in unit}


def drive(machine, debs, options):
    seen, took, begun = {}, {}, time.monotonic()

    def step(name):
        nonlocal begun
        took[name] = round(time.monotonic() - begun, 1)
        begun = time.monotonic()

    eventually("the system to come up", lambda: machine.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded"))
    seen["systemd"] = machine.must("systemctl", "--version").split("\n")[0]
    seen["plain"] = eventually("Debian's haproxy", lambda: answers(machine))
    before = machine.files()
    failed_before = failed_units(machine)
    step("boot")

    seen["install"] = machine.must("dpkg", "-i", debs[0])
    seen["user"] = machine.must("getent", "passwd", "bindonce")
    machine.must("systemctl", "reload", "bindonce")
    seen["broker"] = [machine.show("bindonce.service", name) for name in ("ActiveState", "User", "UnitFileState")]
    # Debian's haproxy stays as it is until the administrator says otherwise.
    seen["untouched"] = running(machine, "haproxy.service")[1] == "/usr/sbin/haproxy" and answers(machine)
    seen["control"] = machine.must("stat", "-c", "%U:%G %a", "/run/bindonce", "/run/bindonce/bindonce.sock").split("\n")
    verified = machine.run("systemd-analyze", "verify", "bindonce.service", "bindonce-haproxy.service", "haproxy.service")
    # (This small root has no manual pages.)
    seen["verify"] = [line for line in verified.stderr.splitlines() if "haproxy" in line or "bindonce" in line if "man " not in line]
    security = machine.must("systemd-analyze", "security", "bindonce.service", "--no-pager")
    seen["exposure"] = float(security.splitlines()[-1].split(":")[1].split()[0])
    step("install")

    machine.must("sh", "-c", "echo '# The administrator was here.' >>/etc/bindonce/bindonce.toml")
    # The commands at the head of the drop-in.
    machine.must("mkdir", "-p", os.path.dirname(LINK))
    machine.must("ln", "-s", DROP_IN, os.path.dirname(LINK))
    # SIGTERM cuts off haproxy's connections; docs/package.md has this for a restart that drains.
    machine.must("mkdir", "-p", "/run/systemd/system/haproxy.service.d")
    machine.must("sh", "-c", "printf '[Service]\\nKillSignal=SIGUSR1\\n' >/run/systemd/system/haproxy.service.d/drain.conf")
    machine.must("systemctl", "daemon-reload")
    machine.must("systemctl", "restart", "haproxy")
    seen["supervised"] = [*running(machine, "haproxy.service"), machine.must("cat", "/run/haproxy.pid")]
    seen["status"] = machine.must("bindonce", "status")
    step("drop-in")

    load = subprocess.Popen(machine.words("/shared/bindonce-load", "--target", f"127.0.0.1:{PORT}", "--clients", str(options.clients),
                                          "--rate", "100", "--until-eof", "--json"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        for _ in range(options.rounds):
            reload(machine)
        step("reloads")
        machine.must("systemctl", "restart", "haproxy")
        step("restart of haproxy")
        machine.must("systemctl", "restart", "bindonce")
        step("restart of the broker")
        seen["before_upgrade"] = [running(machine, "bindonce.service"), running(machine, "haproxy.service")]
        seen["upgrade"] = machine.must("dpkg", "-i", debs[1])
        seen["after_upgrade"] = [running(machine, "bindonce.service"), running(machine, "haproxy.service")]
        seen["version"] = machine.must("dpkg-query", "-W", "-f", "${Version} ${db:Status-Abbrev}", "bindonce")
        reload(machine)
        step("upgrade")
        broken = machine.run("dpkg", "-i", debs[2])
        seen["broken"] = [broken.returncode, broken.stdout + broken.stderr]
        seen["after_broken"] = [running(machine, "bindonce.service")[0], running(machine, "haproxy.service")[0]]
        seen["still_answers"] = answers(machine)
        step("an upgrade that cannot work")
        machine.must("dpkg", "-i", debs[1])
        seen["after_repair"] = [running(machine, "bindonce.service"), running(machine, "haproxy.service")]
        reload(machine)
        seen["configuration"] = "The administrator was here" in machine.must("cat", "/etc/bindonce/bindonce.toml")
        step("its repair")
    finally:
        load.stdin.close()
        report = load.stdout.read()
        load.wait()
    seen["load"] = json.loads(report)
    if seen["load"]["failed"]:
        # The services' logs tell why.
        seen["journal"] = machine.run("journalctl", "--no-pager", "-o", "short-monotonic", "-u", "haproxy", "-u", "bindonce").stdout
    seen["tokens"] = len(seen["load"].pop("tokens"))

    seen["remove"] = machine.must("dpkg", "--remove", "bindonce")
    seen["plain_again"] = [running(machine, "haproxy.service")[1], answers(machine)]
    step("remove")
    seen["purge"] = machine.must("dpkg", "--purge", "bindonce")
    after = machine.files()
    seen["left"] = sorted(set(after) - set(before))
    seen["lost"] = sorted(set(before) - set(after))
    seen["changed"] = sorted(path for path in before if path in after and before[path] != after[path])
    seen["user_left"] = machine.run("getent", "passwd", "bindonce").returncode == 0
    seen["units_left"] = machine.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "bindonce*").stdout.split("\n")[0]
    seen["failed"] = sorted(failed_units(machine) - failed_before)
    step("purge")
    seen["took"] = took
    return seen


def outer(options):
    if os.geteuid() != 0:
        raise Skip("needs root, to be PID 1 of a namespace")
    if not shutil.which("cargo-deb", path=f"{TARGET}/tools/bin:{os.environ['PATH']}:{os.path.expanduser('~/.cargo/bin')}"):
        raise Skip("no cargo-deb here: ./deploy/deb --tools gets it")
    for tool in ("unshare", "nsenter", "dpkg-deb", "ip"):
        if shutil.which(tool) is None:
            raise Skip(f"no {tool} here")
    if not pathlib.Path(options.root, "usr/lib/systemd/systemd").exists():
        why = pathlib.Path(f"{options.root}.why")
        raise Skip(why.read_text().strip() if why.exists() else f"no Debian in {options.root}: tests/package makes it")
    with tempfile.TemporaryDirectory(prefix="bindonce-package-") as shared:
        os.mkdir(f"{shared}/files")
        begun = time.monotonic()
        debs = packages(options, shared)
        built = round(time.monotonic() - begun, 1)
        shutil.copy(options.load, f"{shared}/files/bindonce-load")
        machine = Machine(shared, os.path.realpath(options.root))
        try:
            seen = drive(machine, debs, options)
        except Exception as error:  # The journal may tell why.
            if isinstance(error, Skip):
                raise
            journal = machine.run("journalctl", "--no-pager", "-o", "short-monotonic", "-n", "80")
            return {"error": f"{type(error).__name__}: {error}", "journal": journal.stdout[-8000:]}
        finally:
            machine.close()
        seen["took"] = {"packages": built, **seen["took"]}
        return seen


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", default=f"{TARGET}/release/bindonce")
    parser.add_argument("--load", default=f"{TARGET}/release/bindonce-load")
    parser.add_argument("--root", default=f"{TARGET}/package/root")
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="reloads of haproxy")
    parser.add_argument("--inner")
    options = parser.parse_args()
    if options.inner:
        inner(options.inner, options.root)
    try:
        result = outer(options)
    except Skip as why:
        result = {"skipped": str(why)}
    print(json.dumps(result, indent=2))
    sys.exit(1 if "error" in result else 0)


if __name__ == "__main__":
    main()

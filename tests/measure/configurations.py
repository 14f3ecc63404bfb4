#!/usr/bin/env python3
"""Starts generated configurations plain and under bindonce, each in a network namespace of its own, and compares
what the two haproxies listen on: the same addresses, or bindonce says why not and exits 1.

    configurations.py [--count N] [--seed S] [--verbose] BINDONCE HAPROXY

generated.py makes them. Needs root, unshare(1), nsenter(1), ip(8) and ss(8); without openssl(1) no
bind line has TLS or QUIC. Exits 1 if one differed, and prints its seed.
"""

import argparse
import collections
import os
import pathlib
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from generated import ADDRESS, NAMESPACE, VARIABLES, Generator

PATIENCE = 60
# haproxy sends SIGUSR1 once everything is bound; SIGTTOU and SIGTTIN pause and resume an older one.
SIGNALS = {signal.SIGUSR1, signal.SIGCHLD, signal.SIGTTOU, signal.SIGTTIN}
# A private, empty /run, for the second network namespace that a bind line may name.
PREPARE = f"""
mount -t tmpfs run /run
ip netns add {NAMESPACE}
for ns in "" "-n {NAMESPACE}"; do ip $ns link set lo up; ip $ns addr add {ADDRESS}/32 dev lo; done
exec "$@"
"""
IN_NAMESPACE = ["unshare", "-n", "-m", "--", "sh", "-e", "-c", PREPARE, "-"]


def family(pid):
    """A process and its descendants."""
    try:
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return {pid}
    return {pid}.union(*(family(int(child)) for child in children))


def sockets(pids):
    """The inodes of these processes' sockets."""
    found = set()
    for pid in pids:
        try:
            for entry in os.scandir(f"/proc/{pid}/fd"):
                found.update(re.findall(r"^socket:\[(\d+)\]", os.readlink(entry.path)))
        except OSError:
            pass  # The process has ended, or the descriptor is closed.
    return found


def shown(pid, namespace=""):
    """A network namespace's listening sockets: (inode, (kind, address, IPv6 only, namespace))."""
    inside = ["nsenter", f"--net=/proc/{pid}/root/run/netns/{namespace}" if namespace else f"--net=/proc/{pid}/ns/net"]
    said = subprocess.run([*inside, "ss", "-H", "-lntuxe"], capture_output=True, text=True, errors="replace", check=True,
                          timeout=PATIENCE).stdout
    for line in said.splitlines():
        words = line.split()
        inode, address = re.search(r"ino:(\d+)", line), words[4]
        if words[0].startswith("u_"):
            inode = re.search(r" (\d+) +\* 0", line)
            # Plain haproxy first binds a path under another name.
            address = os.path.normpath(re.sub(r"\.\d+\.tmp$", "", address))
            if "/web.d/" in address or address.startswith("*"):
                continue
        # A path leads to its socket from every network namespace.
        yield inode[1] if inode else "", (words[0], address, "v6only:1" in line, "" if address[0] == "/" else namespace)


def listening(pid, master):
    """What haproxy and its workers listen on, once it has bound everything; with a master, once it
    has a worker. None if it has ended."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        pids = family(pid)
        before = sockets(pids)
        try:
            found = [*shown(pid), *shown(pid, NAMESPACE)]
        except subprocess.CalledProcessError:
            if not before:
                return None
            continue
        # A master that has a worker re-executes itself and closes the worker's sockets.
        if family(pid) == pids and sockets(pids) == before and len(pids) > master:
            return {socket for inode, socket in found if inode in before}
        time.sleep(0.01)
    raise SystemExit(f"process {pid} does not come to rest")


def end(process):
    pids = family(process.pid)
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    process.wait(PATIENCE)


class Trial:
    """One configuration, started in two ways."""

    def __init__(self, arguments, seed, where):
        generator = Generator(seed, where, arguments.version, arguments.features, arguments.certificate is not None,
                              masters=arguments.masters)
        self.bindonce, self.haproxy, self.where = arguments.bindonce, arguments.haproxy, where
        self.files = []
        for number, text in enumerate(generator.files()):
            self.files.append(where / f"{number}.cfg")
            self.files[-1].write_text(text, newline="")
        if arguments.certificate:
            shutil.copy(arguments.certificate, where / "site.pem")
        self.arguments = generator.arguments()
        for file in self.files:
            self.arguments += ["-f", str(file)]
        self.environment = {**os.environ, **VARIABLES}
        self.master = bool(generator.master)

    def text(self):
        parts = [f"haproxy {' '.join(self.arguments)}\n"]
        parts += [f"# {file.name}\n{file.read_text(errors='replace')}" for file in self.files]
        return "".join(parts)

    def shares_no_port(self):
        return "-dR" in self.arguments or any("noreuseport" in file.read_text() for file in self.files)

    def start(self, command, **options):
        unblock = lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return subprocess.Popen(command, env=self.environment, preexec_fn=unblock, **options)

    def plain(self):
        """What plain haproxy listens on, or its message. SIGUSR1 means that everything is bound."""
        while signal.sigtimedwait(SIGNALS, 0):
            pass
        with open(self.where / "plain.log", "w+", errors="replace") as log:
            command = [*IN_NAMESPACE, self.haproxy, "-db", *self.arguments, "-sf", str(os.getpid())]
            process = self.start(command, stdout=log, stderr=log)
            deadline = time.monotonic() + PATIENCE
            try:
                while time.monotonic() < deadline and process.poll() is None:
                    got = signal.sigtimedwait(SIGNALS, 0.5)
                    if got and got.si_signo == signal.SIGUSR1:
                        found = listening(process.pid, self.master)
                        if found is not None:
                            return found, ""
                        break
            finally:
                end(process)
            log.seek(0)
            return None, log.read()

    def supervised(self):
        """Returns the exit code if bindonce refused it, what haproxy listens on, and the log."""
        socket = self.where / "s.sock"
        with open(self.where / "broker.log", "w") as log:
            broker = self.start([*IN_NAMESPACE, self.bindonce, "serve", "--socket", str(socket)], stdout=log, stderr=log)
        run = None
        said = ""
        try:
            deadline = time.monotonic() + PATIENCE
            while not socket.exists() and time.monotonic() < deadline:
                time.sleep(0.005)
            inside = ["nsenter", "-t", str(broker.pid), "-n", "-m", "--"]
            command = [*inside, self.bindonce, "run", "--socket", str(socket), "--name", "web", "--", self.haproxy]
            run = self.start([*command, *self.arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            os.set_blocking(run.stderr.fileno(), False)
            while time.monotonic() < deadline + PATIENCE:
                select.select([run.stderr], [], [], 0.5)
                more = run.stderr.read()
                said += (more or b"").decode(errors="replace")
                serving = re.search(r"serving generation=\d+ pid=(\d+)", said)
                if serving:
                    found = listening(int(serving[1]), False)  # bindonce is the master itself.
                    return None if found is None else 0, found, said
                if more == b"":
                    return run.wait(PATIENCE), None, said
            return None, None, said
        finally:
            for process in filter(None, [run, broker]):
                end(process)

    def compare(self):
        """Returns the outcome in a few words, and details to print."""
        theirs, why = self.plain()
        code, ours, said = self.supervised()
        if code == 0 and theirs == ours:
            return "the same addresses", ""
        if code == 1 and said.strip():
            reason = said.strip().splitlines()[-1]
            if theirs is None:
                return "refused by both", f"plain haproxy: {why}\nbindonce: {reason}"
            return "refused by bindonce alone: " + kind(reason), reason
        if code == 0 and theirs is None and "Address already in use" in why and self.shares_no_port():
            # Without SO_REUSEPORT haproxy cannot bind a wildcard beside an address that it covers;
            # the broker can.
            return "served by bindonce alone: addresses overlap, and haproxy may not use SO_REUSEPORT", ""
        if code == 0 and theirs is None:
            return "WRONG", f"plain haproxy refuses it:\n{why}\nbindonce listens on {written(ours)}\n"
        if code == 0:
            return "WRONG", f"plain     {written(theirs - ours)}\nbindonce  {written(ours - theirs)}\n(what only one has)\n"
        return "WRONG", f"exit code {code}\n{said}\nplain: {written(theirs) if theirs is not None else why}"


def written(found):
    return " ".join(sorted(f"{net}/{address}{'/v6only' if only else ''}{'/' if namespace else ''}{namespace}"
                           for net, address, only, namespace in found))


def kind(reason):
    """A reason without its addresses, places and names."""
    reason = re.sub(r"\S+\.cfg(:\d+)?:?", "FILE", reason.removeprefix("bindonce: "))
    reason = re.sub(r"\S*\d\S*|\"[^\"]*\"", "…", reason)
    return reason[:110]


def certificate(directory):
    """A certificate with its key, in one file; none where openssl(1) is missing."""
    if not shutil.which("openssl"):
        return None
    path = pathlib.Path(directory) / "site.pem"
    made = subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                           "-days", "2", "-subj", "/CN=site", "-keyout", "-"], capture_output=True, check=True)
    path.write_bytes(made.stdout)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbose", action="store_true", help="print each configuration that is refused")
    parser.add_argument("bindonce")
    parser.add_argument("haproxy")
    arguments = parser.parse_args()
    arguments.bindonce, arguments.haproxy = os.path.realpath(arguments.bindonce), os.path.realpath(arguments.haproxy)
    built = subprocess.run([arguments.haproxy, "-vv"], capture_output=True, text=True, check=True).stdout
    arguments.version, arguments.features = built.split()[2], re.findall(r"\+(\w+)", built)
    # Before 3.1 a master re-executes its own path, which bypasses what a wrapper script prepares.
    script = pathlib.Path(arguments.haproxy).read_bytes()[:2] == b"#!"
    arguments.masters = not script or tuple(map(int, arguments.version.split(".")[:2])) >= (3, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    begun = time.monotonic()
    outcomes = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="bc") as directory:
        arguments.certificate = certificate(directory)
        for seed in range(arguments.seed, arguments.seed + arguments.count):
            where = pathlib.Path(directory) / str(seed)
            where.mkdir()
            trial = Trial(arguments, seed, where)
            outcome, shown = trial.compare()
            if outcome == "WRONG" or (arguments.verbose and shown):
                print(f"--- seed {seed}: {outcome}\n{shown}\n{trial.text()}", flush=True)
            shutil.rmtree(where, ignore_errors=True)
            outcomes[outcome] += 1
    print(f"haproxy {arguments.version}: {arguments.count} configurations from seed {arguments.seed}, {time.monotonic() - begun:.0f} s")
    for outcome, count in outcomes.most_common():
        print(f"{count:6}  {outcome}")
    sys.exit(1 if outcomes["WRONG"] else 0)


if __name__ == "__main__":
    main()

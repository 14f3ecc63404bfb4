#!/usr/bin/env python3
"""Starts generated configurations plain and under bindonce, each in a network namespace of its own, and compares
what the two haproxies listen on: the same addresses, or bindonce says why not and exits 1.

    configurations.py [--count N] [--seed S] [--keep DIR] BINDONCE HAPROXY

Configurations have conditions, variables, quotes, words that come out empty, late global sections, defaults, and
binds of every family. Needs root, unshare(1), nsenter(1) and ss(8). Exit code 1: one differed; its seed is printed.
"""

import argparse
import collections
import os
import pathlib
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

PATIENCE = 20
IN_NAMESPACE = ["unshare", "-n", "--", "sh", "-c", 'ip link set lo up; ip addr add 10.9.9.9/32 dev lo; exec "$@"', "-"]
VARIABLES = {"SET": "8301", "HOST": "127.0.0.1", "LIST": "v6only interface lo", "SPACED": " name x ", "EMPTY": "",
             "LATE": "8302"}


class Generator:
    """One configuration, from its seed alone."""

    def __init__(self, seed, where, version="3.2"):
        self.old = version.startswith("2.")
        self.random = random.Random(seed)
        self.where = where
        self.ports = iter(self.random.sample(range(9000, 20000), 400))
        self.sections = 0

    def one(self, *choices):
        return self.random.choice(choices)

    def often(self, chance):
        return self.random.random() < chance

    def variable(self):
        return self.one("SET", "HOST", "EMPTY", "NOT", "LATE", "EARLY", "HAPROXY_BRANCH", "HAPROXY_MWORKER",
                        "HAPROXY_LOCALPEER", "HAPROXY_CFGFILES", "HAPROXY_HTTP_LOG_FMT", "HAPROXY_STARTUP_VERSION")

    def condition(self, depth=0):
        name = self.variable()
        simple = self.one(
            "0", "1", "010", "0x0", f"defined({name})", f"!defined({name})", f"defined( {name})",
            f'streq(\\"${name}\\",8302)', f'streq("${name}",3.2)', 'strneq("$EARLY",x)', r"streq(\"a,b\",\"a,b\")",
            "streq('a b',a\\ b)", 'streq("$EMPTY",)', "version_atleast(3.0)", "version_before(3.1)", "feature(OPENSSL)",
            "feature(NOTHING)", "openssl_version_atleast(1.1.1)", "1", "!0", "defined(HOST)",
            'streq("${.SECTION}",f1)', 'streq("${.LINE}",20)',
            *(["enabled(EPOLL)", "enabled(POLL)", "enabled(SPLICE)", "enabled(GETADDRINFO)", "enabled(REUSEPORT)",
               "enabled(KQUEUE)", "enabled(NOTHING)", "strstr(abc,b)"] if not self.old else ["1"]),
            *(["openssl_version_atleast(1.1)", "nonsense(1)", "1 1"] if self.often(0.05) else []))
        if depth < 3 and self.often(0.3):
            other = self.condition(depth + 1)
            return self.one(f"{simple} && {other}", f"{simple} || {other}", f"!({other})", f"({simple}) && !{simple}")
        return simple

    def word(self, text):
        return self.one(text, text, text, f'"{text}"', f"'{text}'", text[:1] + f'"{text[1:]}"', text + '""')

    def port(self):
        return next(self.ports)

    def address(self, sockets):
        port = self.port()
        text = self.one(
            f":{port}", f"*:{port}", f"127.0.0.1:{port}", f"10.9.9.9:{port}", f"[::1]:{port}", f"::1:{port}",
            f":::{port}", f"[::]:{port}", f"ipv4@:{port}", f"ipv6@:{port}", f"ipv6@*:{port}", f"ip@127.0.0.2:{port}",
            f"tcp@127.0.0.1:{port}", f"tcp4@:{port}", f"tcp6@::1:{port}", f"stream+ipv4@127.0.0.1:{port}",
            f"localhost:{port}", f"[localhost]:{port}", f"ipv4@localhost:{port}", f"127.1:{port}", f"[127.0.0.1]:{port}",
            f":{port}-{port + 2}" if self.often(0.5) else f"127.0.0.1:{port}-+{port + 1}",
            f"{self.where}/{port}.sock" if sockets else f":{port}", f"unix@{self.where}/u{port}.sock" if sockets else f":{port}",
            f"abns@n{port}", f"uxst@{self.where}/x{port}.sock" if sockets else f":{port}")
        if self.often(0.15):
            text += "," + self.one(f"127.0.0.1:{self.port()}", f":{self.port()}", "", f",:{self.port()}",
                                   f"[::1]:{self.port()},")
        text = self.word(text)
        if self.often(0.25):
            text = self.one(f'"127.0.0.1:${{PORT-{port}}}"', f'"127.0.0.1:${{LATE-{port}}}"', f'"$HOST:{port}"',
                            f'"127.0.0.1:{port}${{NOT}}"', f'"127.0.0.1:{port}${{NOT[*]}}"', f"127.0.0.1:\"${{EARLY-{port}}}\"",
                            f'"127.0.0.1:${{LATE}}"', f'"127.0.0.1:$SET"', f'"127.0.0.1:{port}${{EMPTY}}"',
                            f'127.0.0.1:{port}"$NOT"', f'"abns@${{HAPROXY_LOCALPEER}}{port}"',
                            f'"abns@b${{HAPROXY_BRANCH}}-{port}"', f'"abns@s${{.SECTION}}{port}"', f'"abns@m${{HAPROXY_MWORKER-x}}{port}"')
        return text

    def bind(self, peers=False):
        line = "bind "
        if self.often(0.04):
            line += self.one('"${NOT[*]}" ', '"$NOT" ', '"$EMPTY" ', '"${EMPTY[*]}" ', "'' ")
        line += self.address(not peers)
        while self.often(0.3):
            line += " " + self.one("name a", "maxconn 10", "backlog 20", "interface lo", "v6only", "v4v6", "transparent",
                                   "accept-proxy", "defer-accept", "tcp-ut 5s", "mode 600", '"${NOT[*]}"', '"$NOT"', '"$EMPTY"',
                                   '"${LIST[*]}"', '"${SPACED[*]}"', '""', "mss 1400", "nice 3", "level user")
        return "    " + line + self.one("", "", "  ", " # comment", "\r", '#"x')

    def block(self, lines, depth=0):
        if depth > 4 or not self.often(0.35):
            return lines()
        out = [f".if {self.condition()}", *self.block(lines, depth + 1)]
        while self.often(0.3):
            out += [f".elif {self.condition()}", *self.block(lines, depth + 1)]
        if self.often(0.6):
            out += [".else", *self.block(lines, depth + 1)]
        return out + [".endif"]

    def setting(self):
        return "    " + self.one(
            "setenv EARLY x", "setenv LATE 8303", 'setenv EARLY "${EARLY-}y"', "presetenv EARLY 8304", "presetenv PORT 8305",
            "unsetenv LATE", "unsetenv EARLY HOST", "resetenv PATH HOST", "resetenv", "localpeer other", "noepoll", "nopoll",
            "nosplice", "noreuseport", "nogetaddrinfo", "ssl-server-verify none", "maxconn 200",
            f"stats socket {self.where}/stats{self.port()}.sock", f"unix-bind prefix {self.where}/p mode 600",
            'setenv "${NOT[*]}" A B' if self.often(0.2) else "setenv EARLY z", 'setenv LATE "$HAPROXY_BRANCH"', "maxconn 300")

    def settings(self):
        lines = lambda: [self.setting() for _ in range(self.random.randrange(1, 3))]
        return ["global", *self.block(lines)]

    def defaults(self):
        name = self.one("", " d")
        return [f"defaults{name}", "    mode tcp", "    timeout connect 1s", "    timeout client 1s", "    timeout server 1s",
                *self.one([], [], [], ["    disabled"], ["    backlog 7"])]

    def proxy(self):
        self.sections += 1
        head = self.one("frontend", "listen") + f" f{self.sections}"
        body = lambda: [self.bind() for _ in range(self.random.randrange(1, 3))]
        extra = self.one([], [], [], [], ["    disabled"], ["    enabled"], ['    disabled "$NOT"'], ["    backlog 9"])
        return [head, *extra, *self.block(body), *(body() if self.often(0.6) else [])]

    def peers(self):
        self.sections += 1
        local = self.one('"$HAPROXY_LOCALPEER"', "other", '"${HAPROXY_LOCALPEER[*]}"')
        return [f"peers p{self.sections}", f"    bind 127.0.0.1:{self.port()}", f"    server {local}", "    server far 127.0.0.1:1"]

    def text(self):
        out = []
        if self.often(0.7):
            out += self.settings()
        out += self.defaults()
        for _ in range(self.random.randrange(1, 5)):
            part = self.one(self.proxy, self.proxy, self.proxy, self.proxy, self.settings, self.defaults, self.peers)
            out += self.block(part) if self.often(0.3) else part()
        return "\n".join(out) + "\n"


def family(pid):
    """A process and its descendants."""
    try:
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return {pid}
    return {pid}.union(*(family(int(child)) for child in children))


def listening(pid, where):
    """What a haproxy and its workers listen on: family, address and device, and whether it is IPv6 alone."""
    pids = family(pid)
    said = subprocess.run(["nsenter", "-t", str(pid), "-n", "ss", "-H", "-lntuxpe"], capture_output=True, text=True,
                          errors="replace", check=True, timeout=PATIENCE).stdout
    found = set()
    for line in said.splitlines():
        words = line.split()
        if not pids & {int(owner) for owner in re.findall(r"pid=(\d+)", line)}:
            continue
        address = words[4]
        if words[0].startswith("u_"):
            # Plain haproxy binds a path under another name first.
            address = re.sub(r"\.\d+\.tmp$", "", address)
            if "/web.d/" in address or address.startswith("*"):
                continue
        found.add((words[0], address, "v6only:1" in line))
    return found


def end(process):
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            for pid in family(process.pid):
                os.kill(pid, signal.SIGKILL)
    process.wait(PATIENCE)


def plain(haproxy, file, environment, where):
    """What plain haproxy listens on, or what it says. It tells with SIGUSR1 that it has bound everything."""
    signals = {signal.SIGUSR1, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    while signal.sigtimedwait(signals, 0):
        pass
    with open(where / "plain.log", "w+", errors="replace") as log:
        command = [*IN_NAMESPACE, haproxy, "-db", "-f", str(file), "-sf", str(os.getpid())]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log,
                                   preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, signals))
        deadline = time.monotonic() + PATIENCE
        try:
            while time.monotonic() < deadline and process.poll() is None:
                got = signal.sigtimedwait(signals, 0.5)
                if got and got.si_signo == signal.SIGUSR1:
                    return listening(process.pid, where), ""
        finally:
            end(process)
        log.seek(0)
        return None, log.read()


def supervised(bindonce, haproxy, file, environment, where):
    """What haproxy listens on under bindonce; or the exit code, and what was said."""
    socket = where / "s.sock"
    with open(where / "broker.log", "w") as log:
        broker = subprocess.Popen([*IN_NAMESPACE, bindonce, "serve", "--socket", str(socket)], env=environment, stdout=log,
                                  stderr=log)
    run = None
    said = ""
    try:
        deadline = time.monotonic() + PATIENCE
        while not socket.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        inside = ["nsenter", "-t", str(broker.pid), "-n", "--"]
        run = subprocess.Popen([*inside, bindonce, "run", "--socket", str(socket), "--name", "web", "--", haproxy, "-f",
                                str(file)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        os.set_blocking(run.stderr.fileno(), False)
        while time.monotonic() < deadline + PATIENCE:
            select.select([run.stderr], [], [], 0.5)
            more = run.stderr.read()
            said += (more or b"").decode(errors="replace")
            serving = re.search(r"serving generation=\d+ pid=(\d+)", said)
            if serving:
                try:
                    return 0, listening(int(serving[1]), where), said
                except subprocess.CalledProcessError as error:
                    return None, None, f"{said}\nit has ended: {error.stderr}"
            if more == b"":
                return run.wait(PATIENCE), None, said
        return None, None, said
    finally:
        for process in filter(None, [run, broker]):
            end(process)


def compare(arguments, seed, where):
    """The outcome in a word, and what to show if it is wrong."""
    file = where / "haproxy.cfg"
    text = Generator(seed, where, arguments.version).text()
    file.write_text(text, newline="")
    environment = {**os.environ, **VARIABLES}
    theirs, why = plain(arguments.haproxy, file, environment, where)
    code, ours, said = supervised(arguments.bindonce, arguments.haproxy, file, environment, where)
    shown = lambda found: " ".join(sorted(f"{net}/{address}{'/v6only' if only else ''}" for net, address, only in found))
    if code == 0 and theirs == ours:
        return "the same addresses", ""
    if code == 1 and said.strip():
        if theirs is None:
            return "refused by both", ""
        reason = said.strip().splitlines()[-1]
        return "refused by bindonce alone: " + kind(reason), reason
    if code == 0 and theirs is None:
        return "WRONG", f"plain haproxy refuses it:\n{why}\nbindonce listens on {shown(ours)}\n"
    if code == 0:
        return "WRONG", f"plain     {shown(theirs - ours)}\nbindonce  {shown(ours - theirs)}\n(what only one has)\n"
    return "WRONG", f"exit code {code}\n{said}\nplain: {shown(theirs) if theirs is not None else why}"


def kind(reason):
    """A reason without its addresses, places and names."""
    reason = re.sub(r"\S+\.cfg(:\d+)?:?", "FILE", reason.removeprefix("bindonce: "))
    reason = re.sub(r"\S*\d\S*|\"[^\"]*\"", "…", reason)
    return reason[:110]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbose", action="store_true", help="print each configuration that bindonce alone refuses")
    parser.add_argument("bindonce")
    parser.add_argument("haproxy")
    arguments = parser.parse_args()
    arguments.version = subprocess.run([arguments.haproxy, "-v"], capture_output=True, text=True, check=True).stdout.split()[2]
    begun = time.monotonic()
    outcomes = collections.Counter()
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        where = pathlib.Path(tempfile.mkdtemp(prefix="bc"))
        try:
            outcome, shown = compare(arguments, seed, where)
            if outcome == "WRONG" or (arguments.verbose and shown):
                print(f"--- seed {seed}: {outcome}\n{shown}\n{(where / 'haproxy.cfg').read_text(errors='replace')}", flush=True)
        finally:
            shutil.rmtree(where, ignore_errors=True)
        outcomes[outcome] += 1
    print(f"haproxy {arguments.version}: {arguments.count} configurations from seed {arguments.seed}, {time.monotonic() - begun:.0f} s")
    for outcome, count in outcomes.most_common():
        print(f"{count:6}  {outcome}")
    sys.exit(1 if outcomes["WRONG"] else 0)


if __name__ == "__main__":
    main()

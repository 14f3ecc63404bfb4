#!/usr/bin/env python3
"""Programs that start haproxy, each in its own way, with bindonce in haproxy's place and with plain
haproxy: reloads in a row under clients that connect without pause. Then how long a start of
`haproxy -W` and a `-sf` take, both in one run.

    tests/measure/callers.py [--count 30] [--clients 20] [--starts 15] [--only VERSION] [--caller NAME]
"""

import argparse
import contextlib
import os
import pathlib
import re
import signal
import socket
import statistics
import subprocess
import time

from stage import PORT, Stage, ask, binary, config, haproxies, isolate, ms, told, wait_for

parser = argparse.ArgumentParser()
parser.add_argument("--count", type=int, default=30)
parser.add_argument("--clients", type=int, default=20)
parser.add_argument("--starts", type=int, default=15)
parser.add_argument("--only", default="", help="only versions that begin with this")
parser.add_argument("--caller", default="", help="only callers whose name holds this")
arguments = parser.parse_args()
isolate(alone=True)


class Place:
    """A stage on which `haproxy` is bindonce or haproxy itself."""

    def __init__(self, stage, program, haproxy):
        self.stage, self.directory = stage, stage.directory
        first = pathlib.Path(program).parent
        if program != haproxy:
            first = self.directory / "bin"
            first.mkdir()
            (first / "haproxy").symlink_to(program)
        self.environment = {**stage.environment, "BINDONCE_HAPROXY": haproxy, "PATH": f"{first}:{os.environ['PATH']}"}
        self.pid_file, self.cli, self.admin = (self.directory / name for name in ("pid", "master.sock", "admin.sock"))

    def configure(self, tag, more=""):
        extra = f"global\n    stats socket {self.admin} level admin expose-fd listeners\n{more}"
        self.stage.file.write_text(config(tag).replace("global\n", extra, 1))

    def command(self, words):
        return ["haproxy", "-f", str(self.stage.file), *map(str, words)]

    def foreground(self, *words):
        return self.stage.start("haproxy", self.command(words), environment=self.environment)

    def run(self, *words):
        done = subprocess.run(self.command(words), env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise SystemExit(f"haproxy {' '.join(map(str, words))}: {done.returncode}: {done.stderr}")

    def say(self, line):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(2)
            client.connect(str(self.cli))
            client.sendall(line + b"\n")
            client.shutdown(socket.SHUT_WR)  # haproxy 3.2's own master keeps the connection open otherwise
            return b"".join(iter(lambda: client.recv(65536), b"")).decode()

    def reloads(self):
        # haproxy's own master serves no client while it re-executes itself.
        with contextlib.suppress(OSError):
            return int(re.search(r"^\d+ +master +(\d+)", self.say(b"show proc"), re.M)[1])

    def pids(self):
        """The pids that `pidof haproxy` prints, also where haproxy runs behind its own loader."""
        found = []
        for command in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if re.match(rb"([^\0]*/)?(haproxy|ld-linux[^/\0]*)\0", command.read_bytes()):
                    found.append(command.parent.name)
        return found

    def end(self):
        for name in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), name)
            with contextlib.suppress(SystemExit):
                return wait_for("no haproxy", lambda: not self.pids(), 5)


def unit(place):
    """haproxy.service, and `systemctl reload`."""
    main = place.foreground("-Ws", "-p", place.pid_file, "-S", place.cli)

    def reload():
        place.run("-Ws", "-c", "-q")
        main.send_signal(signal.SIGUSR2)
    return reload


def container(place):
    """The official image, and `docker kill -s HUP`."""
    first = place.foreground("-W", "-db")
    return lambda: first.send_signal(signal.SIGHUP)


def controller(place):
    """An ingress controller: `reload` on the master CLI, then `show proc` until it counts one more."""
    place.foreground("-W", "-db", "-m", "512", "-S", f"{place.cli},level,admin")

    def reload():
        before = wait_for("the count", lambda: (place.reloads() or 0) + 1) - 1
        with contextlib.suppress(OSError):
            place.say(b"reload")
        wait_for("one more reload", lambda: (place.reloads() or 0) > before, 5)
    return reload


def api_server(place):
    """The vendor's API server beside a haproxy under s6."""
    place.environment |= {"HAPROXY_MWORKER": "1", "HAPROXY_MASTER_CLI": f"unix@{place.cli}", "HAPROXY_CFGFILES": str(place.stage.file)}
    main = place.foreground("-W", "-db", "-S", f"{place.cli},level,admin")
    return lambda: main.send_signal(signal.SIGUSR2)


def agent(place):
    """A tool that writes configurations of labels: `-D -p PID -sf $(cat PID)`."""
    place.run("-D", "-p", place.pid_file)
    return lambda: place.run("-D", "-p", place.pid_file, "-sf", place.pid_file.read_text().strip())


def transfer(place):
    """The same with the sockets of the older one, by its admin socket."""
    place.run("-D", "-p", place.pid_file)
    return lambda: place.run("-D", "-p", place.pid_file, "-x", place.admin, "-sf", place.pid_file.read_text().strip())


def router(place):
    """A platform's router: `daemon` in its configuration, `-x ADMIN -sf $(pidof haproxy)`."""
    configure = place.configure
    place.configure = lambda tag: configure(tag, "    daemon\n")
    place.configure(1)
    place.run("-p", place.pid_file)
    return lambda: place.run("-p", place.pid_file, "-x", place.admin, "-sf", *place.pids())


CALLERS = [unit, container, controller, api_server, agent, transfer, router]


def measure(caller, program, haproxy):
    with Stage() as stage:
        place = Place(stage, program, haproxy)
        place.configure(1)
        try:
            reload = caller(place)
            wait_for("the first answer", lambda: ask()[1] == "1")
            load, begun, lost = stage.load(arguments.clients), time.monotonic(), []
            time.sleep(0.3)  # load before the first reload, not a wait for an event
            for number in range(arguments.count):
                place.configure(number + 2)
                try:
                    reload()
                    wait_for(f"generation {number + 2}", lambda: ask()[1] == str(number + 2), 5)
                except SystemExit as why:  # haproxy's own master missed a signal
                    lost.append(f"\n    without effect: {why}")
            said = f"{len(lost)} reloads without effect; {told(stage.report(load))}" + "".join(lost)
            return said, time.monotonic() - begun
        finally:
            place.end()


def times(programs, haproxy):
    """Start of `haproxy -W` until it accepts, and `-D -sf` until it exits, in turns."""
    started, replaced = {name: [] for name in programs}, {name: [] for name in programs}
    for _ in range(arguments.starts):
        for name, program in programs.items():
            with Stage() as stage:
                place = Place(stage, program, haproxy)
                place.configure(1)
                try:
                    begun = time.perf_counter()
                    place.foreground("-W", "-db", "-p", place.pid_file)
                    wait_for("an answer", lambda: ask()[1] == "1")
                    started[name].append(time.perf_counter() - begun)
                    wait_for("the pid file", lambda: place.pid_file.exists() and place.pid_file.read_text().strip())
                    place.configure(2)
                    begun = time.perf_counter()
                    place.run("-D", "-p", place.pid_file, "-sf", place.pid_file.read_text().strip())
                    replaced[name].append(time.perf_counter() - begun)
                finally:
                    place.end()
    for what, taken in (("start of -W to an answer", started), ("-D -sf to its exit", replaced)):
        median = {name: statistics.median(values) for name, values in taken.items()}
        print(f"  {what}, median of {arguments.starts}: " + ", ".join(f"{name} {ms(value)}" for name, value in median.items())
              + f"; difference {ms(median['bindonce'] - median['plain'])}", flush=True)


for version, haproxy in haproxies(arguments.only):
    print(f"haproxy {version}, port {PORT}, {arguments.count} reloads under {arguments.clients} clients", flush=True)
    programs = {"bindonce": binary("bindonce"), "plain": haproxy}
    for caller in CALLERS:
        if arguments.caller in caller.__name__:
            for name, program in programs.items():
                said, seconds = measure(caller, program, haproxy)
                print(f" {caller.__name__} ({caller.__doc__.strip()}), {name}, in {seconds:.1f} s\n  {said}", flush=True)
    if arguments.starts:
        times(programs, haproxy)

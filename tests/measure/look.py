#!/usr/bin/env python3
"""Cost of `bindonce doctor` on a busy host: haproxies under bindonce with 200 listeners and 20,000
established connections, among 300 processes. Time and memory, when all is well and when there is a
finding, for which doctor looks twice. There are enough services for each haproxy to stay below the
limit of descriptors.

    tests/measure/look.py [--times 20] [--listeners 200] [--connections 20000] [--processes 300] [--only VERSION]
        [--clients-too]

The clients are in the same network namespace but in another pid namespace, as if on other hosts:
doctor does not see their processes, unless --clients-too is given. Time runs from the command's
start to its end, and needs a quiet machine; processor time does not. Memory is the peak that was
resident (VmHWM), read while the command waits for its report to be read: after that it only ends.
"""

import argparse
import array
import fcntl
import json
import math
import os
import pathlib
import resource
import socket
import subprocess
import sys
import termios
import time

from stage import Stage, config, haproxies, isolate, ms, spread, wait_for

parser = argparse.ArgumentParser()
parser.add_argument("--times", type=int, default=20)
parser.add_argument("--listeners", type=int, default=200)
parser.add_argument("--connections", type=int, default=20000)
parser.add_argument("--processes", type=int, default=300)
parser.add_argument("--only", default="", help="only versions that begin with this")
parser.add_argument("--clients-too", action="store_true", help="let doctor see the clients' processes")
arguments = parser.parse_args()
isolate()

FIRST = 20000
PIPE = 4096
# Environment variable of the measuring process: the descriptor on which it asks for clients.
ASK = "BINDONCE_MEASURE_CLIENTS"


class Clients:
    """A process that keeps `count` connections, spread over these ports, until told to end."""

    def __init__(self, ports, count):
        (ready, its_ready), (its_over, self.over) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.over)
            addresses = [("127.0.0.1", ports[number % len(ports)]) for number in range(count)]
            clients = [socket.create_connection(address, 10) for address in addresses]
            os.write(its_ready, b"!")
            os.read(its_over, 1)
            os._exit(len(clients) != count)
        os.close(its_ready)
        os.close(its_over)
        connected = os.read(ready, 1)
        os.close(ready)
        if not connected:
            raise SystemExit("not all connections could be made")

    def end(self):
        os.close(self.over)
        os.waitpid(self.pid, 0)


def beside():
    """Starts this script again in its own pid namespace, and keeps its clients here: each line asks
    for more clients, or for none to be left."""
    ours, its = socket.socketpair()
    alone = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, *sys.argv]
    environment = {**os.environ, ASK: str(its.fileno())}
    measuring = subprocess.Popen(alone, pass_fds=[its.fileno()], env=environment)
    its.close()
    clients = []
    for line in ours.makefile("r"):
        ports, count = json.loads(line)
        if count:
            clients.append(Clients(ports, count))
        while clients and not count:
            clients.pop().end()
        ours.sendall(b"!")
    sys.exit(measuring.wait())


def connect(stage, ports, count):
    """Opens `count` connections to these ports, until the stage ends."""
    if arguments.clients_too:
        stage.callback(Clients(ports, count).end)
        return
    ask(ports, count)
    stage.callback(ask, [], 0)


def ask(ports, count):
    """Asks the outer process to connect clients, or to end them."""
    clients.sendall(json.dumps([list(ports), count]).encode() + b"\n")
    if not clients.recv(1):
        raise SystemExit("the clients have ended")


def serve(stage, haproxy, name, ports, connections):
    """Starts a service with these ports and this number of connections."""
    text = config(1, listeners=ports).replace("maxconn 1000", f"maxconn {connections + 100}")
    file = stage.directory / f"{name}.cfg"
    file.write_text(text.replace("timeout client 30s", "timeout client 30m"))
    stage.start(name, stage.command("run", "--name", name, "--", haproxy, "-f", file))
    serving = stage.command("ping", "--name", name, "--serving")
    wait_for(f"{name} to serve", lambda: subprocess.run(serving, env=stage.environment, capture_output=True).returncode == 0)
    connect(stage, ports, connections)


def fill(stage):
    """Starts more processes, up to the requested number, each with ten sockets of its own."""
    count = lambda: sum(1 for entry in os.scandir("/proc") if entry.name.isdigit())
    while count() < arguments.processes:
        pairs = [end for _ in range(5) for end in socket.socketpair()]
        stage.start("sleep", ["sleep", "infinity"], pass_fds=[end.fileno() for end in pairs])
        for end in pairs:
            end.close()
    return count()


def resident(stage):
    """Peak resident memory of one run, in MiB."""
    ours, its = os.pipe()
    fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, PIPE)
    with subprocess.Popen(stage.command("doctor", "--json"), stdout=its, env=stage.environment) as process:
        os.close(its)

        def full():
            waits = array.array("i", [0])
            fcntl.ioctl(ours, termios.FIONREAD, waits)
            return waits[0] >= PIPE
        wait_for("the report to fill the pipe", full)
        lines = pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines()
        with open(ours, "rb") as report:
            report.read()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["VmHWM"].split()[0]) / 1024


def measure(stage, what):
    times = []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(arguments.times):
        begun = time.monotonic()
        code = subprocess.run(stage.command("doctor"), stdout=subprocess.DEVNULL, env=stage.environment).returncode
        times.append(time.monotonic() - begun)
        assert code in (0, 3), code
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    memory = max(resident(stage) for _ in range(arguments.times))
    _, report = stage.doctor()
    found = [one["kind"] for one in report["findings"] if one["severity"] != "note"]
    print(f"    {what} (findings: {found or 'none'}): {spread(times)}; {ms(used / arguments.times)} of "
          f"processor time each; at most {memory:.1f} MiB resident", flush=True)


if ASK not in os.environ:
    beside()
clients = socket.socket(fileno=int(os.environ[ASK]))
# haproxy needs two descriptors for each connection that it may have.
_, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
services = math.ceil(arguments.connections * 2.2 / limit)
for version, haproxy in haproxies(arguments.only):
    with Stage() as stage:
        ports = range(FIRST, FIRST + arguments.listeners)
        for number in range(services):
            serve(stage, haproxy, f"s{number}", ports[number::services], arguments.connections // services)
        processes = fill(stage)
        # haproxy's ends, whose port is a listener's; the clients' ends are as many again.
        shown = ["ss", "-Htn", "state", "established", "sport", ">=", f":{FIRST}", "and", "sport", "<", f":{ports.stop}"]
        count = len(subprocess.run(shown, capture_output=True, text=True, check=True).stdout.splitlines())
        print(f"haproxy {version}: {arguments.listeners} listeners of {services} services, {count} established connections, "
              f"{processes} processes; {arguments.times} times each", flush=True)
        measure(stage, "all is well")
        assert stage.bindonce("bind", "nobody=127.0.0.1:10999").returncode == 0
        measure(stage, "with a listener that nobody serves")

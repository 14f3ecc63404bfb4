#!/usr/bin/env python3
"""What a hostile client costs a good one. While a user without rights, or with a right to bind some ports, does
its worst, a good client pings and claims every 5 ms. How long it waits is compared with

- the same client alone;
- the same client while the same attack is made on another broker, which it does not use: attackers, and a broker that they keep busy,
  take cores from everybody, and so much is the scheduler's share.

In brackets is what is left of a wait without the time for which the client or the broker's thread was ready and had no core, as
the scheduler counts it (/proc/PID/schedstat): that is the broker's own share. It is the same on a busy machine.

    tests/measure/attack.py [--processes 500] [--descriptors 20000] [--seconds 5] [--only PART_OF_A_NAME] [--before BINDONCE]

`--before` names another binary, which is measured first, attack by attack.

Goal: 99 % of the good client's waits at most twice those alone, or those of the control where these are longer, and under 20 ms; the broker
under 16 MiB resident and not more than a few threads. Where only the scheduler's share is longer (the broker's own is at most twice that
alone, or under 0.5 ms) that is said. Prints one line an attack, and exits 1 if a goal is missed.
"""

import argparse
import ctypes
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time

from stage import Stage, binary, isolate, wait_for

NOBODY = 65534
RULES = """
[[rule]]
user = "root"
allow = ["bind", "use", "list", "release", "store", "admin"]
[[rule]]
user = "nobody"
allow = ["bind", "use", "release"]
addresses = ["*:9000-19999"]
"""
OCCUPIED = 9001
LARGE = 9002


class Client:
    def __init__(self, path, timeout=120):
        self.stream = socket.socket(socket.AF_UNIX)
        self.stream.settimeout(timeout)
        self.stream.connect(path)
        self.buffer = b""
        self.descriptors = []

    def send(self, method, params=()):
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
        self.stream.sendall(json.dumps(request).encode() + b"\n")

    def reply(self):
        while b"\n" not in self.buffer:
            data, descriptors, _, _ = socket.recv_fds(self.stream, 1 << 16, 253, socket.MSG_CMSG_CLOEXEC)
            if not data:
                raise EOFError
            self.descriptors += descriptors
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def call(self, method, params=()):
        self.send(method, params)
        return self.reply()

    def bind(self, *listen):
        reply = self.call("bind", [{"listen": text} for text in listen])
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []
        return reply


def at(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))] * 1000


class Good:
    """A process that repeatedly claims a held listener and pings. For each wait it records how long
    the process or the broker's thread had no core: that is the host's doing, not the broker's."""

    def __init__(self, path, broker):
        self.output, written = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                with os.fdopen(written, "w") as file:
                    json.dump(self.run(path, broker), file)
            finally:
                os._exit(0)
        os.close(written)

    def run(self, path, broker):
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "pid", None))
        client, waits = Client(path), []
        books = [os.open(f"/proc/{pid}/task/{pid}/schedstat", os.O_RDONLY) for pid in (os.getpid(), broker)]
        without_core = lambda: sum(int(os.pread(book, 100, 0).split()[1]) for book in books) / 1e9
        while self.pid is not None:
            before, begun = without_core(), time.monotonic()
            client.bind("web")
            client.call("ping")
            wait = time.monotonic() - begun
            waits.append((wait / 2, max(0, wait - without_core() + before) / 2))
            time.sleep(0.005)
        return waits

    def end(self):
        """Returns the waits, and each wait without the time for which there was no core."""
        os.kill(self.pid, signal.SIGTERM)
        with os.fdopen(self.output) as file:
            waits = json.load(file)
        os.waitpid(self.pid, 0)
        return tuple(zip(*waits))


def as_nobody(work):
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
            work()
        except BaseException as error:
            print("   the attacker:", repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    return pid


def for_seconds(attack, path, seconds):
    """Repeats the attack each time the broker, rightly, hangs up or takes no connection."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            attack(path, left)
        except (OSError, EOFError) as error:
            if os.environ.get("BINDONCE_MEASURE_VERBOSE"):
                print("   the attacker:", repr(error), flush=True)


def until(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield


def occupied(connections):
    def attack(path, seconds):
        clients = [Client(path) for _ in range(connections)]
        for client in clients:
            client.send("bind", [{"listen": f"127.0.0.1:{OCCUPIED}"}])
        for number, _ in enumerate(until(seconds)):
            client = clients[number % connections]
            client.reply()
            client.send("bind", [{"listen": f"127.0.0.1:{OCCUPIED}"}])
    return attack


def denied(path, seconds):
    client = Client(path)
    for _ in until(seconds):
        client.call("bind", [{"listen": "127.0.0.1:80"}])


def flood(path, seconds):
    """Sends requests that are denied, as many as one connection carries."""
    stream = Client(path).stream
    for _ in until(seconds):
        stream.sendall(b'{"id":1,"method":"list"}\n' * 100)
        count = 0
        while count < 100:
            count += stream.recv(1 << 16).count(b"\n")


def names(connections):
    def attack(path, seconds):
        clients = [Client(path) for _ in range(connections)]
        for number, _ in enumerate(until(seconds)):
            for index, client in enumerate(clients):
                client.send("bind", [{"address": f"n{number}-{index}.example", "port": 80}])
            for client in clients:
                client.reply()
    return attack


def unfinished(connections):
    part = b'{"jsonrpc":"2.0","id":1,"method":"ping","params":["' + b"x" * 1_048_000

    def attack(path, seconds):
        streams = []
        for _ in range(connections):
            stream = socket.socket(socket.AF_UNIX)
            stream.settimeout(2)
            try:
                stream.connect(path)
                stream.sendall(part)
            except OSError:
                pass
            streams.append(stream)
        time.sleep(seconds)
    return attack


def disconnect(count, again):
    """Claims listeners and ends their LISTEN state, once or repeatedly."""
    def attack(path, seconds):
        client = Client(path)
        many(client, count)
        libc, nobody = ctypes.CDLL(None), struct.pack("HH12x", 0, 0)
        for _ in until(seconds):
            for descriptor in client.descriptors:
                libc.connect(descriptor, nobody, 16)
            if not again:
                time.sleep(seconds)
    return attack


def many(client, count):
    """Binds `count` listeners, and receives all their descriptors."""
    client.send("bind", [{"listen": f"127.0.0.1:9100-{9100 + count - 1}"}])
    reply = client.reply()
    assert "result" in reply, f"not bound: {reply}"
    while len(client.descriptors) < count:
        client.descriptors += socket.recv_fds(client.stream, 1 << 16, 253)[1]


def releasing(path, seconds):
    """Claims as many listeners as it may have, and releases them."""
    client = Client(path)
    for _ in until(seconds):
        many(client, 5000)
        for descriptor in client.descriptors:
            os.close(descriptor)
        client.descriptors = []
        reply = client.call("release", ["127.0.0.1:9100-14099"])
        assert "result" in reply, f"not released: {reply}"


def again(path, seconds):
    """Claims listeners that are held already, on new connections."""
    client = Client(path)
    many(client, 5000)
    for _ in until(seconds):
        other = Client(path)
        many(other, 5000)
        other.stream.close()
        for descriptor in other.descriptors:
            os.close(descriptor)


def requests(path, seconds):
    """Asks for one listener as often as fits into a request, on new connections."""
    Client(path).bind(f"127.0.0.1:{LARGE}")
    text = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "bind", "params": [{"name": "x"}, *[{"listen": f"127.0.0.1:{LARGE}"}] * 34000]})
    assert 1_000_000 < len(text) < 1 << 20
    for _ in until(seconds):
        client = Client(path)
        client.stream.sendall(text.encode())
        assert "error" in client.reply(), "x is held"
        client.stream.close()


def large(method, elements, code):
    """Repeats a request, on new connections, that is refused with this code in the end."""
    text = f'{{"id":1,"method":"{method}","params":[{elements}]}}'.encode()
    assert 900_000 < len(text) < 1 << 20

    def attack(path, seconds):
        holder = Client(path)
        holder.bind(f"127.0.0.1:{LARGE}")
        for _ in until(seconds):
            client = Client(path)
            client.stream.sendall(text)
            reply = client.reply()
            assert reply.get("error", {}).get("code") == code, reply
            client.stream.close()
    return attack


NAMES = ",".join([f'"127.0.0.1:{LARGE}"'] * 55_000)
BROKEN = ",".join([f'{{"listen":"127.0.0.1:{LARGE}"}}'] * 34_000) + ",?"


def leaving(path, seconds):
    """Asks for much and hangs up without reading, on one connection after another."""
    for _ in until(seconds):
        client = Client(path)
        client.send("bind", [{"listen": "127.0.0.1:9100-9599"}])
        client.stream.close()


def connections(path, seconds):
    for _ in until(seconds):
        clients = [Client(path) for _ in range(200)]
        for client in clients:
            client.send("ping")
        for client in clients:
            client.stream.close()


def services(path, seconds):
    """Tries repeatedly to join a service that is not its own."""
    for _ in until(seconds):
        client = Client(path)
        reply = client.call("join", [{"service": "haproxy", "state": "serving", "handover": True}])
        assert "error" in reply, f"a stranger has joined haproxy: {reply}"


ATTACKS = [
    ("an occupied address, 1 connection", occupied(1)),
    ("an occupied address, 20 connections", occupied(20)),
    ("an occupied address, 300 connections", occupied(300)),
    ("an address that it may not have", denied),
    ("a flood of denied requests", flood),
    ("host names, 20 connections", names(20)),
    ("2,000 unfinished requests of 1 MiB", unfinished(2000)),
    ("5,000 listeners disconnected once", disconnect(5000, False)),
    ("20 listeners disconnected all the time", disconnect(20, True)),
    ("requests of 34,000 addresses", requests),
    ("the same, no JSON at the end", large("bind", BROKEN, -32700)),
    ("releases of 55,000 names", large("release", NAMES, -32007)),
    ("an element of 1 MiB", large("bind", '{"listen":"' + "x" * 1_000_000 + '"}', -32602)),
    ("500 listeners asked for, never read", leaving),
    ("5,000 listeners claimed and released", releasing),
    ("5,000 held listeners claimed again", again),
    ("200 connections at a time", connections),
    ("joining a service of root", services),
]


def status(pid, name):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name + ":"))


def crowd(processes, descriptors):
    """Starts idle processes with open files."""
    pids = []
    for _ in range(processes):
        pid = os.fork()
        if pid == 0:
            kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(descriptors // processes)]
            signal.pause()
            os._exit(len(kept) > 0)
        pids.append(pid)
    return pids


def serve(stage, name, program, port):
    """Starts a broker with these rules, which every user can reach."""
    environment = {**stage.environment, "BINDONCE_SOCKET": str(stage.directory / f"{name}.sock")}
    command = [program, "serve", "--config", str(stage.directory / "bindonce.toml"), "--listen", f"web=127.0.0.1:{port}"]
    process = stage.start(name, command, environment=environment)
    path = environment["BINDONCE_SOCKET"]
    ping = [program, "ping"]
    wait_for(name, lambda: subprocess.run(ping, env=environment, capture_output=True).returncode == 0)
    os.chmod(path, 0o666)
    return process, path


def under(attack, path, seconds, broker):
    """Runs an attack; returns the broker's peak memory and threads meanwhile."""
    most, threads = 0, 0
    attacker = as_nobody(lambda: for_seconds(attack, path, seconds))
    while (ended := os.waitpid(attacker, os.WNOHANG))[0] == 0:
        most, threads = max(most, status(broker.pid, "VmRSS")), max(threads, status(broker.pid, "Threads"))
        time.sleep(0.02)
    assert ended[1] == 0, "the attack was not made"
    return most, threads


def measure(name, attack, seconds, program):
    """Prints the line of one attack, and returns its verdict."""
    with Stage(broker=False) as stage:
        (stage.directory / "bindonce.toml").write_text(RULES)
        os.chmod(stage.directory, 0o755)
        broker, path = serve(stage, "broker", program, 8000)
        other, elsewhere = serve(stage, "other", program, 8001)
        good = Good(path, broker.pid)
        time.sleep(min(seconds, 3))
        alone, own_alone = good.end()
        good = Good(path, broker.pid)
        under(attack, elsewhere, seconds, other)
        control, own_control = good.end()
        stage.end(other)
        log = os.path.getsize(stage.directory / "broker.log")
        good = Good(path, broker.pid)
        most, threads = under(attack, path, seconds, broker)
        waits, own = good.end()
        log = os.path.getsize(stage.directory / "broker.log") - log
        shown = ", ".join(f"{when} {at(all, 0.99):6.2f} ({at(ours, 0.99):5.2f}) ms" for when, all, ours in [
            ("alone", alone, own_alone), ("control", control, own_control), ("with it", waits, own)])
        p99 = at(waits, 0.99)
        met = p99 <= max(2 * at(alone, 0.99), at(control, 0.99)) and p99 < 20
        broker_met = at(own, 0.99) <= max(2 * at(own_alone, 0.99), 0.5)
        fits = most < 16 * 1024
        verdict = "MISSED" if not fits or not (met or broker_met) else "met" if met else "met but for the scheduler"
        print(f"{name:38} 99 %: {shown} of {len(waits)}, longest {at(waits, 1):6.1f} ({at(own, 1):5.1f}) ms, "
              f"resident {most:6} KiB, threads {threads:3}, log {log / 1000:6.1f} kB  {verdict}", flush=True)
        return verdict


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=500)
    parser.add_argument("--descriptors", type=int, default=20000)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--before", default="")
    options = parser.parse_args()
    isolate(alone=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind(("127.0.0.1", OCCUPIED))
    taken.listen(5)
    pids = crowd(options.processes, options.descriptors)
    try:
        time.sleep(options.processes / 1000)
        print(f"{len([name for name in os.listdir('/proc') if name.isdigit()])} processes")
        chosen = [(name, attack) for name, attack in ATTACKS if options.only in name]
        met = []
        for name, attack in chosen:
            if options.before:
                measure(f"before: {name}", attack, options.seconds, options.before)
            met.append(measure(name, attack, options.seconds, binary("bindonce")))
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    print(f"{met.count('met')} of {len(met)} met, {met.count('met but for the scheduler')} but for the scheduler, {met.count('MISSED')} missed")
    sys.exit("MISSED" in met)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""What a broker survives.

    tests/measure/durability.py upgrades [--rounds 100]   in place, under claims and connections
    tests/measure/durability.py kills    [--rounds 100]   kill -9 at random moments, holders alive
    tests/measure/durability.py hostile  [--tries 1000]   eleven kinds of bad clients beside a good one

Prints JSON; exits 1 if a promise was broken. BINDONCE_MEASURE_BINARIES names a directory with the
binary; without it, the binary is built. Needs root.
"""

import argparse
import json
import os
import pathlib
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import stage

PORTS = range(8100, 8104)


class Broker:
    """A broker that can be killed and started again on the same path."""

    def __init__(self, directory, *arguments):
        self.path = str(pathlib.Path(directory) / "broker.sock")
        self.arguments = arguments
        self.log = open(pathlib.Path(directory) / "broker.log", "ab")
        self.start()

    def start(self):
        command = [stage.binary("bindonce"), "serve", "--socket", self.path, *self.arguments]
        self.process = subprocess.Popen(command, stderr=self.log)
        stage.wait_for("the broker", self.answers)

    def answers(self):
        try:
            return call(self.path, "ping")
        except OSError:
            return None

    def kill(self):
        self.process.kill()
        self.process.wait()

    def end(self):
        self.process.terminate()
        self.process.wait()


def connect(path, seconds=30):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(seconds)
    client.connect(path)
    return client


def exchange(client, method, params=()):
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
    client.sendall(json.dumps(request).encode())
    text, fds = b"", []
    while not text.endswith(b"\n"):
        data, rights, _, _ = socket.recv_fds(client, 1 << 16, 253)
        if not data:
            raise ConnectionError("closed")
        text += data
        fds += rights
    reply = json.loads(text)
    if "error" in reply:
        for fd in fds:
            os.close(fd)
        raise RuntimeError(reply["error"]["message"])
    return reply["result"], fds


def call(path, method, params=()):
    with connect(path) as client:
        return exchange(client, method, params)[0]


def claim_all(path):
    """Claims every port once; returns the inodes and the descriptors."""
    with connect(path) as client:
        wanted = [{"listen": f"p{port}=127.0.0.1:{port}"} for port in PORTS]
        result, fds = exchange(client, "bind", wanted)
        return [listener["inode"] for listener in result["listeners"]], fds


def duplicates():
    """Our ports with more than one listening socket."""
    lines = pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]
    ports = [int(line.split()[1].split(":")[1], 16) for line in lines if line.split()[3] == "0A"]
    return sorted({port for port in ports if port in PORTS and ports.count(port) > 1})


class Workers:
    """Threads that repeat `work`, and count its outcomes."""

    def __init__(self, count, work):
        self.done, self.failed, self.stop = 0, [], threading.Event()
        self.times = []
        self.threads = [threading.Thread(target=self.run, args=(work,)) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def run(self, work):
        while not self.stop.is_set():
            begun = time.monotonic()
            try:
                work()
                self.done += 1
                self.times.append(time.monotonic() - begun)
            except Exception as error:  # Any error counts as a failure.
                self.failed.append(repr(error))
            time.sleep(0.002)

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join()


def serve(fds, stop):
    """Accepts on the shared sockets, as a proxy would."""
    listeners = [socket.socket(fileno=fd) for fd in fds]

    def accept(listener):
        listener.setblocking(False)
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                time.sleep(0.001)
                continue
            connection.sendall(b"ok")
            connection.close()

    threads = [threading.Thread(target=accept, args=(each,)) for each in listeners]
    for thread in threads:
        thread.start()
    return threads


def visit():
    with socket.create_connection(("127.0.0.1", random.choice(PORTS)), timeout=10) as client:
        if client.recv(2) != b"ok":
            raise ConnectionError("no answer")


def upgrades(directory, rounds):
    broker = Broker(directory)
    inodes, fds = claim_all(broker.path)
    stop = threading.Event()
    acceptors = serve(fds, stop)

    def claim():
        found, got = claim_all(broker.path)
        for fd in got:
            os.close(fd)
        if found != inodes:
            raise RuntimeError("other sockets")

    claims, visits = Workers(20, claim), Workers(20, visit)
    refused, took = [], []
    with connect(broker.path) as idle:
        exchange(idle, "bind", [{"name": f"p{PORTS[0]}"}])
        for _ in range(rounds):
            begun = time.monotonic()
            try:
                result = call(broker.path, "upgrade")
                if result["pid"] != broker.process.pid:
                    refused.append("another pid")
            except (OSError, RuntimeError) as error:
                refused.append(repr(error))
            took.append(time.monotonic() - begun)
        # The connection from before the first upgrade still works and still holds its lease.
        status, _ = exchange(idle, "status")
    claims.end()
    visits.end()
    stop.set()
    for thread in acceptors:
        thread.join()
    broker.end()
    return {
        "upgrades": status["broker"]["upgrades"], "refused": refused[:5],
        "claims": claims.done, "failed_claims": len(claims.failed), "why": claims.failed[:3],
        "connections": visits.done, "failed_connections": len(visits.failed),
        "same_pid": status["broker"]["pid"] == broker.process.pid,
        "upgrade_ms_p50": round(statistics.median(took) * 1000, 1),
        "upgrade_ms_max": round(max(took) * 1000, 1),
        "good": not (refused or claims.failed or visits.failed)
                and status["broker"]["upgrades"] == rounds,
    }


def kills(directory, rounds):
    broker = Broker(directory)
    inodes, fds = claim_all(broker.path)
    stop = threading.Event()
    acceptors = serve(fds, stop)
    visits = Workers(10, visit)
    changed, twice, back = [], [], []

    def disturb():
        """Claims, releases or upgrades, and ignores the outcome."""
        what = random.random()
        try:
            with connect(broker.path, 5) as client:
                if what < 0.1:
                    exchange(client, "upgrade")
                else:
                    name = f"x{random.randrange(8)}"
                    _, got = exchange(client, "bind", [{"listen": f"{name}=127.0.0.1:0"}])
                    for fd in got:
                        os.close(fd)
                    if what < 0.6:
                        exchange(client, "release", [name])
        except (OSError, RuntimeError):
            pass

    noise = Workers(4, disturb)
    for round_ in range(rounds):
        time.sleep(random.random() * 0.05)
        broker.kill()
        begun = time.monotonic()
        broker.start()
        found, got = claim_all(broker.path)
        back.append(time.monotonic() - begun)
        for fd in got:
            os.close(fd)
        if found != inodes:
            changed.append(round_)
        twice += duplicates()
    noise.end()
    visits.end()
    stop.set()
    for thread in acceptors:
        thread.join()
    broker.end()
    return {
        "kills": rounds, "rounds_with_another_socket": changed, "duplicates": twice,
        "connections": visits.done, "failed_connections": len(visits.failed),
        "why": visits.failed[:3],
        "back_ms_p50": round(statistics.median(back) * 1000, 1),
        "back_ms_max": round(max(back) * 1000, 1),
        "good": not (changed or twice or visits.failed),
    }


def resident(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    return 0


def hostile(directory, tries):
    broker = Broker(directory)
    good = b'{"jsonrpc":"2.0","id":1,"method":"bind","params":[{"listen":"p=127.0.0.1:8100"}]}'

    # One connection throughout: the bad clients may use up this user's connections.
    steady = connect(broker.path)

    def claims(count):
        times = []
        for _ in range(count):
            begun = time.monotonic()
            _, got = exchange(steady, "bind", [{"listen": "p=127.0.0.1:8100"}])
            times.append(time.monotonic() - begun)
            for fd in got:
                os.close(fd)
        return times

    def p99(times):
        return sorted(times)[len(times) * 99 // 100] * 1000

    def send(data, fds=(), read=True):
        with connect(broker.path, 5) as client:
            try:
                socket.send_fds(client, [data], list(fds))
                client.shutdown(socket.SHUT_WR)
                while read and client.recv(1 << 16):
                    pass
            except OSError:
                pass

    null = os.open("/dev/null", os.O_RDONLY)
    held = []

    def many():
        """Opens silent connections; beyond the limit they are refused."""
        for _ in range(10):
            try:
                held.append(connect(broker.path, 5))
            except OSError:
                pass

    def one_byte():
        if len(held) < 10_000:
            client = connect(broker.path, 5)
            client.send(b"{")
            held.append(client)

    def unread():
        client = connect(broker.path, 5)
        client.setblocking(False)
        try:
            for _ in range(200):
                client.send(b'{"method":"list"}' * 64)
        except OSError:
            pass
        held.append(client)

    kinds = {
        "garbage": lambda n: send(random.randbytes(2000)),
        "truncated at every byte": lambda n: send(good[:n % len(good)]),
        "too long": lambda n: send(b'{"method":"' + b"x" * (1 << 21), read=False),
        "one byte": lambda n: one_byte(),
        "many connections": lambda n: many(),
        "descriptors sent in": lambda n: send(good, [null] * 200),
        "never reading": lambda n: unread() if n % 20 == 0 else None,
        "deep nesting": lambda n: send(b"[" * 5000),
        "keys twice": lambda n: send(b'{"method":"ping","method":"list","method":"ping"}'),
        "names with NUL and line ends": lambda n: send(
            json.dumps({"method": "bind", "params": [{"listen": "a\0\n=:1"}, {"name": "\n"}]}).encode()),
        "paths with ..": lambda n: send(
            json.dumps({"method": "bind", "params": [{"listen": "/tmp/../../x\0y"}]}).encode()),
    }
    idle = claims(2000)
    descriptors = lambda: len(os.listdir(f"/proc/{broker.process.pid}/fd"))
    before, memory, times = descriptors(), 0, []
    rows = {}
    for name, attack in kinds.items():
        stop = threading.Event()

        def run():
            for n in range(tries):
                attack(n)
            stop.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        of_kind = []
        while not stop.is_set():
            of_kind += claims(20)
            memory = max(memory, resident(broker.process.pid))
        thread.join()
        for client in held:
            client.close()
        held.clear()
        rows[name] = round(p99(of_kind or claims(20)), 2)
        times += of_kind
    after = stage.wait_for("descriptors to return", lambda: descriptors() <= before and descriptors())
    alive = broker.process.poll() is None
    broker.end()
    os.close(null)
    worst = p99(times)
    return {
        "claim_ms_p99_idle": round(p99(idle), 2), "claim_ms_p99": round(worst, 2),
        "ratio": round(worst / p99(idle), 1), "claim_ms_p99_by_kind": rows,
        "resident_kib": memory, "descriptors": [before, after], "alive": alive,
        "good": alive and worst < 5 and memory < 16 * 1024,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["upgrades", "kills", "hostile"])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--tries", type=int, default=1000)
    arguments = parser.parse_args()
    stage.isolate()
    with tempfile.TemporaryDirectory() as directory:
        if arguments.what == "upgrades":
            result = upgrades(directory, arguments.rounds)
        elif arguments.what == "kills":
            result = kills(directory, arguments.rounds)
        else:
            result = hostile(directory, arguments.tries)
    print(json.dumps(result, indent=2))
    sys.exit(0 if result["good"] else 1)


if __name__ == "__main__":
    main()

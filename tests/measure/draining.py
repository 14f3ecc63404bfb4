#!/usr/bin/env python3
"""What older generations still answer after `reload` has returned, and whether a request is cut: clients that keep their
connections, over HTTP/1 and HTTP/2, and tunnels, over reloads in a row, without and with --drain-idle.

    tests/measure/draining.py [--reloads 50] [--rate 2] [--idle 1s] [--only VERSION]
    tests/measure/draining.py --races       # without `idle-close-on-response`, and plain haproxy (-W, SIGUSR2) beside

An HTTP/1 client opens a new connection if the old one was closed before it asked. An HTTP/2 client
heeds GOAWAY: it finishes and reconnects; with --stubborn it stays as long as it may. An HTTP/1
request that meets the close of its idle connection is not cut if no byte of an answer had come: no
process has read it, so the client may ask again (RFC 9110, section 9.2.2), and does. These races
are counted, with the error that the client saw, and haproxy's own counters: it counts no request
without an answer.
"""

import argparse
import contextlib
import json
import signal
import socket
import struct
import threading
import time

from stage import Stage, ask, config, haproxies, isolate, wait_for

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--reloads", type=int, default=50)
parser.add_argument("--rate", type=float, default=2, help="reloads a second")
parser.add_argument("--idle", default="1s", help="--drain-idle of the second run")
parser.add_argument("--only", default="", help="only versions that begin with this")
parser.add_argument("--races", action="store_true", help="requests that meet the close of an idle connection")
parser.add_argument("--pause", type=float, help="seconds between two requests of a client (0.05; with --races 0.005)")
parser.add_argument("--stubborn", action="store_true", help="clients of HTTP/2 do not heed GOAWAY")
arguments = parser.parse_args()
arguments.pause = arguments.pause or (0.005 if arguments.races else 0.05)
isolate()

PORT, TUNNEL, ECHO = 8080, 8081, 8082
KEEP = "    option idle-close-on-response\n"
TUNNEL_TOO = (f"listen tunnel\n    mode tcp\n    bind 127.0.0.1:{TUNNEL}\n"
         f"    server echo 127.0.0.1:{ECHO}\n")


def frame(kind, flags, stream, payload=b""):
    """A frame of HTTP/2 (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


# :method GET, :scheme http, :path / (RFC 7541, indexed), :authority x (a literal without indexing).
HEADERS = bytes([0x82, 0x86, 0x84, 0x01, 1]) + b"x"


class Client(threading.Thread):
    """Asks repeatedly, with pauses, until `over` is set."""

    def __init__(self, counts, over):
        super().__init__(daemon=True)
        self.counts, self.over, self.stream, self.asked = counts, over, None, 0

    def count(self, what):
        with self.counts["lock"]:
            self.counts[what] = self.counts.get(what, 0) + 1

    def run(self):
        number = 0
        while not self.over.is_set():
            number += 1
            try:
                self.ask()
                self.asked += 1
                self.count("answered")
            except (OSError, EOFError) as error:
                self.failed(error)
            # A client is mostly idle for less than --drain-idle, and sometimes for longer.
            time.sleep(2.5 if number % 20 == 0 and not arguments.races else arguments.pause)

    def failed(self, error):
        self.stream = None
        self.count("cut: " + (str(error) or type(error).__name__))

    def connect(self, port=PORT):
        self.stream, self.asked = socket.create_connection(("127.0.0.1", port), 10), 0

    def closed(self):
        """Whether the connection was closed while idle: then the client reconnects."""
        self.stream.setblocking(False)
        try:
            return self.stream.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self.stream.settimeout(10)

    def read(self, enough):
        answer = b""
        while not enough(answer):
            some = self.stream.recv(4096)
            if not some:
                raise EOFError("closed in the middle of an answer" if answer else "closed before an answer")
            answer += some
        return answer


class Http1(Client):
    def failed(self, error):
        before = isinstance(error, (ConnectionResetError, BrokenPipeError)) or "before" in str(error)
        if self.stream is None or not before or self.asked == 0:
            return super().failed(error)
        # The connection was idle, and was closed before any byte of an answer.
        self.stream = None
        self.count("race: " + str(error))
        try:
            self.ask()
            self.count("answered")
        except (OSError, EOFError) as again:
            super().failed(again)

    def ask(self):
        if self.stream is None or self.closed():
            self.connect()
        self.stream.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = self.read(lambda text: text.endswith(b"\r\n\r\nok"))
        if b"\r\nconnection: close" in answer.lower():
            self.stream = None


class Http2(Client):
    def ask(self):
        if self.stream is None or self.told_to_go():
            self.connect()
            self.next = 1
            self.stream.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0) + frame(4, 1, 0))
        self.stream.sendall(frame(1, 5, self.next, HEADERS))
        self.left = self.read(self.is_over)
        self.next += 2

    def told_to_go(self):
        if self.closed():
            return True
        self.stream.setblocking(False)
        try:
            waiting = self.stream.recv(65536, socket.MSG_PEEK)
        except OSError:
            waiting = b""
        self.stream.settimeout(10)
        goes = any(kind == 7 for kind, *_ in self.frames(waiting)) or any(kind == 7 for kind, *_ in self.frames(self.left))
        return goes and not arguments.stubborn

    def frames(self, data):
        while len(data) >= 9:
            length = int.from_bytes(data[:3], "big")
            if len(data) < 9 + length:
                return
            yield data[3], data[4], int.from_bytes(data[5:9], "big")
            data = data[9 + length:]

    def is_over(self, data):
        return any(stream == self.next and flags & 1 and kind in (0, 1) for kind, flags, stream in self.frames(data))


class Tunnel(Client):
    def ask(self):
        if self.stream is None:
            self.connect(TUNNEL)
        self.stream.sendall(b"hello")
        self.read(lambda text: len(text) >= 5)


def echo():
    listener = socket.create_server(("127.0.0.1", ECHO), backlog=64)

    def serve(client):
        with contextlib.suppress(OSError):
            while some := client.recv(4096):
                client.sendall(some)

    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


def clients(counts, over):
    """Starts the clients: 20 over HTTP/1, 20 over HTTP/2, 5 tunnels; with --races, only HTTP/1."""
    wanted = ((Http1, 20),) if arguments.races else ((Http1, 20), (Http2, 20), (Tunnel, 5))
    all_of_them = [kind(counts, over) for kind, many in wanted for _ in range(many)]
    for client in all_of_them:
        client.start()
    return all_of_them


def end(all_of_them, over):
    over.set()
    for client in all_of_them:
        client.join(15)


def kinds(counts, what):
    """The counts whose names begin with `what`; 0 if there are none."""
    return {name.removeprefix(what): count for name, count in counts.items() if name.startswith(what)} or 0


def measure(haproxy, options, extra):
    with Stage() as stage:
        stage.file.write_text(config(1, extra=extra))
        stage.run(haproxy, *options)
        counts, over = {"lock": threading.Lock()}, threading.Event()
        asking = clients(counts, over)
        times, failed, _ = stage.reloads(arguments.reloads, arguments.rate, lambda tag: config(tag, extra=extra))
        time.sleep(3)
        status = json.loads(stage.bindonce("status", "--json").stdout)["supervisors"][0]
        end(asking, over)
        left = [one for one in status["generations"] if one["state"] == "draining"]
        print(f"    {len(times)} reloads, {len(failed)} failed; {counts['answered']:,} requests answered, cut: {kinds(counts, 'cut: ')}")
        print(f"    requests that met the close of an idle connection (HTTP/1): {kinds(counts, 'race: ')}")
        print(f"    requests to older generations after reload had returned: {status['requests_after']:,}; idle connections "
              f"closed: {status['idle_closed']}, connections cut: {status['connections_cut']}")
        print(f"    generations that still drain: {len(left)}, with {sum(one['connections'] for one in left)} connections", flush=True)


def plain(haproxy, extra):
    """The same with haproxy's own reload: SIGUSR2 to its master."""
    with Stage(broker=False) as stage:
        stage.file.write_text(config(1, extra=extra))
        master = stage.start("haproxy", [haproxy, "-W", "-f", str(stage.file)])
        wait_for("haproxy", lambda: ask()[1] == "1")
        counts, over = {"lock": threading.Lock()}, threading.Event()
        asking = clients(counts, over)
        late = 0
        for number in range(arguments.reloads):
            # A signal that arrives while the master re-executes itself is lost.
            time.sleep(1 / arguments.rate)
            stage.file.write_text(config(number + 2, extra=extra))
            master.send_signal(signal.SIGUSR2)
            late += not eventually(lambda: ask()[1] == str(number + 2))
        time.sleep(3)
        end(asking, over)
        print(f"    {arguments.reloads} reloads, {late} of them not seen within 5 s; {counts['answered']:,} requests answered, cut: {kinds(counts, 'cut: ')}")
        print(f"    requests that met the close of an idle connection (HTTP/1): {kinds(counts, 'race: ')}", flush=True)


def eventually(probe):
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if probe():
            return True
        time.sleep(0.01)
    return False


threading.Thread(target=echo, daemon=True).start()
many = ["--max-draining", "100"]
for version, haproxy in haproxies(arguments.only):
    ways = [("without --drain-idle", many), (f"--drain-idle {arguments.idle}", ["--drain-idle", arguments.idle, *many])]
    if not arguments.races:
        for name, options in ways:
            print(f"haproxy {version}, {name}", flush=True)
            measure(haproxy, options, KEEP + TUNNEL_TOO)
        continue
    for option, extra in (("its own soft stop", TUNNEL_TOO), ("idle-close-on-response", KEEP + TUNNEL_TOO)):
        print(f"haproxy {version}, {option}, plain haproxy", flush=True)
        plain(haproxy, extra)
        print(f"haproxy {version}, {option}, bindonce", flush=True)
        measure(haproxy, many, extra)

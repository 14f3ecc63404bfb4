#!/usr/bin/env python3
"""Reloads in a row under load, with one configuration that has every kind of listener at once: both wildcards of a
port, an idle defer-accept bind, an idle interface bind, a UNIX bind, an abstract one, an admin socket on TCP, a local
peer, and a condition on a variable that haproxy sets by itself.

    tests/measure/mixture.py [--count 200] [--rate 5] [--clients 20] [--only VERSION]

One client is on the UNIX bind, one on the abstract one, and half of the others on each wildcard. An
answer is stale if a newer configuration answered before its connection began.
"""

import socket
import subprocess
import threading
import time

from stage import PORT, Stage, haproxies, isolate, ms, reloading, spread, told

arguments = reloading(__doc__)
isolate()

DEFER, INTERFACE, ADMIN, PEER, BRANCH, NO_BRANCH = range(PORT + 1, PORT + 7)
ABSTRACT = "bindonce-mixture"


def config(tag, path):
    return f"""global
    maxconn 1000
    localpeer here
    stats socket 127.0.0.1:{ADMIN} level admin
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
peers group
    peer here 127.0.0.1:{PEER}
    peer away 127.0.0.1:1
frontend web
    bind *:{PORT}
    bind [::]:{PORT}
    bind {path}
    bind abns@{ABSTRACT}
    http-request return status 200 content-type text/plain hdr x-generation {tag} string ok
frontend idle
    bind 127.0.0.1:{DEFER} defer-accept
    bind 127.0.0.1:{INTERFACE} interface lo
.if defined(HAPROXY_BRANCH)
    bind 127.0.0.1:{BRANCH}
.else
    bind 127.0.0.1:{NO_BRANCH}
.endif
    http-request return status 200 content-type text/plain hdr x-generation {tag} string ok
"""


class UnixClient(threading.Thread):
    """Asks on a UNIX socket repeatedly, and counts each answer."""

    newest = 0
    lock = threading.Lock()

    def __init__(self, address):
        super().__init__(daemon=True)
        self.address, self.over = address, threading.Event()
        self.answers, self.stale, self.failures, self.longest = 0, 0, [], 0
        self.start()

    def run(self):
        while not self.over.is_set():
            with self.lock:
                newest = UnixClient.newest
            begun = time.monotonic()
            try:
                tag = self.ask()
            except (OSError, ValueError) as error:
                self.failures.append(str(error) or type(error).__name__)
                continue
            self.longest = max(self.longest, time.monotonic() - begun)
            self.answers += 1
            self.stale += tag < newest
            with self.lock:
                UnixClient.newest = max(UnixClient.newest, tag)

    def ask(self):
        answer = b""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(self.address)
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while part := client.recv(4096):
                answer += part
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise ValueError(f"it is answered {answer[:40]!r}")
        return int(answer.lower().split(b"x-generation: ")[1].split(b"\r\n")[0])

    def end(self):
        self.over.set()
        self.join(20)


def listening(port):
    said = subprocess.run(["ss", "-Hltn", f"sport = :{port}"], capture_output=True, text=True, check=True).stdout
    return len(said.splitlines())


def idle_answer(port):
    """Whether an idle listener still answers."""
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return client.recv(4096).startswith(b"HTTP/1.1 200 ")


for version, haproxy in haproxies(arguments.only):
    with Stage() as stage:
        path = stage.directory / "web.sock"
        stage.file.write_text(config(1, path))
        stage.run(haproxy)
        each = (arguments.clients - 2) // 2
        loads = {f"{host}:{PORT}": stage.load(each, target=f"{host}:{PORT}") for host in ("127.0.0.1", "[::1]")}
        UnixClient.newest = 0
        others = {str(path): UnixClient(str(path)), f"abns@{ABSTRACT}": UnixClient("\0" + ABSTRACT.ljust(107, "\0"))}
        times, failed, took = stage.reloads(arguments.count, arguments.rate, lambda tag: config(tag, path))
        for client in others.values():
            client.end()
        reports = {where: stage.report(load) for where, load in loads.items()}
        wrong = len(failed)
        print(f"haproxy {version}: {arguments.count} reloads in {took:.1f} s under {arguments.clients} clients, "
              f"{len(failed)} of them failed; `bindonce reload` took: {spread(times)}")
        for where, report in reports.items():
            wrong += report["failed"] + report["stale"]
            print(f"  {where}: {told(report)}")
        for where, client in others.items():
            wrong += len(client.failures) + client.stale
            print(f"  {where}: {client.answers:,} connections: {len(client.failures)} failed, {client.stale} stale; "
                  f"longest wait for an answer {ms(client.longest)} {client.failures[:3] or ''}")
        branch = {port: listening(port) for port in (BRANCH, NO_BRANCH)}
        print(f"  idle listeners that answer at the end: {sum(map(idle_answer, (DEFER, INTERFACE)))} of 2; "
              f"sockets of each branch of the condition: {branch[BRANCH]} and {branch[NO_BRANCH]}")
        for said in failed[:3]:
            print(f"  a failed reload said: {said}")
        longest = max([report["answer"]["max_ms"] / 1000 for report in reports.values()]
                      + [client.longest for client in others.values()])
        print(f"  in all: {wrong} failed or stale, longest pause of an answer {ms(longest)}", flush=True)

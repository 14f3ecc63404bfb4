#!/usr/bin/env python3
"""HTTP/3 through reloads: clients that open a new connection for each request, and clients that hold one; under bindonce, with
no reloads, and with plain haproxy reloaded by -sf. With --lost instead: reloads in which one or two
processes miss their SIGUSR1; how many new connections the newest configuration does not answer, and
what `bindonce doctor` says.

    python3 -m venv DIR && DIR/bin/pip install aioquic
    DIR/bin/python tests/measure/http3.py [--reloads 100] [--rate 2] [--new 10] [--held 4] [--only VERSION]
    DIR/bin/python tests/measure/http3.py --lost [--connections 60] [--only VERSION]
"""

import argparse
import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
import time

try:
    from aioquic.asyncio import connect
    from aioquic.asyncio.protocol import QuicConnectionProtocol
    from aioquic.h3.connection import H3Connection
    from aioquic.h3.events import HeadersReceived
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.events import ConnectionTerminated
except ImportError:
    sys.exit(f"skipped: {sys.executable} has no aioquic (python3 -m venv DIR && DIR/bin/pip install aioquic, then run this by "
             "DIR/bin/python)")

from stage import PORT, Stage, ask, config, haproxies, isolate, ms, wait_for

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--reloads", type=int, default=100)
parser.add_argument("--rate", type=float, default=2)
parser.add_argument("--new", type=int, default=10)
parser.add_argument("--held", type=int, default=4)
parser.add_argument("--only", default="", help="only versions that begin with this")
parser.add_argument("--lost", action="store_true", help="signals that are lost")
parser.add_argument("--connections", type=int, default=60, help="after each case of --lost")
parser.add_argument("--load", type=int, help=argparse.SUPPRESS)
arguments = parser.parse_args()
# Longer than anything that goes well takes: a lost Initial is resent after 0.2, 0.6 and 1.4 s.
PATIENCE = 10


class Client(QuicConnectionProtocol):
    """Sends one request after another on one connection."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http, self.waits = H3Connection(self._quic), {}

    def quic_event_received(self, event):
        if isinstance(event, ConnectionTerminated):
            for waits in self.waits.values():
                if not waits.done():
                    waits.set_exception(ConnectionError(f"{event.error_code:#x} {event.reason_phrase}"))
        for part in self.http.handle_event(event):
            waits = self.waits.get(part.stream_id) if isinstance(part, HeadersReceived) else None
            if waits and not waits.done():
                waits.set_result(int(dict(part.headers)[b"x-generation"]))

    async def get(self):
        """The generation that answers."""
        stream = self._quic.get_next_available_stream_id()
        answer = self.waits[stream] = asyncio.get_running_loop().create_future()
        headers = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", b"/")]
        self.http.send_headers(stream, headers, end_stream=True)
        self.transmit()
        return await answer


def opened():
    configuration = QuicConfiguration(alpn_protocols=["h3"], is_client=True, verify_mode=ssl.CERT_NONE)
    return connect("127.0.0.1", PORT, configuration=configuration, create_protocol=Client, wait_connected=True)


async def over_tcp():
    """The generation that answers over TCP, as to a client that is told of HTTP/3 by it; 0 if none does."""
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
            writer.write(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            text = (await reader.read()).decode(errors="replace").lower()
            writer.close()
            return int(text.partition("x-generation: ")[2].partition("\r")[0] or 0)
    except (OSError, TimeoutError):
        return 0


async def new(report, until):
    """A connection for each request, after one over TCP."""
    while time.monotonic() < until():
        told = await over_tcp()
        begun = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE):
                async with opened() as client:
                    answer = await client.get()
                    report["new"].append((begun, time.monotonic() - begun, answer))
                    report["older"] += answer < told
        except Exception as error:  # any error: the connection was lost
            report["lost"].append(f"{type(error).__name__} {error}")


async def held(report, until):
    """One connection until it ends: a generation that stops closes those that are idle."""
    while time.monotonic() < until():
        answered = False
        try:
            async with opened() as client:
                report["connections"] += 1
                while time.monotonic() < until():
                    async with asyncio.timeout(PATIENCE):
                        await client.get()
                    answered = True
                    report["requests"] += 1
                    await asyncio.sleep(0.05)
        except Exception:  # a connection that has ended between two requests, or before the first
            report["ended" if answered else "refused"] += 1


async def load(seconds):
    report = {"new": [], "lost": [], "older": 0, "connections": 0, "requests": 0, "ended": 0, "refused": 0}
    end = time.monotonic() + seconds
    clients = [new(report, lambda: end) for _ in range(arguments.new)] + [held(report, lambda: end) for _ in range(arguments.held)]
    await asyncio.gather(*clients)
    print(json.dumps(report))


if arguments.load:
    asyncio.run(load(arguments.load))
    sys.exit()
isolate(alone=arguments.lost)
# One reload a second; the generations in CASES miss their first SIGUSR1.
GENERATIONS = 6
CASES = {"one signal lost": [2], "two signals lost": [2, 3]}


def text(tag, stage):
    pem = stage.directory / "site.pem"
    line = f"frontend web\n    bind quic4@127.0.0.1:{PORT} ssl crt {pem} alpn h3\n"
    return config(tag).replace("frontend web\n", line).replace("global\n", "global\n    limited-quic\n", 1)


def measure(stage, name, reload):
    """Runs the load, with reloads if `reload` is given, and prints the result."""
    seconds = arguments.reloads / arguments.rate
    command = [sys.executable, __file__, "--load", str(int(seconds) + 2), "--new", str(arguments.new), "--held", str(arguments.held)]
    clients = stage.start("clients", command, stdout=subprocess.PIPE, text=True)
    returned = []
    begun = time.monotonic() + 1
    for number in range(arguments.reloads if reload else 0):
        time.sleep(max(0, begun + number / arguments.rate - time.monotonic()))
        stage.file.write_text(text(number + 2, stage))
        reload()
        returned.append((time.monotonic(), number + 2))
    report = json.loads(clients.communicate(timeout=seconds + 60)[0])
    stale = 0
    for at, _, generation in report["new"]:
        done = [number for moment, number in returned if moment < at]
        stale += bool(done) and generation < done[-1]
    for reason in sorted(set(report["lost"])):
        print(f"    lost: {report['lost'].count(reason)} x {reason}", flush=True)
    took = sorted(seconds for _, seconds, _ in report["new"])
    p999 = took[len(took) * 999 // 1000]
    quiet.setdefault(stage.haproxy, p999)
    print(f"  {name}: {len(returned)} reloads, {len(took) + len(report['lost']):,} new connections, {len(report['lost'])} lost, {stale} stale "
          f"after reload had returned, {report['older']} by an older one than TCP before; median {ms(took[len(took) // 2])}, 99.9 % within {ms(p999)} ({p999 / quiet[stage.haproxy]:.2f} of no reloads), longest "
          f"{ms(took[-1])}; {report['requests']:,} requests on held connections, {report['ended']} of which were ended and "
          f"{report['refused']} refused", flush=True)


async def answers():
    """The generations that answer new connections, one after another; None for each lost one."""
    found = []
    for _ in range(arguments.connections):
        try:
            async with asyncio.timeout(PATIENCE):
                async with opened() as client:
                    found.append(await client.get())
        except Exception:  # any error: the connection was lost
            found.append(None)
    return found


def lost(haproxy, name, deaf, plain):
    """The seed case (seed.py) on UDP."""
    with Stage(broker=not plain) as stage:
        program = stage.with_faults(haproxy, dict.fromkeys(deaf, f"deaf:{int(signal.SIGUSR1)}:1"))
        (stage.directory / "site.pem").write_text(pem)
        older = None
        for number in range(1, GENERATIONS + 1):
            due = time.monotonic() + 1
            stage.file.write_text(text(number, stage))
            if plain:
                told = ["-sf", str(older.pid)] if older else []
                command = ["env", f"BINDONCE_GENERATION={number}", program, "-db", "-f", stage.file, *told]
                older = stage.start("haproxy", command)
            elif number == 1:
                stage.run(program)
            else:
                code, said, _ = stage.reload()
                if code != 0:
                    sys.exit(said)
            wait_for(f"configuration {number} to answer", lambda: ask()[1] == str(number))
            time.sleep(max(0, due - time.monotonic()))
        found = asyncio.run(answers())
        _, report = stage.doctor()
        said = [f"{one['kind']}: {one['summary']}" for one in report["findings"] if one["severity"] != "note"]
        stale = sum(one not in (GENERATIONS, None) for one in found)
        print(f"  {'plain haproxy' if plain else 'bindonce'}, {name}: {stale} of {len(found)} new connections answered stale, "
              f"{found.count(None)} lost; doctor: {'; '.join(said) or 'healthy'}", flush=True)


quiet = {}
for version, haproxy in haproxies(arguments.only):
    if "+QUIC" not in subprocess.run([haproxy, "-vv"], capture_output=True, text=True).stdout:
        print(f"haproxy {version}: has no QUIC")
        continue
    print(f"haproxy {version}", flush=True)
    pem = open(os.path.join(os.path.dirname(__file__), "../harness/test.pem"), encoding="ascii").read()
    if arguments.lost:
        for plain in (True, False):
            for name, deaf in CASES.items():
                lost(haproxy, name, deaf, plain)
        continue
    for name in ("no reloads", "bindonce", "plain haproxy"):
        with Stage(broker=name != "plain haproxy") as stage:
            stage.haproxy = haproxy
            (stage.directory / "site.pem").write_text(pem)
            stage.file.write_text(text(1, stage))
            if name != "plain haproxy":
                stage.run(haproxy)

                def reload():
                    code, said, _ = stage.reload()
                    if code != 0:
                        sys.exit(said)
                measure(stage, name, reload if name == "bindonce" else None)
                continue
            running = []

            def start():
                old = [str(running[-1].pid)] if running else []
                command = [haproxy, "-db", "-f", str(stage.file), *(["-sf", *old] if old else [])]
                running.append(stage.start("haproxy", command))

            def soft_stopped():
                """As `systemctl reload` does; returns when the old one has stopped its proxy."""
                start()
                wait_for("the old one to stop", lambda: "Proxy web stopped" in stage.said("haproxy")[seen[0]:])
                seen[0] = len(stage.said("haproxy"))
            seen = [0]
            start()
            time.sleep(1)  # until it listens; only the load needs it
            measure(stage, name, soft_stopped)

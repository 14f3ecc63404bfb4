#!/usr/bin/env python3
"""Whether a counter over reloads is what was counted: requests of clients that keep their connections for a while, over reloads in
a row, and then the supervisor's metrics of the frontend compared with the clients' own count.

    tests/measure/counters.py [--reloads 100] [--rate 2] [--clients 20] [--only VERSION]

A handover may connect to see that no process accepts; haproxy counts that as a session and as a bad
request (4xx). So only answers (2xx) are compared; sessions and bad requests are printed beside.
"""

import argparse
import socket
import threading
import time

from stage import PORT, Stage, config, haproxies, isolate, spread, wait_for

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--reloads", type=int, default=100)
parser.add_argument("--rate", type=float, default=2, help="reloads a second")
parser.add_argument("--clients", type=int, default=20)
parser.add_argument("--pause", type=float, default=0.01, help="seconds between two requests of a client")
parser.add_argument("--only", default="", help="only versions that begin with this")
parser.add_argument("--stats-file", action="store_true", help="with a stats-file (3.0 and later)")
arguments = parser.parse_args()
isolate()


class Client(threading.Thread):
    """Asks up to 50 times on each connection, and reconnects if it was closed before a request."""

    def __init__(self, over):
        super().__init__(daemon=True)
        self.over, self.answered, self.failed, self.connections = over, 0, [], 0

    def run(self):
        stream, asked = None, 0
        while not self.over.is_set():
            try:
                if stream is None or asked == 50 or self.closed(stream):
                    if stream:
                        stream.close()
                    stream, asked = socket.create_connection(("127.0.0.1", PORT), 10), 0
                    self.connections += 1
                stream.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = b""
                while not answer.endswith(b"\r\n\r\nok"):
                    some = stream.recv(4096)
                    if not some:
                        raise EOFError("closed")
                    answer += some
                asked += 1
                self.answered += 1
                if b"\r\nconnection: close" in answer.lower():
                    stream.close()
                    stream = None
            except (OSError, EOFError) as error:
                self.failed.append(str(error))
                stream = None
            time.sleep(arguments.pause)

    @staticmethod
    def closed(stream):
        stream.setblocking(False)
        try:
            return stream.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            stream.settimeout(10)


def page(stage):
    """{name, or name:code: value} of haproxy's frontend."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(metrics(stage)))
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        text = b""
        while not text.endswith(b"# EOF\n") and (some := client.recv(1 << 16)):
            text += some
    found = {}
    for line in text.decode().splitlines():
        if line.startswith("haproxy_frontend_"):
            name, value = line.rsplit(" ", 1)
            found[name.split("{")[0] + (":" + name.split('code="')[1].split('"')[0] if 'code="' in name else "")] = int(value)
    return found


def metrics(stage):
    return next(stage.directory.glob("**/haproxy.d/metrics.sock"))


def measure(haproxy):
    with Stage() as stage:
        named = f"    stats-file {stage.directory}/counters\n" if arguments.stats_file else ""

        def text(tag):
            whole = config(tag).replace("global\n", "global\n" + named, 1)
            return whole.replace("frontend web\n", "frontend web\n    guid web\n", 1) if named else whole

        stage.file.write_text(text(1))
        stage.run(haproxy, "--max-draining", "100")
        wait_for("metrics", lambda: list(stage.directory.glob("**/haproxy.d/metrics.sock")))
        over = threading.Event()
        clients = [Client(over) for _ in range(arguments.clients)]
        for client in clients:
            client.start()
        fell = []
        before = {}

        def look():
            now = page(stage)
            fell.extend(name for name, value in before.items() if "_current_" not in name and "_limit_" not in name and now.get(name, 0) < value)
            before.clear()
            before.update(now)

        times, failed, _ = stage.reloads(arguments.reloads, arguments.rate, text, look)
        over.set()
        for client in clients:
            client.join(15)
        answered = sum(client.answered for client in clients)
        connections = sum(client.connections for client in clients)
        cut = [text for client in clients for text in client.failed]
        # Draining generations are gone, or were asked after their last answer.
        deadline = time.monotonic() + 10
        while (now := page(stage))["haproxy_frontend_http_responses_total:2xx"] != answered and time.monotonic() < deadline:
            time.sleep(0.2)
        counted = now["haproxy_frontend_http_responses_total:2xx"]
        print(f"    {len(times)} reloads, {len(failed)} failed (a reload: {spread(times)}); requests that failed: {cut or 0}")
        print(f"    the clients count {answered:,} answers, the metrics {counted:,}: difference {counted - answered}; scrapes that told less "
              f"than one before: {len(fell)} {sorted(set(fell)) or ''}")
        bad = now["haproxy_frontend_http_responses_total:4xx"]
        print(f"    besides: {connections:,} connections of clients, {now['haproxy_frontend_connections_total']:,} counted; {bad:,} bad requests "
              f"(connections of handovers); requests beyond answers and these: {now['haproxy_frontend_http_requests_total'] - counted - bad}", flush=True)


for version, haproxy in haproxies(arguments.only):
    if arguments.stats_file and version.startswith("2"):
        continue
    print(f"haproxy {version}{', with a stats-file' if arguments.stats_file else ''}", flush=True)
    measure(haproxy)

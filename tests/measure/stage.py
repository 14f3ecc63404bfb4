"""The common base of the measurements: their own network namespace and directory, the release
binaries, a broker, haproxy under a supervisor, load.

Every process started here is ended here, by its pid.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PORT = 8080
# A directory with bindonce and bindonce-load; without one, they are built.
BINARIES = os.environ.get("BINDONCE_MEASURE_BINARIES")


def isolate(alone=False):
    """Starts this script again in its own network namespace, where every port is free and nothing
    else is reachable; with `alone`, also in its own pid namespace, without other processes."""
    if os.environ.get("BINDONCE_MEASURE") == "isolated":
        # Without a handler, the first process of a pid namespace would ignore SIGTERM, and any
        # other would leave its children behind.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return
    if os.geteuid() != 0:
        sys.exit("needs root, for a network namespace of its own")
    if not BINARIES:
        packages = ["--package", "bindonce-cli", "--package", "bindonce-load"]
        subprocess.run(["cargo", "build", "--quiet", "--release", *packages], cwd=ROOT, check=True)
    os.environ["BINDONCE_MEASURE"] = "isolated"
    more = ["--pid", "--fork", "--kill-child", "--mount-proc"] if alone else []
    os.execvp("unshare", ["unshare", "--net", *more, sys.executable, *sys.argv])


def binary(name):
    return str(pathlib.Path(BINARIES or ROOT / "target/release") / name)


def haproxies(only=""):
    """(version, path) of the system's haproxy and of those that tests/haproxies fetched, if the
    version begins with `only`."""
    found = [shutil.which("haproxy", path=os.environ["PATH"] + ":/usr/sbin")]
    found += sorted(str(path) for path in (ROOT / "target/haproxies").glob("*/haproxy"))
    for path in filter(None, found):
        first = subprocess.run([path, "-v"], capture_output=True, text=True).stdout.split()
        version = first[2].split("-")[0]
        if version.startswith(only):
            yield version, path


def reloading(description):
    """Parses the command line of a measurement of reloads in a row."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rate", type=float, default=5)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--only", default="", help="only versions that begin with this")
    return parser.parse_args()


def config(tag, listeners=(PORT,), extra="", threads=0, hosts=()):
    """A frontend that answers by itself and names its configuration; with `hosts`, only to these
    hosts, and 503 to others."""
    known = f" if {{ hdr(host) {' '.join(hosts)} }}" if hosts else ""
    threads = f"    nbthread {threads}\n" if threads else ""
    binds = "".join(f"    bind 127.0.0.1:{port}\n" for port in listeners)
    return (
        "global\n    maxconn 1000\n" + threads + "defaults\n    mode http\n    timeout connect 5s\n"
        "    timeout client 30s\n    timeout server 30s\nfrontend web\n" + binds +
        "    http-request return status 200 content-type text/plain "
        f"hdr x-generation {tag} string ok{known}\n{extra}")


def wait_for(what, probe, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = probe()
        if found:
            return found
        time.sleep(0.005)
    raise SystemExit(f"waited {seconds} s in vain: {what}")


def listening(port=PORT):
    """The inodes of the sockets that listen on the port, as ss shows them."""
    shown = subprocess.run(["ss", "-Hltne", f"sport = :{port}"], capture_output=True, text=True, check=True)
    return [word[4:] for line in shown.stdout.splitlines() for word in line.split() if word.startswith("ino:")]


def ms(seconds):
    return f"{seconds * 1000:.1f} ms"


def spread(values):
    values = sorted(values)
    p99 = values[min(len(values) - 1, int(len(values) * 0.99))]
    return f"median {ms(statistics.median(values))}, 99 % {ms(p99)}, longest {ms(values[-1])}"


def unblock():
    """Between fork and exec: unblocks the signal that only a measurement waits for."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})


class Stage(contextlib.ExitStack):
    """A directory, perhaps a broker, and perhaps haproxy."""

    def __init__(self, broker=True):
        super().__init__()
        self.with_broker = broker

    def __enter__(self):
        super().__enter__()
        self.directory = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory(prefix="bindonce-")))
        self.socket = self.directory / "broker.sock"
        self.file = self.directory / "haproxy.cfg"
        self.environment = {**os.environ, "BINDONCE_SOCKET": str(self.socket)}
        if self.with_broker:
            self.broker = self.start("broker", [binary("bindonce"), "serve"])
            wait_for("the broker", lambda: self.bindonce("list").returncode == 0)
        return self

    def start(self, name, command, environment=None, **options):
        log = self.enter_context(open(self.directory / f"{name}.log", "ab"))
        options.setdefault("stdout", log)
        process = subprocess.Popen(command, stderr=log, env=environment or self.environment, preexec_fn=unblock, **options)
        self.callback(self.end, process)
        return process

    def end(self, process, patience=15):
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def command(self, *arguments):
        return [binary("bindonce"), *arguments]

    def bindonce(self, *arguments):
        return subprocess.run(self.command(*arguments), env=self.environment, capture_output=True, text=True)

    def run(self, haproxy, *options):
        command = [binary("bindonce"), "run", *options, "--", str(haproxy), "-f", str(self.file)]
        self.supervisor = self.start("run", command)
        wait_for("haproxy to serve", self.serving)

    def doctor(self, *target):
        """(exit code, report) of `bindonce doctor --json`."""
        said = self.bindonce("doctor", "--json", *target)
        if said.returncode not in (0, 3):
            raise SystemExit(f"doctor: exit code {said.returncode}: {said.stderr}")
        return said.returncode, json.loads(said.stdout)

    def with_faults(self, haproxy, faults):
        """Returns a script that runs haproxy, preloaded with tests/harness/faults.c in the
        generations of `faults`: {generation: value of FAULT}."""
        library, wrapper = self.directory / "faults.so", self.directory / "haproxy"
        source = ROOT / "tests/harness/faults.c"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        cases = "".join(f"{generation}) export FAULT='{words}' LD_PRELOAD='{library}';;\n"
                        for generation, words in faults.items())
        wrapper.write_text(f"#!/bin/sh\ncase $BINDONCE_GENERATION in\n{cases}esac\nexec {haproxy} \"$@\"\n")
        wrapper.chmod(0o755)
        return wrapper

    def generations(self):
        """{generation: (pid, state)} as the broker knows them."""
        status = self.bindonce("status", "--json")
        if status.returncode != 0:
            return {}
        found = [g for s in json.loads(status.stdout)["services"] for g in s["generations"]]
        return {g["generation"]: (g["pid"], g["state"]) for g in found}

    def serving(self):
        """(generation, pid) of the serving generation, or None."""
        found = [(number, pid) for number, (pid, state) in self.generations().items() if state == "serving"]
        return found[0] if found else None

    def said(self, name="run"):
        """What a process has logged so far."""
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def reload(self):
        """(exit code, output, seconds)."""
        begun = time.monotonic()
        result = self.bindonce("reload")
        return result.returncode, result.stdout + result.stderr, time.monotonic() - begun

    def reloads(self, count, rate, text, look=lambda: None):
        """Reloads in a row, each with the `text` of its number, from 2 on, and a `look` after each.
        Returns the time of each, the output of those that failed, and the time of all."""
        time.sleep(0.5)  # load before the first reload, not a wait for an event
        times, failed = [], []
        begun = time.monotonic()
        for number in range(count):
            time.sleep(max(0, begun + number / rate - time.monotonic()))
            self.file.write_text(text(number + 2))
            code, said, seconds = self.reload()
            times.append(seconds)
            if code != 0:
                failed.append(said)
            look()
        return times, failed, time.monotonic() - begun

    def load(self, clients=20, **options):
        """Load until [`report`], or as `options` say: target, connections, rate, duration, host."""
        options = {"duration": "30m", "target": f"127.0.0.1:{PORT}", **options}
        command = [binary("bindonce-load"), "--clients", str(clients), "--json"]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        return self.start("load", command, stdout=subprocess.PIPE, text=True)

    def report(self, load):
        """Ends the load and returns its report."""
        load.send_signal(signal.SIGTERM)
        return self.over(load)

    def over(self, load):
        """Waits for a load to end by itself and returns its report."""
        return json.loads(load.communicate(timeout=300)[0])


def ask(host="localhost", port=PORT):
    """Asks on a new connection; returns the status line, or the error, and the tag of the
    configuration that answered."""
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            while part := client.recv(4096):
                answer += part
    except OSError as error:
        return str(error), None
    status, *lines = answer.decode(errors="replace").split("\r\n")
    tags = [line.split(": ", 1)[1] for line in lines if line.lower().startswith("x-generation: ")]
    return status, tags[0] if tags else None


def half_a_request(port=PORT):
    """Sends half a request, which keeps its generation from ending."""
    half = socket.create_connection(("127.0.0.1", port))
    half.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
    # Connections are accepted in order: once a later one is answered, this one is accepted.
    with socket.create_connection(("127.0.0.1", port)) as whole:
        whole.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        while whole.recv(4096):
            pass
    return half


def ghosts(pid, inodes):
    """Number of entries for these sockets that the epoll sets of a process still have."""
    wanted = {f"ino:{int(inode):x}" for inode in inodes}
    found = 0
    for entry in pathlib.Path(f"/proc/{pid}/fdinfo").glob("*"):
        with contextlib.suppress(OSError):
            lines = entry.read_text().splitlines()
            found += sum(1 for line in lines if line.startswith("tfd:") and wanted & set(line.split()))
    return found


def cpu(pid):
    """Seconds of CPU that a process has used."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def told(report):
    """A load's report in words."""
    words = (f"{report['connections']:,} connections ({report['per_second']:,.0f} per second): {report['failed']} failed "
             f"({report['refused']} refused, {report['reset']} reset, {report['timed_out']} timed out, "
             f"{report['truncated']} cut short, {report['bad_status']} wrong status, {report['other']} other); "
             f"{report['local']} not made for want of a local resource\n"
             f"    longest wait for an answer {report['answer']['max_ms']:.1f} ms "
             f"(99 %: {report['answer']['p99_ms']:.1f} ms, median {report['answer']['p50_ms']:.1f} ms)\n"
             f"    {len(report['tokens'])} configurations answered; answers of an older one to a connection begun after "
             f"a newer had answered: {report['stale']}")
    for failure in report["samples"]:
        words += f"\n    failed at {failure['at_ms']:.0f} ms after {failure['took_ms']:.1f} ms: {failure['text']}"
    return words

"""What the measurements stand on: a network namespace and a directory of their
own, the release binaries, a broker, haproxy under a supervisor, load.

Everything started here is ended here, by its pid.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PORT = 8080


def isolate():
    """Starts this script again in a network namespace of its own, where every
    port is free and nothing else is reached."""
    if os.environ.get("BINDONCE_MEASURE") == "isolated":
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return
    if os.geteuid() != 0:
        sys.exit("needs root, for a network namespace of its own")
    subprocess.run(
        ["cargo", "build", "--quiet", "--release", "--package", "bindonce-cli", "--package", "bindonce-load"],
        cwd=ROOT, check=True)
    os.environ["BINDONCE_MEASURE"] = "isolated"
    os.execvp("unshare", ["unshare", "--net", sys.executable, *sys.argv])


def binary(name):
    return str(ROOT / "target/release" / name)


def haproxies():
    """The system's haproxy and those that tests/haproxies fetched: (version, path)."""
    found = [shutil.which("haproxy", path=os.environ["PATH"] + ":/usr/sbin")]
    found += sorted(str(path) for path in (ROOT / "target/haproxies").glob("*/haproxy"))
    for path in filter(None, found):
        first = subprocess.run([path, "-v"], capture_output=True, text=True).stdout.split()
        yield first[2].split("-")[0], path


def config(tag, listeners=(PORT,), extra=""):
    """A frontend that answers by itself and says which configuration it is."""
    binds = "".join(f"    bind 127.0.0.1:{port}\n" for port in listeners)
    return (
        "global\n    maxconn 1000\ndefaults\n    mode http\n    timeout connect 5s\n"
        "    timeout client 30s\n    timeout server 30s\nfrontend web\n" + binds +
        "    http-request return status 200 content-type text/plain "
        f"hdr x-generation {tag} string ok\n{extra}")


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
    """Between fork and exec: signals that a measurement waits for are not the child's business."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})


class Stage(contextlib.ExitStack):
    """A directory, a broker, and perhaps haproxy."""

    def __enter__(self):
        super().__enter__()
        self.directory = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory(prefix="bindonce-")))
        self.socket = self.directory / "broker.sock"
        self.file = self.directory / "haproxy.cfg"
        self.environment = {**os.environ, "BINDONCE_SOCKET": str(self.socket)}
        self.broker = self.start("broker", [binary("bindonce"), "serve"])
        wait_for("the broker", lambda: self.bindonce("list").returncode == 0)
        return self

    def start(self, name, command, **options):
        log = self.enter_context(open(self.directory / f"{name}.log", "ab"))
        options.setdefault("stdout", log)
        process = subprocess.Popen(command, stderr=log, env=self.environment, preexec_fn=unblock, **options)
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

    def bindonce(self, *arguments):
        return subprocess.run([binary("bindonce"), *arguments], env=self.environment, capture_output=True, text=True)

    def run(self, haproxy):
        self.supervisor = self.start("run", [binary("bindonce"), "run", "--", haproxy, "-f", str(self.file)])
        wait_for("haproxy to serve", self.serving)

    def serving(self):
        """(generation, pid) of the one that serves, or None."""
        status = self.bindonce("status", "--json")
        if status.returncode != 0:
            return None
        generations = [g for s in json.loads(status.stdout)["services"] for g in s["generations"]]
        serving = [(g["generation"], g["pid"]) for g in generations if g["state"] == "serving"]
        return serving[0] if serving else None

    def reload(self):
        """(exit code, what was said, seconds)."""
        begun = time.monotonic()
        result = self.bindonce("reload")
        return result.returncode, result.stdout + result.stderr, time.monotonic() - begun

    def load(self, clients=20):
        command = [binary("bindonce-load"), "--target", f"127.0.0.1:{PORT}", "--clients", str(clients),
                   "--duration", "30m", "--json"]
        return self.start("load", command, stdout=subprocess.PIPE, text=True)

    def report(self, load):
        """Ends the load and gives its report."""
        load.send_signal(signal.SIGTERM)
        return json.loads(load.communicate(timeout=60)[0])


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

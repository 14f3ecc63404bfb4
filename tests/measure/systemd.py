#!/usr/bin/env python3
"""The broker under a real systemd, as PID 1 of its own namespaces: kill -9 at random moments with
no client connected, after which every listener comes back as the same socket. If haproxy is
installed, also the supervisor's unit: start, reload (good and broken), watchdog, stop; the
migrations of docs/migrating.md from a haproxy.service and from a socket unit, command by command,
under load; a socket unit whose service is bindonce under haproxy's name; and that supervisor
killed, with each of two KillMode=. With a server of the library also the template unit of
docs/library.md (template.py).

    tests/measure/systemd.py [--binary PATH] [--rounds 100] [--listeners 20] [--haproxy PATH] [--server PATH]

Needs root, systemd and unshare(1). Prints one JSON object, with the reason in "skipped" if it could
not run. Exits 1 after an error, or if a listener was lost, changed, duplicated or unreachable.

This file runs in three stages: the outer starts `unshare`; the inner mounts what systemd must not
share with the machine, and becomes systemd; a unit of that systemd runs the driver.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SYSTEMD = next((p for p in ("/lib/systemd/systemd", "/usr/lib/systemd/systemd") if os.path.exists(p)), None)
SHARED = "/mnt"  # Inside: the outer stage's directory.
CONTROL = "/run/bindonce/bindonce.sock"
PORT = 6000  # The supervised haproxy's.
HAPROXY = "bindonce-haproxy.service"
PRIVATE = ("/tmp", "/run", "/var/tmp", "/var/log", "/etc/systemd/system", "/var/lib/systemd")


def outer(options):
    if SYSTEMD is None or shutil.which("unshare") is None:
        return {"skipped": "no systemd or no unshare here"}
    if os.geteuid() != 0:
        return {"skipped": "needs root, to be PID 1 of a namespace"}
    with tempfile.TemporaryDirectory(prefix="bindonce-systemd-") as shared:
        shutil.copy(options.binary, f"{shared}/bindonce")
        shutil.copytree(ROOT / "deploy/systemd", f"{shared}/units")
        shutil.copy(__file__, f"{shared}/systemd.py")
        shutil.copy(pathlib.Path(__file__).with_name("template.py"), shared)
        for page in ("migrating.md", "library.md"):
            shutil.copy(ROOT / "docs" / page, shared)
        if options.server:
            shutil.copy(options.server, f"{shared}/edge")
        pathlib.Path(shared, "options").write_text(json.dumps(vars(options)))
        # Mount, pid, uts, ipc and network namespaces; gone with their PID 1.
        inside = ["unshare", "-pfmuin", "--kill-child", "--mount-proc", sys.executable, __file__, "--inner", shared]
        with open(f"{shared}/console", "wb") as console:
            process = subprocess.Popen(inside, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
            try:
                process.wait(timeout=max(170, 60 + 3 * options.rounds))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if options.log:
            shutil.copy(f"{shared}/broker", options.log)
        result = pathlib.Path(shared, "result")
        if result.exists():
            return json.loads(result.read_text())
        console = pathlib.Path(shared, "console").read_text(errors="replace")
        if not pathlib.Path(shared, "begun").exists():
            return {"skipped": f"systemd does not start in a namespace here: {console[-300:].strip()}"}
        return {"error": f"the driver did not finish: {console[-500:]}"}


def inner(shared):
    run = lambda *words: subprocess.run(words, check=True)
    run("mount", "--make-rprivate", "/")
    run("mount", "--bind", shared, SHARED)
    for directory in PRIVATE:
        if os.path.isdir(directory):
            run("mount", "-t", "tmpfs", "tmpfs", directory)
    run("ip", "link", "set", "lo", "up")
    units = pathlib.Path("/etc/systemd/system")
    for unit in [*pathlib.Path(SHARED, "units").glob("bindonce.s[eo]*"), pathlib.Path(SHARED, "units", HAPROXY)]:
        shutil.copy(unit, units / unit.name)
    drop_in = units / "bindonce.service.d"
    drop_in.mkdir()
    os.makedirs("/run/bin")
    shutil.copy(f"{SHARED}/bindonce", "/run/bin/bindonce")
    # A user that exists here, short timeouts, and this binary without a configuration file.
    (drop_in / "test.conf").write_text(
        "[Service]\nUser=daemon\nGroup=daemon\nRestartSec=1ms\nWatchdogSec=1s\nTimeoutAbortSec=1s\nExecStart=\n"
        f"ExecStart=/run/bin/bindonce serve --socket {CONTROL} --listen kept=127.0.0.1:4000\n"
        f"StandardError=append:{SHARED}/broker\n")
    supervised(units)
    (units / "job.service").write_text(
        "[Unit]\nDefaultDependencies=no\nSuccessAction=exit-force\nFailureAction=exit-force\n[Service]\nType=oneshot\n"
        f"ExecStart={sys.executable} {SHARED}/systemd.py --driver\n"
        f"StandardOutput=append:{SHARED}/console\nStandardError=append:{SHARED}/console\n")
    os.environ["container"] = "other"
    os.execv(SYSTEMD, [SYSTEMD, "--system", "--unit=job.service", "--log-target=null", "--show-status=no"])


def supervised(units):
    """Adapts the supervisor's unit: local paths, and a short watchdog timeout."""
    haproxy = json.loads(pathlib.Path(SHARED, "options").read_text())["haproxy"]
    unit = (units / HAPROXY).read_text()
    for there, here in (("/usr/bin/bindonce", "/run/bin/bindonce"), ("/usr/sbin/haproxy", haproxy or "/usr/sbin/haproxy"),
                        ("/etc/haproxy/haproxy.cfg", f"{SHARED}/haproxy.cfg"), ("WatchdogSec=30s", "WatchdogSec=1s")):
        assert there in unit, there
        unit = unit.replace(there, here)
    (units / HAPROXY).write_text(unit)
    drop_in = units / f"{HAPROXY}.d"
    drop_in.mkdir()
    # The broker obeys its own user and root; the supervisor is root.
    (drop_in / "test.conf").write_text(f"[Service]\nStandardError=append:{SHARED}/supervisor\n")


def configure(text):
    configuration = pathlib.Path(SHARED, "haproxy.cfg")
    configuration.write_text(
        "defaults\n mode http\n timeout client 5s\n timeout connect 5s\n timeout server 5s\n"
        f"frontend web\n bind 127.0.0.1:{PORT}\n http-request return status 200 content-type text/plain string {text}\n")


def answered():
    """Returns the supervised haproxy's answer."""
    with socket.create_connection(("127.0.0.1", PORT), timeout=20) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while part := client.recv(4096):
            answer += part
    return answer.decode().rsplit("\r\n\r\n", 1)[-1]


def supervisor():
    """Runs the supervisor's unit from start to stop; returns what it saw."""
    seen = {}
    of = lambda name: show(name, HAPROXY)
    run = lambda *words: subprocess.run(["systemctl", *words, HAPROXY], capture_output=True, text=True, timeout=60)
    configure("one")
    started = run("start")
    seen["started"] = (started.returncode, of("ActiveState"), answered() if started.returncode == 0 else started.stderr)
    seen["status"] = of("StatusText")
    pid = int(of("MainPID"))
    configure("two")
    seen["reloaded"] = (run("reload").returncode, of("ActiveState"), answered())
    seen["status_after"] = of("StatusText")
    pathlib.Path(SHARED, "haproxy.cfg").write_text("frontend web\n nonsense\n")
    seen["broken"] = (run("reload").returncode != 0, of("ActiveState"), answered())
    seen["status_broken"] = of("StatusText")
    # Longer than the watchdog's timeout.
    beat = of("WatchdogTimestampMonotonic")
    eventually("three seconds of the watchdog", lambda: int(of("WatchdogTimestampMonotonic")) - int(beat) > 3_000_000)
    seen["watchdog"] = (of("ActiveState"), int(of("NRestarts")), int(of("MainPID")) == pid)
    # An open connection delays the stop, and is served to its end.
    with socket.create_connection(("127.0.0.1", PORT), timeout=20) as client:
        client.sendall(b"GET / HTTP/1.0\r\n")
        stop = subprocess.Popen(["systemctl", "stop", HAPROXY])
        eventually("the unit to drain", lambda: of("ActiveState") == "deactivating")
        client.sendall(b"\r\n")
        answer = b""
        while part := client.recv(4096):
            answer += part
        seen["drained"] = answer.decode().rsplit("\r\n\r\n", 1)[-1]
        stop.wait(timeout=60)
    seen["stopped"] = (of("ActiveState"), of("Result"), of("ExecMainStatus"))
    verify = subprocess.run(["systemd-analyze", "verify", "/etc/systemd/system/bindonce.service", "/etc/systemd/system/bindonce.socket",
                             f"/etc/systemd/system/{HAPROXY}"], capture_output=True, text=True)
    # (The manual pages need not be installed here.)
    seen["verify"] = [line for line in verify.stderr.splitlines() if "bindonce" in line and "man " not in line]
    return seen


PLAIN = "[Service]\nType=notify\nExecStart={haproxy} -Ws -f {shared}/haproxy.cfg\nKillMode=mixed\nRestart=always\n"
STANDS_IN = (
    "[Service]\nType=notify\nEnvironment=BINDONCE_SOCKET={control} BINDONCE_HAPROXY={haproxy}\nKillMode=mixed\nSuccessExitStatus=143\n"
    "ExecStart=/run/bin/haproxy -Ws -f {shared}/haproxy.cfg -p /run/haproxy.pid\nExecReload=/bin/kill -USR2 $MAINPID\n"
    "StandardError=append:{shared}/supervisor\n")
ACTIVATED = "[Service]\nExecStart={haproxy} -db -f {shared}/haproxy.cfg\nKillMode=mixed\n"


class Clients:
    """Opens one connection after the other, and records the outcomes."""

    def __init__(self):
        self.answers, self.failed, self.goes_on, self.longest = 0, [], True, 0
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while self.goes_on:
            begun = time.monotonic()
            try:
                assert answered() == "one", "another answer"
                self.answers += 1
            except (OSError, AssertionError) as error:
                self.failed.append(repr(error))
            self.longest = max(self.longest, time.monotonic() - begun)
            time.sleep(0.002)

    def __enter__(self):
        self.thread.start()
        eventually("answers", lambda: self.answers > 20 or self.failed)
        return self

    def __exit__(self, *_):
        before = self.answers
        eventually("more answers", lambda: self.answers > before + 20 or self.failed)
        self.goes_on = False
        self.thread.join()


def walk(heading, put_in):
    """Runs the commands under a heading of docs/migrating.md; returns (supervisor, failures)."""
    page = pathlib.Path(SHARED, "migrating.md").read_text()
    block = page.split(f"# {heading}\n", 1)[1].split("```sh\n", 1)[1].split("```", 1)[0]
    environment = {**os.environ, "BINDONCE_SOCKET": CONTROL, "PATH": f"/run/bin:{os.environ['PATH']}:/usr/sbin"}
    supervisor, failed = None, []
    for line in block.splitlines():
        for this, that in put_in.items():
            line = line.replace(this, that)
        if line.startswith("bindonce run"):
            with open(f"{SHARED}/supervisor", "ab") as log:
                supervisor = subprocess.Popen(["sh", "-c", f"exec {line}"], env=environment, stdout=log, stderr=log)
            ping = ["bindonce", "ping", "--name", "haproxy", "--serving"]
            eventually("it to serve", lambda: subprocess.run(ping, env=environment, capture_output=True).returncode == 0)
            continue
        done = subprocess.run(["sh", "-ec", line], env=environment, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            failed.append(f"{line}: {done.stderr[-500:]}")
    return supervisor, failed


def inodes():
    shown = subprocess.run(["ss", "-Hltne", f"sport = :{PORT}"], capture_output=True, text=True, check=True).stdout
    return sorted({word for line in shown.splitlines() for word in line.split() if word.startswith("ino:")})


def walked(haproxy):
    """Migrates from a haproxy.service, and from one with a socket unit."""
    units, seen = pathlib.Path("/etc/systemd/system"), {}
    put_in = {"/etc/haproxy/haproxy.cfg": f"{SHARED}/haproxy.cfg", "bind 0.0.0.0:80": f"bind 127.0.0.1:{PORT}"}
    install = "[Install]\nWantedBy=multi-user.target\n"
    configure("one")
    released = lambda: call("release", [f"127.0.0.1:{PORT}"])
    eventually("the listener to go", released)
    (units / "haproxy.service").write_text(PLAIN.format(haproxy=haproxy, shared=SHARED) + install)
    systemctl("daemon-reload")
    systemctl("enable", "--now", "haproxy.service")
    with Clients() as clients:
        before = inodes()
        _, failed = walk("When systemd runs it", put_in)
        eventually("the old one to end", lambda: show("ActiveState", "haproxy.service") != "active")
    seen["service"] = {"commands_failed": failed, "failed": clients.failed[:5], "answers": clients.answers, "same_socket": inodes() == before,
                       "states": [show("ActiveState", unit) for unit in ("haproxy.service", HAPROXY)],
                       "enabled": systemctl("is-enabled", "haproxy.service")}
    systemctl("stop", HAPROXY)
    eventually("the listener to go", released)
    on_descriptor()
    (units / "haproxy.socket").write_text(f"[Socket]\nListenStream=127.0.0.1:{PORT}\n[Install]\nWantedBy=sockets.target\n")
    (units / "haproxy.service").write_text(ACTIVATED.format(haproxy=haproxy, shared=SHARED) + install)
    systemctl("daemon-reload")
    systemctl("enable", "--now", "haproxy.socket")
    with Clients() as clients:
        before = inodes()
        supervisor, failed = walk("From systemd's sockets", put_in)
        eventually("the old one to end", lambda: show("ActiveState", "haproxy.service") != "active")
    seen["sockets"] = {"commands_failed": failed, "failed": clients.failed[:5], "answers": clients.answers, "same_socket": inodes() == before,
                       "states": [show("ActiveState", unit) for unit in ("haproxy.service", "haproxy.socket")],
                       "enabled": systemctl("is-enabled", "haproxy.socket")}
    supervisor.terminate()
    supervisor.wait(timeout=30)
    systemctl("stop", "haproxy.socket")
    eventually("the listener to go", released)
    seen["stands_in"] = stands_in(haproxy, units)
    configure("one")
    seen["killed"] = {mode: killed(haproxy, units, mode) for mode in ("mixed", "process")}
    return seen


def on_descriptor():
    """Makes the configuration bind the descriptor that a socket unit passes."""
    file = pathlib.Path(SHARED, "haproxy.cfg")
    file.write_text(file.read_text().replace(f"bind 127.0.0.1:{PORT}", "bind fd@3"))


def stands_in(haproxy, units):
    """A socket unit whose service is bindonce under haproxy's name: reloads, an upgrade and a restart keep its socket."""
    os.symlink("bindonce", "/run/bin/haproxy")
    on_descriptor()
    (units / "haproxy.service").write_text(STANDS_IN.format(haproxy=haproxy, shared=SHARED, control=CONTROL))
    systemctl("daemon-reload")
    systemctl("start", "haproxy.socket", "haproxy.service")
    bindonce = lambda *words: subprocess.run(
        ["/run/bin/bindonce", *words, "--socket", CONTROL, "--name", "haproxy"], check=True, capture_output=True, text=True).stdout
    serving = lambda: int(bindonce("ping").split(" serves")[0].split()[-1])
    before, pid, first = inodes(), show("MainPID", "haproxy.service"), serving()
    with Clients() as clients:
        for reloads in (1, 2, 3):
            systemctl("reload", "haproxy.service")
            eventually("a reload", lambda: serving() == first + reloads)
        bindonce("upgrade")
        systemctl("reload", "haproxy.service")
        eventually("a reload after the upgrade", lambda: serving() == first + 4)
    same_process = show("MainPID", "haproxy.service") == pid
    systemctl("restart", "haproxy.service")
    seen = {"failed": clients.failed[:5], "answers": clients.answers, "same_process": same_process, "after_restart": answered(),
            "same_socket": len(before) == 1 and inodes() == before,
            "states": [show("ActiveState", unit) for unit in ("haproxy.service", "haproxy.socket")]}
    systemctl("stop", "haproxy.service", "haproxy.socket")
    return seen


def killed(haproxy, units, mode):
    """kill -9 of the supervisor in a unit with Restart=, while one generation serves and an older one drains."""
    text = STANDS_IN.format(haproxy=haproxy, shared=SHARED, control=CONTROL).replace("KillMode=mixed", f"KillMode={mode}\nRestart=always")
    (units / "edge.service").write_text(text.replace("haproxy.pid", "edge.pid -S /run/master.sock"))
    systemctl("daemon-reload")
    systemctl("start", "edge.service")
    pid = lambda: int(show("MainPID", "edge.service"))
    workers = lambda: [line.split() for line in master("show proc").splitlines() if " worker " in line]
    with socket.create_connection(("127.0.0.1", PORT), timeout=20) as client:
        client.sendall(b"GET / HTTP/1.0\r\n")
        eventually("one in progress", lambda: "\nCurrConns: 1\n" in master("@1 show info"))
        master("reload")
        before, old = pid(), workers()
        with Clients() as clients:
            os.kill(before, signal.SIGKILL)
            eventually("another supervisor", lambda: pid() not in (0, before))
            eventually("it to serve", lambda: workers())
        now = workers()
        drains = [word for word, *_ in now[1:] if "Stopping: 1" in master(f"@!{word} show info")]
        try:
            client.sendall(b"\r\n")
            answer = client.recv(4096).decode().split("\r\n")[0]
        except OSError as error:
            answer = error.strerror
    seen = {"failed": sorted(set(clients.failed)), "answers": clients.answers, "same_worker": now[0][0] == old[0][0], "drained": answer,
            "draining": [len(drains), drains == [word for word, *_ in old[1:]]], "state": show("ActiveState", "edge.service"),
            "count": master("show proc").splitlines()[1].split()[2], "in_time": clients.longest < 2}
    systemctl("stop", "edge.service")
    # The watchdog may outlive the unit's main process by a moment.
    eventually("none to be left", lambda: not show("ControlGroup", "edge.service") or not tasks("edge.service"))
    return seen


def tasks(unit):
    """The processes that still run in a unit."""
    text = pathlib.Path(f"/sys/fs/cgroup{show('ControlGroup', unit)}/cgroup.procs")
    return text.read_text().split() if text.exists() else []


def master(line):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect("/run/master.sock")
        client.sendall(f"{line}\n".encode())
        return b"".join(iter(lambda: client.recv(65536), b"")).decode()


def systemctl(*words):
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True)
    return done.stdout.strip()


def show(name, unit="bindonce.service"):
    return systemctl("show", "--value", "-p", name, unit)


def call(method, params=(), keep=None):
    """Sends one request. Closes the answer's descriptors, or appends them to `keep`."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(CONTROL)
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
        client.sendall(json.dumps(request).encode())
        text, fds = b"", []
        while not text.endswith(b"\n"):
            part, more, _, _ = socket.recv_fds(client, 1 << 16, 253)
            fds += more
            if not part:
                raise ConnectionError("the broker ended in the middle of its answer")
            text += part
        for fd in fds:
            os.close(fd)
    answer = json.loads(text)
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer["result"]


def eventually(what, probe, seconds=60, pause=0.05):
    end = time.monotonic() + seconds
    while True:
        try:
            if found := probe():
                return found
        except (OSError, RuntimeError):
            pass
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(pause)


def listeners():
    return {entry["name"]: entry for entry in call("list")["listeners"]}


def reachable(entry):
    if entry["bound"].startswith("unix@"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(entry["bound"][len("unix@"):])
    elif entry["bound"].startswith("abns@"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(("\0" + entry["bound"][len("abns@"):]).ljust(108, "\0"))
    elif not entry["bound"].startswith("udp"):
        host, port = entry["bound"].rsplit(":", 1)
        socket.create_connection((host.strip("[]"), int(port)), timeout=20).close()


def duplicates():
    """Addresses with more than one listening TCP socket, by the kernel's own list."""
    lines = subprocess.run(["ss", "-Hltn"], capture_output=True, text=True).stdout.splitlines()
    seen = [line.split()[3] for line in lines]
    return sorted({address for address in seen if seen.count(address) > 1})


def driver():
    options = json.loads(pathlib.Path(SHARED, "options").read_text())
    pathlib.Path(SHARED, "begun").touch()
    rng = random.Random(7)
    result = {"systemd": systemctl("--version").split("\n")[0], "rounds": options["rounds"]}
    systemctl("start", "bindonce.socket", "bindonce.service")
    eventually("the broker answers", lambda: call("ping"))
    wanted = [f"l{n}=127.0.0.1:{5000 + n},backlog={1000 + n}" for n in range(options["listeners"])]
    wanted += ["low=127.0.0.1:80", "six=[::1]:5000", "dual=[::]:5999", "any=127.0.0.1:0", "dns=udp@127.0.0.1:53",
               "app=/run/bindonce/app.sock,mode=0666", "hidden=abns@hidden"]
    call("bind", [{"listen": text} for text in wanted])
    first = listeners()
    result["listeners"] = len(first)
    result["stored"] = int(show("NFileDescriptorStore"))
    result["status"] = show("StatusText")
    lost, changed, unreachable, times, twice = set(), set(), set(), [], set()
    for number in range(options["rounds"]):
        print(f"round {number} at {time.monotonic():.1f} s", flush=True)
        pid = int(show("MainPID"))
        # Kills the broker while it is idle, while it starts, or in the middle of a claim.
        moment = number % 3
        if moment == 2:
            name = f"passing{number}"
            try:
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(CONTROL)
                    ask = {"jsonrpc": "2.0", "id": 1, "method": "bind", "params": [{"listen": f"{name}=127.0.0.1:0"}]}
                    client.sendall(json.dumps(ask).encode())
                    time.sleep(rng.random() * 0.002)
            except OSError:
                pass
        begun = time.monotonic()
        os.kill(pid, 9)
        if moment == 1:
            time.sleep(rng.random() * 0.05)
            again = int(show("MainPID") or 0)
            if again not in (0, pid):
                os.kill(again, 9)
        twice.update(duplicates())
        eventually("another broker", lambda: int(show("MainPID") or 0) not in (0, pid), pause=0.002)
        now = eventually("the broker answers again", listeners, pause=0.002)
        times.append(time.monotonic() - begun)
        twice.update(duplicates())
        for name, entry in first.items():
            if name not in now:
                lost.add(name)
            elif any(now[name][key] != entry[key] for key in ("inode", "cookie", "bound", "options", "since", "backlog")):
                changed.add(name)
            else:
                try:
                    reachable(entry)
                except OSError as error:
                    unreachable.add(f"{name}: {error}")
        for name in now:
            if name.startswith("passing"):
                eventually(f"{name} released", lambda: call("release", [name]))
    result.update(lost=sorted(lost), changed=sorted(changed), unreachable=sorted(unreachable), duplicates=sorted(twice))
    times.sort()
    result["back_after_ms"] = {"p50": round(times[len(times) // 2] * 1e3, 1), "longest": round(times[-1] * 1e3, 1)}
    result["restarts"] = int(show("NRestarts"))
    systemctl("restart", "bindonce.service")
    after = eventually("the broker after a restart", listeners)
    result["restart_kept"] = all(after.get(name, {}).get("inode") == entry["inode"] for name, entry in first.items())
    stored = int(show("NFileDescriptorStore"))
    call("release", ["l0", "app"])
    eventually("released listeners leave the store", lambda: int(show("NFileDescriptorStore")) == stored - 2)
    result["released_left"] = True
    # The watchdog ends a broker that hangs (here: is stopped); that loses nothing either.
    pid = int(show("MainPID"))
    os.kill(pid, 19)
    eventually("the watchdog to end it", lambda: int(show("MainPID") or 0) not in (0, pid))
    healed = eventually("the broker after the watchdog", listeners)
    result["watchdog_kept"] = all(healed[name]["inode"] == entry["inode"] for name, entry in after.items() if name not in ("l0", "app"))
    for key, unit in [("exposure", "bindonce.service"), ("exposure_haproxy", HAPROXY)]:
        security = subprocess.run(["systemd-analyze", "security", unit, "--no-pager"], capture_output=True, text=True)
        result[key] = float(security.stdout.strip().splitlines()[-1].split(":")[1].split()[0])
    if options["haproxy"]:
        result["supervisor"] = supervisor()
        result["walked"] = walked(options["haproxy"])
    if options["server"]:
        from template import template
        result["template"] = template()
    systemctl("stop", "bindonce.service", "bindonce.socket")
    result["stopped"] = not duplicates() and "127.0.0.1:5001" not in subprocess.run(
        ["ss", "-Hltn"], capture_output=True, text=True).stdout
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", default=str(ROOT / "target/release/bindonce"))
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--listeners", type=int, default=20)
    parser.add_argument("--haproxy", default=shutil.which("haproxy"), help="the program to supervise")
    parser.add_argument("--server", help="examples/hyper_server of the library, for the template unit")
    parser.add_argument("--log", help="where to copy the broker's log")
    parser.add_argument("--inner")
    parser.add_argument("--driver", action="store_true")
    options = parser.parse_args()
    if options.inner:
        inner(options.inner)
    if options.driver:
        try:
            result = driver()
        except Exception as error:  # The outer stage must report any error.
            journal = subprocess.run(["systemctl", "status", "--no-pager", "-l", "bindonce.service"], capture_output=True, text=True)
            result = {"error": f"{type(error).__name__}: {error}", "unit": journal.stdout[-3000:]}
        partial = pathlib.Path(SHARED, "result.new")
        partial.write_text(json.dumps(result))
        partial.rename(f"{SHARED}/result")
        return
    result = outer(options)
    print(json.dumps(result, indent=2))
    bad = result.get("error") or any(result.get(key) for key in ("lost", "changed", "unreachable", "duplicates"))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""deploy/container under a real container engine: the compose file runs under load while the
containers of haproxy and of the broker are replaced and killed, and while a volume with haproxy's
configuration changes; then what an engine's default seccomp profile and capabilities allow.

    tests/measure/container.py [--binary PATH] [--load PATH] [--haproxy 20] [--broker 5] [--kills 2] [--rights all]

Needs root, docker.io, docker-compose and the base image that tests/base-image makes. Prints one
JSON object, with the reason in "skipped" if it could not run. Exits 1 after an error, or if a
connection failed or was answered stale; failures after a kill do not count.

This file runs in two stages: the outer starts `unshare`; the inner runs dockerd and everything else
in its own pid, mount and network namespaces, all of which end with the inner stage.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BASE = ROOT / "target/container/base.tar"
CGROUPS = pathlib.Path("/sys/fs/cgroup")
SOCKET = "/run/bindonce/bindonce.sock"
# The restrictions of every container in compose.yaml, for containers started beside it.
CONFINED = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]


def outer(options):
    if os.geteuid() != 0:
        return {"skipped": "needs root, for namespaces and a container engine"}
    for tool in ("dockerd", "docker", "unshare", "strip"):
        if shutil.which(tool) is None:
            return {"skipped": f"no {tool} here"}
    if not composer():
        return {"skipped": "no docker-compose here"}
    if not BASE.exists():
        why = BASE.with_suffix(".why")
        return {"skipped": f"no base image: {why.read_text().strip() if why.exists() else 'run tests/base-image to make it'}"}
    with tempfile.TemporaryDirectory(prefix="bindonce-container-") as work:
        options.work = work
        pathlib.Path(work, "options").write_text(json.dumps(vars(options)))
        inside = ["unshare", "-pfmuin", "--kill-child", "--mount-proc", sys.executable, __file__, "--inner", work]
        with open(f"{work}/console", "wb") as console:
            process = subprocess.Popen(inside, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
            try:
                process.wait(timeout=options.timeout)
            except subprocess.TimeoutExpired:
                pass
            finally:
                end(process)
                remove_cgroups(pathlib.Path(work).name)
        result = pathlib.Path(work, "result")
        console = pathlib.Path(work, "console").read_text(errors="replace")
        if not result.exists():
            return {"error": f"the driver did not finish in {options.timeout} s: {console[-2000:]}"}
        return json.loads(result.read_text())


def end(process):
    """Ends the namespaces if they still exist: processes and mounts go with the first process."""
    if process.poll() is None:
        inside = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
        process.wait()
        eventually("the namespaces to end", lambda: not any(os.path.exists(f"/proc/{pid}") for pid in inside))


def remove_cgroups(name):
    """Removes the engine's control groups, which outlive the namespaces. All are empty by now."""
    for top in [*CGROUPS.glob(name), *CGROUPS.glob(f"*/{name}")]:
        for directory, _, _ in os.walk(top, topdown=False):
            try:
                os.rmdir(directory)
            except OSError as error:
                print(f"cannot remove {directory}: {error}", file=sys.stderr)


def composer():
    """The command of docker's plugin, or Debian's docker-compose."""
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True)
    if plugin.returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


def run(*words, check=True, **more):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **more)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip()[-1500:] or done.stdout.strip()[-500:]}")
    return done


def docker(*words, **more):
    return run("docker", *words, **more).stdout.strip()


def eventually(what, probe, seconds=120):
    """Polls for a condition that no event announces."""
    end = time.monotonic() + seconds
    while not (found := probe()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s in vain: {what}")
        time.sleep(0.25)  # Most probes start a process in a container.
    return found


class Engine:
    """A private dockerd, with overlay2 where possible, because vfs copies whole images."""

    def __init__(self, work):
        self.work, self.driver = pathlib.Path(work), None
        os.environ["DOCKER_HOST"] = f"unix://{work}/docker.sock"
        for driver in ("overlay2", "vfs"):
            self.process = subprocess.Popen(
                ["dockerd", "--data-root", f"{work}/data", "--exec-root", f"{work}/exec", "--pidfile", f"{work}/pid",
                 "--host", os.environ["DOCKER_HOST"], "--storage-driver", driver, "--bridge", "none", "--iptables=false",
                 "--ip-forward=false", "--ip-masq=false", "--userland-proxy=false", "--cgroup-parent", f"/{self.work.name}"],
                stdout=open(f"{work}/dockerd.log", "ab"), stderr=subprocess.STDOUT)
            answers = lambda: run("docker", "version", check=False).returncode == 0 or self.process.poll() is not None
            eventually("dockerd to answer", answers)
            if self.process.poll() is None:
                self.driver = driver
                return

    def why(self):
        last = (self.work / "dockerd.log").read_text(errors="replace").strip().splitlines()[-1:]
        return " ".join(last)[-300:]

    def end(self):
        """Containers first: without an engine they keep their mounts until the namespace ends."""
        names = docker("ps", "-aq").split()
        if names:
            run("docker", "rm", "--force", *names, check=False)
        self.process.terminate()
        self.process.wait(timeout=120)


class Pod:
    """The services of compose.yaml, started and replaced as a user would."""

    def __init__(self, options):
        staged = pathlib.Path(options["work"], "tree")
        shutil.copytree(ROOT / "deploy/container", staged / "deploy/container")
        shutil.copy(ROOT / ".dockerignore", staged)
        shutil.copy(ROOT / "LICENSE", staged)
        (staged / "target/release").mkdir(parents=True)
        for name, path in (("bindonce", options["binary"]), ("bindonce-load", options["load"])):
            run("strip", "-o", staged / "target/release" / name, path)
        self.directory = staged / "deploy/container"
        self.command = [*composer(), "-f", self.directory / "compose.yaml", "-p", "bindonce"]
        # There is no bridge network: published ports reach no client; the pod has its loopback.
        os.environ["BINDONCE_NETWORK"] = "none"

    def compose(self, *words):
        return run(*self.command, *words)

    def id(self, service):
        label = "label=com.docker.compose.service="
        return docker("ps", "--quiet", "--no-trunc", "--filter", label + service)

    def replace(self, service):
        """Replaces the container with a new one; returns the seconds that it took."""
        begun = time.monotonic()
        self.compose("up", "--detach", "--no-deps", "--force-recreate", service)
        self.wait(service)
        return time.monotonic() - begun

    def kill(self, service):
        """Kills the container and restarts it here, because the engine's own restart backs off."""
        name = self.id(service)
        docker("kill", name)
        docker("start", name)
        self.wait(service)

    def wait(self, service):
        probe = ["ping"] if service == "broker" else ["ping", "--name", "haproxy", "--serving"]
        eventually(f"{service} to be well", lambda: self.bindonce(service, *probe, check=False).returncode == 0)

    def bindonce(self, service, *words, check=True):
        return run("docker", "exec", self.id(service), "/usr/bin/bindonce", *words, check=check)

    def status(self):
        return json.loads(self.bindonce("haproxy", "status", "--json").stdout)

    def listener(self):
        return next(one for one in json.loads(self.bindonce("broker", "list", "--json").stdout)["listeners"])

    def log(self, service):
        done = run("docker", "logs", self.id(service))
        return done.stdout + done.stderr


def begin_load(pod, options):
    pod.compose("--profile", "load", "run", "--detach", "--name", "load", "client",
                "--clients", str(options["clients"]), "--rate", str(options["rate"]), "--duration", "20m",
                "--timeout", "60s", "--json")


def end_load():
    docker("stop", "--time", "100", "load")
    report = json.loads(docker("logs", "load").splitlines()[-1])
    docker("rm", "load")
    return report


def replaced_under_load(pod, options, result):
    begin_load(pod, options)
    eventually("load", lambda: pod.listener()["queue"] is not None)
    inode, first = pod.listener()["inode"], pod.status()["supervisors"][0]["generations"][-1]["generation"]
    seen = {"inodes": [], "pid_seen_by_broker": set()}
    took = {"haproxy": [], "broker": []}
    every = max(options["haproxy"] // max(options["broker"], 1), 1)
    brokers = 0

    def broker():
        took["broker"].append(pod.replace("broker"))
        back = lambda: next((one for one in json.loads(pod.bindonce("broker", "list", "--json").stdout)["listeners"]), None)
        seen["inodes"].append(eventually("the listener to be given back", back)["inode"])

    for number in range(options["haproxy"]):
        took["haproxy"].append(pod.replace("haproxy"))
        seen["inodes"].append(pod.listener()["inode"])
        if number % every == every - 1 and brokers < options["broker"]:
            brokers += 1
            broker()
    for _ in range(options["broker"] - brokers):
        broker()
    last = pod.status()["supervisors"][0]["generations"][-1]["generation"]
    report = end_load()
    keep = ("connections", "ok", "failed", "refused", "reset", "timed_out", "truncated", "bad_status", "stale", "seconds", "samples")
    result["load"] = {key: report[key] for key in keep}
    result["load"]["longest_wait_ms"] = round(report["answer"]["max_ms"] + report["connect"]["max_ms"])
    result["generations"] = last - first
    result["same_socket"] = all(one == inode for one in seen["inodes"])
    result["replaced_in_s"] = {key: {"median": round(sorted(all_)[len(all_) // 2], 2), "longest": round(max(all_), 2)}
                               for key, all_ in took.items() if all_}


def killed_under_load(pod, options, result):
    """kill -9 of either container: answers in progress are lost, but no client is refused."""
    begin_load(pod, options)
    inode = pod.listener()["inode"]
    for _ in range(options["kills"]):
        pod.kill("broker")
        eventually("the listener to be recovered",
                   lambda: any(one["inode"] == inode for one in json.loads(pod.bindonce("broker", "list", "--json").stdout)["listeners"]))
        pod.kill("haproxy")
    report = end_load()
    result["killed"] = {key: report[key] for key in ("connections", "ok", "failed", "refused", "reset", "truncated", "timed_out")}
    result["killed"]["same_socket"] = pod.listener()["inode"] == inode


def reloaded(pod, result):
    before = pod.status()["supervisors"][0]["generations"][-1]["generation"]
    said = pod.bindonce("haproxy", "reload").stdout
    log = pod.log("haproxy")
    result["reload"] = said.strip()
    result["held_by_seccomp"] = "it has bound everything, and is held" in log
    result["reloaded"] = pod.status()["supervisors"][0]["generations"][-1]["generation"] == before + 1


WATCHED = """
services:
  haproxy:
    command: [run, --watch, --drain-timeout=25s, --, haproxy, -f, /etc/haproxy/haproxy.cfg]
    volumes: ["./configmap:/etc/haproxy:ro"]
"""


def publish(volume, version, text):
    """Updates the volume as the kubelet does: a new directory, and its link replaced at once."""
    (volume / version).mkdir(parents=True)
    (volume / version / "haproxy.cfg").write_text(text)
    (volume / "..data_tmp").symlink_to(version)
    older = (volume / "..data").resolve() if (volume / "..data").exists() else None
    (volume / "..data_tmp").rename(volume / "..data")
    if older:
        shutil.rmtree(older)


def watched(pod, options, result):
    """haproxy under `run --watch`, its configuration in a volume: a good, a broken, a good one."""
    text, volume = (pod.directory / "haproxy/haproxy.cfg").read_text(), pod.directory / "configmap"
    publish(volume, "..1", text)
    (volume / "haproxy.cfg").symlink_to("..data/haproxy.cfg")
    (pod.directory / "watched.yaml").write_text(WATCHED)
    pod.command += ["-f", pod.directory / "watched.yaml"]
    pod.replace("haproxy")
    begin_load(pod, options)
    generations = lambda: pod.status()["supervisors"][0]["generations"]
    serving = lambda: [one["generation"] for one in generations() if one["state"] == "serving"]
    first = serving()[0]
    result["watched"] = {"seconds": []}
    for version in (2, 4):
        begun = time.monotonic()
        publish(volume, f"..{version}", f"{text}# Version {version}\n")
        wanted = [first + (1 if version == 2 else 3)]
        # A change noticed twice starts one generation more.
        eventually("the generation with it", lambda: serving() >= wanted)
        result["watched"]["seconds"].append(round(time.monotonic() - begun, 2))
        if version == 2:
            publish(volume, "..3", "no-such-word\n")
            before = serving()
            told = f"generation {before[0]} still serves"
            eventually("the broken one to be told", lambda: told in pod.log("haproxy"))
            result["watched"]["broken_is_told"] = "no-such-word" in pod.log("haproxy") and serving() == before
    report = end_load()
    result["watched"].update({key: report[key] for key in ("ok", "failed", "refused", "stale")})


GHOSTLY = """
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend web
    bind :80
    bind abns@ghost
    http-request return status 200 content-type text/plain string ok
"""
# name: user, arguments of `docker run`
RIGHTS = {
    "65532": ["--user", "65532:65532", *CONFINED],
    "65532+SYS_PTRACE": ["--user", "65532:65532", *CONFINED, "--cap-add", "SYS_PTRACE"],
    "root, default capabilities": ["--user", "0:0", "--read-only"],
    "root+SYS_PTRACE": ["--user", "0:0", "--read-only", "--cap-add", "SYS_PTRACE"],
    "65532, seccomp unconfined": ["--user", "65532:65532", *CONFINED, "--security-opt", "seccomp=unconfined"],
}


def rights(pod, options, result):
    """What haproxy's container may do about a ghost: a draining generation that could not be paused
    (an abstract listener cannot be) is still registered for a socket that it has closed."""
    configuration = pathlib.Path(options["work"], "ghostly")
    configuration.mkdir()
    (configuration / "haproxy.cfg").write_text(GHOSTLY)
    result["rights"] = {}
    for name, arguments in RIGHTS.items():
        if options["rights"] == "two" and name not in ("65532", "65532+SYS_PTRACE"):
            continue
        user = arguments[1].split(":")[0]
        network = ["--network", "none"]
        volume = f"rights{len(result['rights'])}"
        docker("run", "--detach", "--name", "net", *network, "--entrypoint", "sleep", "bindonce-haproxy", "infinity")
        shared = ["--network", "container:net", "--volume", f"{volume}:/run/bindonce"]
        # The broker obeys only its own user. Root needs its default capabilities to write where
        # 65532 may.
        confined = CONFINED if user != "0" else ["--read-only"]
        docker("run", "--detach", "--name", "holder", *shared, *confined, "--user", f"{user}:{user}", "bindonce", "serve")
        eventually("the broker", lambda: run("docker", "exec", "holder", "/usr/bin/bindonce", "--socket", SOCKET, "ping", check=False).returncode == 0)
        docker("run", "--detach", "--name", "proxy", *shared, *arguments, "--env", f"BINDONCE_SOCKET={SOCKET}",
               "--volume", f"{configuration}:/etc/haproxy:ro", "bindonce-haproxy", "run", "--", "haproxy", "-f", "/etc/haproxy/haproxy.cfg")
        ask = lambda *words, check=True: run("docker", "exec", "proxy", "/usr/bin/bindonce", "--socket", SOCKET, *words, check=check)
        eventually("haproxy", lambda: ask("ping", "--name", "haproxy", "--serving", check=False).returncode == 0)
        # Half a request keeps the first generation alive.
        docker("exec", "--detach", "net", "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/80; printf 'GET / HTTP/1.1\\r\\nHost: x\\r\\n' >&3; sleep infinity")
        connected = lambda: json.loads(ask("status", "--json").stdout)["supervisors"][0]["generations"][0]["connections"]
        eventually("the half request", connected)
        ask("reload")

        def settled():
            log = run("docker", "logs", "proxy")
            text = log.stdout + log.stderr
            removed = json.loads(ask("status", "--json").stdout)["supervisors"][0]["ghosts_removed"]
            return (removed, text) if removed or "-de" in text else None

        removed, text = eventually("something to be done about ghosts", settled)
        ask("reload")
        serving = json.loads(ask("status", "--json").stdout)["supervisors"][0]["generations"][-1]["pid"]
        command = docker("exec", "proxy", "cat", f"/proc/{serving}/cmdline").split("\0")
        warning = next((line for line in text.splitlines() if "-de" in line), "")
        result["rights"][name] = {"ghosts_removed": removed, "without_epoll": "-de" in command,
                                  "held_by_seccomp": "and is held" in text, "warning": re.sub(r"^.*?WARN ", "", warning)}
        docker("rm", "--force", "proxy", "holder", "net")


def low_ports(options, result):
    """Who may bind port 80: in a container's own network every user (the engine sets
    ip_unprivileged_port_start to 0); elsewhere it takes root's capability, which only a broker that
    starts as root can keep."""
    docker("run", "--detach", "--name", "net", "--network", "none", "--sysctl", "net.ipv4.ip_unprivileged_port_start=1024",
           "--entrypoint", "sleep", "bindonce-haproxy", "infinity")
    cases = {
        "65532": ["--user", "65532:65532", *CONFINED],
        "65532+NET_BIND_SERVICE": ["--user", "65532:65532", *CONFINED, "--cap-add", "NET_BIND_SERVICE"],
        "root that becomes 65532": ["--user", "0:0", *CONFINED, *[word for name in ("NET_BIND_SERVICE", "SETUID", "SETGID", "SETPCAP", "CHOWN")
                                                               for word in ("--cap-add", name)]],
    }
    result["low_ports"] = {}
    for name, arguments in cases.items():
        if options["rights"] == "two" and name == "65532+NET_BIND_SERVICE":
            continue
        extra = []
        if name.startswith("root"):
            file = pathlib.Path(os.environ["BINDONCE_WORK"], "broker.toml")
            file.write_text('user = "65532"\ngroup = "65532"\n')
            file.chmod(0o644)
            arguments = [*arguments, "--volume", f"{file}:/etc/bindonce.toml:ro"]
            extra = ["--config", "/etc/bindonce.toml"]
        docker("run", "--detach", "--name", "low", "--network", "container:net", *arguments, "--tmpfs",
                   "/run/bindonce:uid=65532,gid=65532,mode=0700", "bindonce", "serve", "--socket", SOCKET, *extra, "--listen", "web=:80")
        ping = ["exec", "--user", "65532", "low", "/usr/bin/bindonce", "--socket", SOCKET, "ping"]
        well = lambda: run("docker", *ping, check=False).returncode == 0
        ended = lambda: docker("inspect", "--format", "{{.State.Running}}", "low") == "false"
        eventually("the broker to serve or to end", lambda: well() or ended())
        log = run("docker", "logs", "low")
        result["low_ports"][name] = "bound" if not ended() else (log.stdout + log.stderr).strip().splitlines()[0][-200:]
        docker("rm", "--force", "low")
    docker("rm", "--force", "net")


IN_PLACE = """
services:
  haproxy:
    image: haproxy:3.2
    network_mode: host
    read_only: true
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    volumes: ["./official:/usr/local/etc/haproxy:ro"]
"""


def in_place(pod, result):
    """A compose file for haproxy's official image, with only its image line changed: the usual
    signals, and a stop that answers requests in progress."""
    official = pod.directory / "official"
    official.mkdir()

    def configure(tag):
        (official / "haproxy.cfg").write_text(
            "defaults\n    mode http\n    timeout connect 5s\n    timeout client 30s\n    timeout server 30s\nfrontend web\n"
            f"    bind 127.0.0.1:8080\n    http-request return status 200 content-type text/plain string {tag}\n")

    def answer(client, request):
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(4096), b"")).decode().split("\r\n\r\n")[-1]

    def serving():
        try:
            with socket.create_connection(("127.0.0.1", 8080), 10) as client:
                return answer(client, b"GET / HTTP/1.0\r\n\r\n")
        except OSError:
            return None

    configure("one")
    (pod.directory / "in_place.yaml").write_text(IN_PLACE.replace("haproxy:3.2", "bindonce-haproxy"))
    run(*composer(), "-f", pod.directory / "in_place.yaml", "-p", "place", "up", "--detach")
    name = pod.id("haproxy")
    eventually("the first answer", lambda: serving() == "one")
    result["in_place"] = {"user": docker("exec", name, "id", "-un"), "command": docker("exec", name, "cat", "/proc/1/cmdline").split("\0")[:3]}
    for tag, signal_ in (("two", "HUP"), ("three", "USR2")):
        configure(tag)
        docker("kill", "--signal", signal_, name)
        eventually(f"the reload by SIG{signal_}", lambda: serving() == tag)
    with socket.create_connection(("127.0.0.1", 8080), 10) as half:
        half.sendall(b"GET / HTTP/1.0\r\n")
        # Connections are accepted in order: once a later one is answered, this one is in progress.
        serving()
        stop = subprocess.Popen(["docker", "stop", "--time", "100", name], stdout=subprocess.DEVNULL)
        eventually("the stop", lambda: "shutdown requested" in (log := run("docker", "logs", name)).stdout + log.stderr)
        result["in_place"]["answered"] = answer(half, b"\r\n")
    stop.wait(timeout=120)
    result["in_place"]["exit"] = int(docker("inspect", "--format", "{{.State.ExitCode}}", name))
    docker("rm", name)


def inner(work):
    options = json.loads(pathlib.Path(work, "options").read_text())
    os.environ["BINDONCE_WORK"] = work
    run("ip", "link", "set", "lo", "up")
    result, engine = {"error": None}, None
    begun = time.monotonic()
    try:
        engine = Engine(work)
        if engine.driver is None:
            result = {"skipped": f"dockerd does not start here: {engine.why()}"}
            return finish(work, result)
        pod = Pod(options)
        result["engine"] = docker("version", "--format", "{{.Server.Version}}") + f", {engine.driver}"
        result["compose"] = " ".join(map(str, composer()))
        name = re.search(r"^ARG BASE=(\S+)", (pod.directory / "Containerfile").read_text(), re.M).group(1)
        docker("import", BASE, name)
        pod.compose("config", "--quiet")
        pod.compose("build")
        result["ready_after_s"] = round(time.monotonic() - begun, 1)
        result["images_mb"] = {name: round(int(docker("image", "inspect", "--format", "{{.Size}}", name)) / 1e6, 1)
                               for name in ("bindonce", "bindonce-haproxy")}
        pod.compose("up", "--detach")
        pod.wait("haproxy")
        result["shell_in_broker"] = run("docker", "exec", pod.id("broker"), "sh", "-c", "true", check=False).returncode == 0
        user = lambda service: docker("inspect", "--format", "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}}", pod.id(service))
        result["users"] = {service: user(service) for service in ("broker", "haproxy")}
        replaced_under_load(pod, options, result)
        if options["kills"]:
            killed_under_load(pod, options, result)
        reloaded(pod, result)
        result["doctor"] = {name: pod.bindonce(name, "doctor", check=False).stdout.splitlines() for name in ("broker", "haproxy")}
        result["logs"] = {name: [line for line in pod.log(name).splitlines() if " ERROR " in line][-5:] for name in ("broker", "haproxy")}
        watched(pod, options, result)
        pod.compose("down", "--timeout", "30")
        in_place(pod, result)
        if options["rights"] != "none":
            rights(pod, options, result)
            low_ports(options, result)
    except Exception as error:  # The outer stage must report any error.
        result["error"] = f"{type(error).__name__}: {error}"
        for name in docker("ps", "-a", "--format", "{{.Names}}", check=False).split():
            log = run("docker", "logs", "--tail", "30", name, check=False)
            result.setdefault("story", {})[name] = (log.stdout + log.stderr)[-3000:]
    result["seconds"] = round(time.monotonic() - begun, 1)
    engine.end()
    finish(work, result)


def finish(work, result):
    partial = pathlib.Path(work, "result.new")
    partial.write_text(json.dumps(result, default=sorted))
    partial.rename(f"{work}/result")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", default=str(ROOT / "target/release/bindonce"))
    parser.add_argument("--load", default=str(ROOT / "target/release/bindonce-load"))
    parser.add_argument("--haproxy", type=int, default=20, help="how often haproxy's container is replaced")
    parser.add_argument("--broker", type=int, default=5, help="how often the broker's container is replaced")
    parser.add_argument("--kills", type=int, default=2, help="how often each container is killed")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--rate", type=int, default=1000, help="connections a second")
    parser.add_argument("--rights", choices=("all", "two", "none"), default="all")
    parser.add_argument("--timeout", type=int, default=900)
    parser.add_argument("--inner")
    options = parser.parse_args()
    if options.inner:
        return inner(options.inner)
    # SIGTERM takes everything down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
    result = outer(options)
    print(json.dumps(result, indent=2))
    loads = [result.get(name, {}) for name in ("load", "watched")]
    sys.exit(1 if result.get("error") or any(load.get("failed") or load.get("stale") for load in loads) else 0)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""`bindonce run --intercept` inside containers of Podman: broker, supervisor and a program in one, by the profile and the user.

    tests/measure/podman.py [--binary PATH]

Prints one line for each: whether two generations shared one socket, or what was refused; then the
same with Podman started by the user `nobody` (rootless, only that user mapped into the container).
Needs root and podman, and no image: the container has this machine's /usr, read-only, and only its
own loopback. Takes about half a minute, and leaves nothing behind.
"""

import argparse
import os
import pathlib
import pwd
import resource
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--binary", default=str(ROOT / "target/release/bindonce"))
arguments = parser.parse_args()

ROWS = [
    ("its own profile", []),
    ("its own profile, --cap-drop ALL, no-new-privileges", ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]),
    ("its own profile, --cap-add SYS_PTRACE", ["--cap-add", "SYS_PTRACE"]),
    ("seccomp=unconfined", ["--security-opt", "seccomp=unconfined"]),
]
INSIDE = """
export PATH=/usr/sbin:/usr/bin XDG_RUNTIME_DIR=/tmp
"$BINDONCE" serve --socket /tmp/b.sock >/tmp/serve 2>&1 &
broker=$!
until [ -S /tmp/b.sock ]; do kill -0 $broker 2>/dev/null || { tail -n 1 /tmp/serve; exit 1; }; sleep 0.05; done
"$BINDONCE" run --socket /tmp/b.sock --name web --intercept -- python3 -m http.server 8080 --bind 127.0.0.1 >/tmp/run 2>&1 &
supervisor=$!
until grep -q ": serving" /tmp/run; do kill -0 $supervisor 2>/dev/null || break; sleep 0.05; done
if grep -q ": serving" /tmp/run && "$BINDONCE" reload --socket /tmp/b.sock --name web >/tmp/reload 2>&1; then
    # Port 8080, LISTEN.
    echo "works, $(grep -c ':1F90 .* 0A ' /proc/net/tcp) listening socket"
else
    tail -n 1 /tmp/run
fi
kill $supervisor $broker 2>/dev/null
wait
"""

if os.geteuid() != 0 or shutil.which("podman") is None:
    sys.exit("not tried: needs root and podman")
# Limits of a container: podman might give it more than this process may have itself.
limits = []
for name, which in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
    _, hard = resource.getrlimit(which)
    most = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
    limits += ["--ulimit", f"{name}={most}:{most}"]
with tempfile.TemporaryDirectory(prefix="bindonce-podman-") as work:
    root = pathlib.Path(work, "root")
    for name in ("usr", "etc", "tmp", "run", "proc", "sys", "dev", "opt"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    for name in ("passwd", "group"):
        shutil.copy(f"/etc/{name}", root / "etc")
    # podman's own files are here too: this machine's containers stay untouched.
    engine = ["podman", "--root", f"{work}/storage", "--runroot", f"{work}/run"]
    def measure(engine, environment, user, profile, options, prefix=()):
        command = [
            *prefix, *engine, "run", "--rm", "--network", "none", "--log-driver", "none", "--user", user, "--tmpfs", "/tmp",
            *limits, *options, "--env", "BINDONCE=/opt/bindonce", "--volume", "/usr:/usr:ro",
            "--volume", f"{os.path.abspath(arguments.binary)}:/opt/bindonce:ro", "--rootfs", str(root), "sh", "-c", INSIDE,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        said = (done.stdout.strip() or done.stderr.strip()).splitlines() or ["nothing said"]
        print(f"{'rootless, ' if prefix else ''}{profile}, user {user}: {said[-1]}", flush=True)

    for profile, options in ROWS:
        for user in ("0", "1000"):
            measure(engine, None, user, profile, options)
    subprocess.run([*engine, "system", "reset", "--force"], capture_output=True)

    # Directories for the files of an unprivileged user.
    work = pathlib.Path(work)
    work.chmod(0o755)
    nobody = pwd.getpwnam("nobody")
    as_nobody = ["setpriv", "--reuid", str(nobody.pw_uid), "--regid", str(nobody.pw_gid), "--clear-groups"]
    home = work / "home"
    for path in (home, home / "run"):
        path.mkdir()
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    for path in (root, *root.rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)
    environment = {"HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run"), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    engine = ["podman", "--root", f"{home}/storage", "--runroot", f"{home}/run/storage"]
    for profile, options in ROWS:
        measure(engine, environment, "0", profile, options, as_nobody)
    subprocess.run([*as_nobody, *engine, "system", "reset", "--force"], capture_output=True, env=environment)

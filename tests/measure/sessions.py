#!/usr/bin/env python3
"""The share of TLS handshakes that are resumed, before and after a reload, and after the rotation of ticket keys: clients that
have a session ask again, each on a new connection (TLS 1.2 and 1.3, tickets).

    tests/measure/sessions.py [--clients 50] [--only VERSION]

Measured with plain `bind ... ssl`, and with `tls-ticket-keys`, whose keys the commands of
docs/haproxy-draining.md create and rotate.
"""

import argparse
import re
import socket
import ssl
import subprocess

from stage import PORT, ROOT, Stage, config, haproxies, isolate

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--clients", type=int, default=50)
parser.add_argument("--only", default="", help="only versions that begin with this")
arguments = parser.parse_args()
isolate()

# The documentation's two commands: the one for the first time, and the one for every 12 hours.
TEXT = (ROOT / "docs/haproxy-draining.md").read_text()
FIRST, ROTATE = re.search(r"\n    (for key in [^\n]*)\n    ((?:[^\n]*\n    )*?[^\n]*every 12 hours)\n", TEXT).groups()


def handshake(version, session=None):
    """Returns (whether the handshake was resumed, the new session with its context)."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    # A session belongs to its context.
    context = session[0] if session else context
    with socket.create_connection(("127.0.0.1", PORT), 10) as plain:
        with context.wrap_socket(plain, server_hostname="x", session=session[1] if session else None) as stream:
            stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
            # In TLS 1.3 the ticket arrives after the handshake.
            while stream.recv(4096):
                pass
            return stream.session_reused, (context, stream.session)


def share(version, sessions):
    resumed, after = zip(*(handshake(version, session) for session in sessions))
    return f"{sum(resumed)} of {len(resumed)}", after


def shell(command, stage):
    """Runs a command of the documentation on this stage's files."""
    command = command.replace("/run/haproxy/", f"{stage.directory}/").replace("bindonce reload", "true")
    subprocess.run(["sh", "-ec", command], check=True)


def reload(stage):
    code, said, _ = stage.reload()
    assert code == 0, said


def measure(haproxy, keys):
    with Stage() as stage:
        pem = ROOT / "tests/harness/test.pem"
        if keys:
            shell(FIRST, stage)
        words = f" ssl crt {pem}" + (f" tls-ticket-keys {stage.directory}/ticket.keys" if keys else "")
        text = config(1).replace(f"bind 127.0.0.1:{PORT}", f"bind 127.0.0.1:{PORT}{words}")
        # No session cache: tickets only.
        stage.file.write_text(text.replace("global\n", "global\n    tune.ssl.cachesize 0\n", 1))
        stage.run(haproxy)
        for name, version in (("TLS 1.2", ssl.TLSVersion.TLSv1_2), ("TLS 1.3", ssl.TLSVersion.TLSv1_3)):
            sessions = [handshake(version)[1] for _ in range(arguments.clients)]
            told = []
            for what in ("before", "after a reload") + (("after a rotation", "after two", "after three") if keys else ()):
                if what.startswith("after a ro") or what in ("after two", "after three"):
                    shell(ROTATE, stage)
                if what != "before":
                    reload(stage)
                resumed, _ = share(version, sessions)
                told.append(f"{what}: {resumed}")
            print(f"    {name}, handshakes resumed {', '.join(told)}", flush=True)


for version, haproxy in haproxies(arguments.only):
    for keys in (False, True):
        print(f"haproxy {version}, {'tls-ticket-keys' if keys else 'bind ... ssl alone'}", flush=True)
        measure(haproxy, keys)

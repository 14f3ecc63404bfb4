#!/usr/bin/env python3
"""What multibinder's sockets outlive: an upgrade by its own SIGUSR1, and kill -9.

    tests/measure/multibinder.py CHECKOUT

CHECKOUT is a clone of https://github.com/github/multibinder; needs ruby and root.
"""

import json
import os
import signal
import socket
import subprocess
import sys

from stage import PORT, Stage, isolate, listening, wait_for

checkout = sys.argv[1] if len(sys.argv) == 2 else sys.exit(__doc__)
isolate()


def bind(path):
    """Asks for the address, and lets the descriptor go again: what listens afterwards, multibinder holds."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        bound = {"address": "127.0.0.1", "port": PORT}
        client.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "bind", "params": [bound]}).encode())
        _, descriptors, _, _ = socket.recv_fds(client, 65536, 1)
        for descriptor in descriptors:
            os.close(descriptor)
        return len(descriptors)


print(subprocess.run(["ruby", "--version"], capture_output=True, text=True, check=True).stdout.strip())
for name in ("SIGUSR1", "SIGKILL"):
    with Stage(broker=False) as stage:
        path = str(stage.directory / "multibinder.sock")
        process = stage.start("multibinder", ["ruby", f"{checkout}/bin/multibinder", path])
        wait_for("multibinder", lambda: os.path.exists(path) and "Listening" in stage.said("multibinder"))
        assert bind(path) == 1 and len(listening()) == 1
        process.send_signal(getattr(signal, name))
        # Either it ends, or it has begun again: then its log says so a second time.
        wait_for("its end or its next life", lambda: process.poll() is not None
                 or stage.said("multibinder").count("Listening") == 2)
        said = [line for line in stage.said("multibinder").splitlines() if "Error" in line]
        print(f"{name}: {'ended' if process.poll() is not None else 'goes on'}, sockets that still listen: {len(listening())}"
              + "".join(f"\n    {line.strip()}" for line in said))

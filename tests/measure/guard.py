#!/usr/bin/env python3
"""How long a listener is without LISTEN after a consumer ended it.

    tests/measure/guard.py [--rounds 1000] [--binary PATH]

A consumer claims a listener and, in turns, disconnects it (connect to AF_UNSPEC) and shuts it down.
The time runs from just before that call until the socket listens again (SO_ACCEPTCONN, polled
without pause), so it includes the call itself. After each, a client connects. Needs a quiet
machine: the polling consumer and the broker need a processor each, and other work shows as time
slices. Prints JSON; exits 1 if a connection failed or the 99th percentile is over 1 ms.
"""

import argparse
import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time

import stage

LIBC = ctypes.CDLL(None, use_errno=True)
UNSPEC = struct.pack("=H14x", socket.AF_UNSPEC)


def claim(path, listen):
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    request = {"jsonrpc": "2.0", "id": 1, "method": "bind", "params": [{"listen": listen}]}
    client.sendall(json.dumps(request).encode())
    text, fds, _, _ = socket.recv_fds(client, 1 << 16, 4)
    answer = json.loads(text)
    if "error" in answer:
        sys.exit(answer["error"]["message"])
    return client, socket.socket(fileno=fds[0]), answer["result"]["listeners"][0]


def end(listener, how):
    if how == 0:
        if LIBC.connect(listener.fileno(), UNSPEC, len(UNSPEC)) != 0:
            raise OSError(ctypes.get_errno(), "connect")
    else:
        listener.shutdown(socket.SHUT_RD if how == 1 else socket.SHUT_RDWR)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--binary")
    options = parser.parse_args()
    if options.binary is None:
        stage.isolate()
        options.binary = stage.binary("bindonce")
    with tempfile.TemporaryDirectory(prefix="bindonce-guard-") as directory:
        path = os.path.join(directory, "broker.sock")
        broker = subprocess.Popen([options.binary, "serve", "--socket", path], stderr=subprocess.PIPE, text=True)
        for line in broker.stderr:
            if "broker serves" in line:
                break
        connection, listener, entry = claim(path, "web=127.0.0.1:0,backlog=128")
        host, port = entry["bound"].rsplit(":", 1)
        away, refused = [], 0
        for number in range(options.rounds):
            begun = time.perf_counter_ns()
            end(listener, number % 3)
            while not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                if time.perf_counter_ns() - begun > 10**10:
                    sys.exit("the listener does not come back")
            away.append((time.perf_counter_ns() - begun) / 1e3)
            try:
                socket.create_connection((host, int(port)), timeout=5).close()
            except OSError:
                refused += 1
        connection.close()
        broker.terminate()
        log = broker.stderr.read()
        broker.wait()
    away.sort()
    result = {
        "rounds": options.rounds, "load": round(os.getloadavg()[0], 2),
        "without_listen_us": {
            "p50": round(away[len(away) // 2], 1), "p99": round(away[len(away) * 99 // 100], 1), "longest": round(away[-1], 1)},
        "connections_failed_after": refused,
        "log_lines": log.count("was made to listen again"),
    }
    print(json.dumps(result, indent=2))
    sys.exit(1 if refused or result["without_listen_us"]["p99"] > 1000 else 0)


if __name__ == "__main__":
    main()

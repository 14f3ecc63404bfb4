#!/usr/bin/env python3
"""Claim one listener from bindonce: client.py SOCKET ADDRESS PORT"""
import array, json, socket, sys

path, address, port = sys.argv[1:4]
broker = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
broker.settimeout(30)
broker.connect(path)
request = {"jsonrpc": "2.0", "id": 1, "method": "bind", "params": [{"address": address, "port": int(port)}]}
broker.sendall(json.dumps(request).encode())
text, descriptors = b"", array.array("i")
while not text.endswith(b"\n"):
    data, rights, flags, _ = broker.recvmsg(65536, socket.CMSG_SPACE(253 * descriptors.itemsize))
    if not data or flags & socket.MSG_CTRUNC:
        sys.exit("the reply is cut off")
    text += data
    for _, _, payload in rights:
        descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
reply = json.loads(text)
if "error" in reply:
    sys.exit("{message} ({code})".format(**reply["error"]))
listener = socket.socket(fileno=descriptors[0])
print(reply["result"]["listeners"][0]["bound"], listener.getsockname())

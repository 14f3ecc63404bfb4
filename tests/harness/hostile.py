"""A program whose bind() is intercepted for one port, and that does its worst: hostile.py NAMED OTHER."""
import ctypes
import fcntl
import mmap
import os
import platform
import signal
import socket
import struct
import sys
import threading
import time

NAMED, OTHER = int(sys.argv[1]), int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)


def address(port):
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, bytes([127, 0, 0, 1]))


def inode(one):
    return os.fstat(one.fileno()).st_ino


def rewrites():
    """The address changes while bind() is under way."""
    memory = ctypes.create_string_buffer(address(NAMED), 16)
    ends = threading.Event()

    def change():
        while not ends.is_set():
            ctypes.memmove(memory, address(OTHER), 16)
            ctypes.memmove(memory, address(NAMED), 16)

    thread = threading.Thread(target=change)
    thread.start()
    for _ in range(300):
        one = socket.socket()
        # The other port is bound by no two at once.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if libc.bind(one.fileno(), memory, 16) == 0:
            port = one.getsockname()[1]
            assert (inode(one) == inode(server)) == (port == NAMED), port
        one.close()
    ends.set()
    thread.join()


def floods():
    """Many children bind at once, and half of them are killed in the middle of it."""
    children = []
    for _ in range(40):
        child = os.fork()
        if child == 0:
            while True:
                one = socket.socket()
                one.bind(("127.0.0.1", NAMED))
                one.close()
        children.append(child)
    time.sleep(0.3)
    for child in children:
        os.kill(child, signal.SIGKILL)
    for child in children:
        os.waitpid(child, 0)


def thousand():
    """A thousand children that are there at once bind at once: each has the socket, and none waits for ever."""
    waiting, go = os.pipe()
    children = []
    for _ in range(1000):
        child = os.fork()
        if child == 0:
            os.close(go)
            os.read(waiting, 1)
            one = socket.socket()
            try:
                one.bind(("127.0.0.1", NAMED))
                os._exit(0 if inode(one) == inode(server) else 1)
            except OSError as error:
                os._exit(error.errno)
        children.append(child)
    os.close(waiting)
    os.close(go)
    outcomes = {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children}
    assert outcomes == {0}, outcomes


def i386():
    """The same call by its number for i386; the inode of what comes of it."""
    if platform.machine() != "x86_64":
        return "none"
    code = bytes.fromhex("53 89f8 89f3 4189c8 89d1 4489c2 cd80 5b c3")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        map_32bit = 0x40
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | map_32bit
        everything = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        page = mmap.mmap(-1, 4096, flags=flags, prot=everything)
        page[: len(code)] = code
        page[2048:2064] = address(NAMED)
        at = ctypes.addressof(ctypes.c_char.from_buffer(page))
        call = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int] * 4)(at)
        found = []
        for through in ("socketcall", "bind"):
            one = socket.socket()
            if through == "bind":
                result = call(361, one.fileno(), at + 2048, 16)
            else:
                page[3072:3084] = struct.pack("=III", one.fileno(), at + 2048, 16)
                result = call(102, 2, at + 3072, 0)
            found.append(str(inode(one)) if result == 0 else f"error {result}")
        os.write(writing, ("none" if "error -38" in found else found[0] if found[0] == found[1] else str(found)).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    # A kernel without it ends the child.
    return os.read(reading, 4096).decode() or "none"


def stalls():
    """Addresses in memory that nobody fills: each look at one is given up, and after three there is none."""
    faults = libc.syscall({"x86_64": 323, "aarch64": 282}.get(platform.machine(), -1), os.O_CLOEXEC)
    if faults < 0:
        return "none"
    page = mmap.mmap(-1, 4096)
    at = ctypes.addressof(ctypes.c_char.from_buffer(page))
    api, missing = 0xAA, 1
    try:
        fcntl.ioctl(faults, 0xC018AA3F, bytearray(struct.pack("=QQQ", api, 0, 0)))
        fcntl.ioctl(faults, 0xC020AA00, bytearray(struct.pack("=QQQQ", at, 4096, missing, 0)))
    except OSError:
        return "none"
    sockets = [socket.socket() for _ in range(4)]
    failed = [libc.bind(one.fileno(), ctypes.c_void_p(at), 16) for one in sockets[:3]]
    return str(failed + [libc.bind(sockets[3].fileno(), address(NAMED), 16)])


server = socket.socket()
server.bind(("127.0.0.1", NAMED))
server.listen(511)
for worst in (rewrites, floods, thousand):
    worst()
    print(worst.__name__, "is over", flush=True)
# What the kernel refuses it refuses here too: no memory, no socket, no descriptor.
for number, memory, length in [(server.fileno(), 8, 16), (0, address(NAMED), 16), (999, address(NAMED), 16)]:
    assert libc.bind(number, memory, length) == -1
spare = socket.socket()
assert libc.bind(spare.fileno(), address(NAMED), -1) == -1
print("did its worst; i386", i386() + "; stalled", stalls(), flush=True)
signal.pause()

"""Binds and listens by io_uring (Linux 6.11), so by no system call of these names, on 127.0.0.1 at the port that it is given; and by
the calls, at a port that the kernel chooses. Says `uring bound` or, with the reason, `uring none`."""
import ctypes, mmap, os, socket, struct, sys, time

libc = ctypes.CDLL(None, use_errno=True)
SETUP, ENTER, BIND, LISTEN = 425, 426, 56, 57


class Ring:
    def __init__(self):
        params = ctypes.create_string_buffer(120)
        self.fd = libc.syscall(SETUP, 4, params)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "io_uring_setup")
        words = struct.unpack("30I", params.raw)
        entries, completions = words[0], words[1]
        self.sq, self.cq = words[10:20], words[20:30]
        # As large as each of them needs; offsets as in linux/io_uring.h.
        self.submissions = mmap.mmap(self.fd, self.sq[6] + entries * 4, offset=0)
        self.completions = mmap.mmap(self.fd, self.cq[5] + completions * 16, offset=0x8000000)
        self.entries = mmap.mmap(self.fd, entries * 64, offset=0x10000000)

    def do(self, opcode, fd, address=0, length=0, address2=0):
        """One operation, to its end; gives its result."""
        tail, = struct.unpack_from("I", self.submissions, self.sq[1])
        mask, = struct.unpack_from("I", self.submissions, self.sq[2])
        at = tail & mask
        struct.pack_into("BBHiQQIIQQQQ", self.entries, at * 64, opcode, 0, 0, fd, address2, address, length, 0, 7, 0, 0, 0)
        struct.pack_into("I", self.submissions, self.sq[6] + 4 * at, at)
        struct.pack_into("I", self.submissions, self.sq[1], tail + 1)
        if libc.syscall(ENTER, self.fd, 1, 1, 1, None, 0) < 0:
            raise OSError(ctypes.get_errno(), "io_uring_enter")
        head, = struct.unpack_from("I", self.completions, self.cq[0])
        mask, = struct.unpack_from("I", self.completions, self.cq[2])
        _, result, _ = struct.unpack_from("QiI", self.completions, self.cq[5] + 16 * (head & mask))
        struct.pack_into("I", self.completions, self.cq[0], head + 1)
        if result < 0:
            raise OSError(-result, os.strerror(-result))


one, other = socket.socket(), socket.socket()
# So that the next generation can bind it too.
one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
other.bind(("127.0.0.1", 0))
other.listen()
try:
    ring = Ring()
    address = struct.pack("=H2s4s8x", socket.AF_INET, struct.pack("!H", int(sys.argv[1])), socket.inet_aton("127.0.0.1"))
    place = ctypes.create_string_buffer(address, len(address))
    ring.do(BIND, one.fileno(), ctypes.addressof(place), 0, len(address))
    ring.do(LISTEN, one.fileno(), length=5)
    print("uring bound, other at", other.getsockname()[1], flush=True)
except OSError as error:
    print("uring none:", error, flush=True)
    time.sleep(1000)
if len(sys.argv) > 2:
    web = socket.socket()
    web.bind(("127.0.0.1", int(sys.argv[2])))
    web.listen()
time.sleep(1000)

"""What becomes of each odd way to bind and listen: neighbours.py DIRECTORY PORT... prints a line for each, `case NAME: OUTCOME`, in which no
port is. The same lines under bindonce and without show where they differ."""
import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys

DIRECTORY, PORTS = sys.argv[1], [int(port) for port in sys.argv[2:]]
libc = ctypes.CDLL(None, use_errno=True)
INET, INET6, UNIX, STREAM, DGRAM = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.SOCK_STREAM, socket.SOCK_DGRAM
CASES = []


def case(function):
    CASES.append(function)
    return function


def outcome(call, *words):
    """What it gives, or the name of its errno."""
    try:
        given = call(*words)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "done" if given is None else str(given)


def raw(number, address, length=None):
    """bind(2) of these bytes, as long as said."""
    memory = ctypes.create_string_buffer(address, len(address))
    done = libc.bind(number, memory, ctypes.c_uint(len(address) if length is None else length & 0xFFFFFFFF))
    return "done" if done == 0 else errno.errorcode[ctypes.get_errno()]


def ipv4(port, host="127.0.0.1"):
    return struct.pack("=H", INET) + struct.pack("!H4s8x", port, socket.inet_aton(host))


def ipv6(port, host="::1", scope=0):
    return struct.pack("=H", INET6) + struct.pack("!HI16s", port, 0, socket.inet_pton(INET6, host)) + struct.pack("=I", scope)


def inode(one):
    return os.fstat(one if isinstance(one, int) else one.fileno()).st_ino


def at(one, port):
    """Where it is bound, without the port."""
    name = one.getsockname()
    return f"{name[0]} {'same' if name[1] == port else 'other'} port" if isinstance(name, tuple) else repr(name).replace(DIRECTORY, "DIRECTORY").replace(os.path.basename(DIRECTORY), "HERE")


def bound(port, family=INET, host="127.0.0.1", kind=STREAM):
    one = socket.socket(family, kind)
    one.bind((host, port))
    return one


def answers(port, host="127.0.0.1", family=INET):
    """Whether a client reaches it."""
    client = socket.socket(family)
    client.settimeout(2)
    return outcome(client.connect, (host, port))


@case
def name_at_once(port):
    one = bound(port)
    return at(one, port), outcome(one.listen), at(one, port)


@case
def bind_twice(port):
    one = bound(port)
    return outcome(one.bind, ("127.0.0.1", port)), outcome(one.bind, ("127.0.0.1", 0)), outcome(one.bind, ("0.0.0.0", port)), at(one, port)


@case
def bind_of_nothing(port):
    closed = os.dup(0)
    os.close(closed)
    file = os.open("/dev/null", os.O_RDONLY)
    path = os.open("/dev/null", os.O_PATH)
    return raw(closed, ipv4(port)), raw(-1, ipv4(port)), raw(file, ipv4(port)), raw(path, ipv4(port)), outcome(os.close, file), outcome(os.close, path)


def each(family, all_of, say):
    """What is said of each, with a socket of its own."""
    said = []
    for what in all_of:
        with socket.socket(family) as one:
            said.append(say(one, what))
    return said


@case
def lengths(port):
    address = ipv4(port).ljust(4096, bytes(1))
    return each(INET, (-1, 0, 1, 2, 15, 16, 17, 28, 128, 129, 4096), lambda one, length: f"{length} {raw(one.fileno(), address, length)}")


@case
def lengths_ipv6(port):
    address = ipv6(port).ljust(200, bytes(1))
    return each(INET6, (0, 16, 23, 24, 27, 28, 128, 129), lambda one, length: f"{length} {raw(one.fileno(), address, length)}")


@case
def wrong_families(port):
    four, six, again = socket.socket(), socket.socket(INET6), socket.socket()
    unspecified = bytes(2) + ipv4(port, "0.0.0.0")[2:]
    return (raw(four.fileno(), ipv6(port)), raw(six.fileno(), ipv4(port)), raw(four.fileno(), bytes(2) + ipv4(port)[2:]),
            raw(again.fileno(), unspecified), at(again, port), raw(six.fileno(), struct.pack("=H", UNIX) + b"/x\0".ljust(26, b"\0")))


@case
def bad_memory(port):
    one = socket.socket()
    done = libc.bind(one.fileno(), ctypes.c_void_p(8), 16)
    return "done" if done == 0 else errno.errorcode[ctypes.get_errno()]


@case
def port_0(port):
    one = bound(0)
    return outcome(one.listen), one.getsockname()[1] != 0, answers(one.getsockname()[1])


@case
def listen_without_bind(port):
    one = socket.socket()
    return outcome(one.listen), one.getsockname()[1] != 0


@case
def connect_without_bind(port):
    server, client = bound(0), socket.socket()
    server.listen()
    return outcome(client.connect, server.getsockname())


@case
def connect_after_port_0(port):
    server, client = bound(0), bound(0)
    server.listen()
    return outcome(client.connect, server.getsockname())


@case
def flags_kept(port):
    one = socket.socket(INET, STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    one.bind(("127.0.0.1", port))
    flags = fcntl.fcntl(one, fcntl.F_GETFD), fcntl.fcntl(one, fcntl.F_GETFL) & os.O_NONBLOCK
    one.listen()
    return *flags, outcome(one.accept), outcome(one.setblocking, True), fcntl.fcntl(one, fcntl.F_GETFL) & os.O_NONBLOCK


@case
def flags_kept_without(port):
    one = socket.socket()
    os.set_inheritable(one.fileno(), True)
    one.bind(("127.0.0.1", port))
    return fcntl.fcntl(one, fcntl.F_GETFD), fcntl.fcntl(one, fcntl.F_GETFL) & os.O_NONBLOCK


@case
def owner_of_signals(port):
    one = socket.socket()
    fcntl.fcntl(one, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(one, 10, signal.SIGUSR2)  # F_SETSIG
    fcntl.fcntl(one, fcntl.F_SETFL, os.O_ASYNC)
    one.bind(("127.0.0.1", port))
    return fcntl.fcntl(one, fcntl.F_GETOWN) == os.getpid(), fcntl.fcntl(one, 11) == signal.SIGUSR2, bool(fcntl.fcntl(one, fcntl.F_GETFL) & os.O_ASYNC)


OPTIONS = {
    "SO_REUSEADDR": (1, 2, 1), "SO_REUSEPORT": (1, 15, 1), "SO_KEEPALIVE": (1, 9, 1), "SO_DONTROUTE": (1, 5, 1), "SO_RCVBUF": (1, 8, 30000),
    "SO_SNDBUF": (1, 7, 30000), "SO_RCVLOWAT": (1, 18, 7), "SO_PRIORITY": (1, 12, 3), "SO_MARK": (1, 36, 9), "SO_OOBINLINE": (1, 10, 1),
    "SO_INCOMING_CPU": (1, 49, 1), "SO_BUSY_POLL": (1, 46, 5), "SO_TIMESTAMP": (1, 29, 1), "SO_ZEROCOPY": (1, 60, 1),
    "SO_LINGER": (1, 13, struct.pack("ii", 1, 5)), "SO_RCVTIMEO": (1, 20, struct.pack("qq", 5, 0)), "SO_SNDTIMEO": (1, 21, struct.pack("qq", 6, 0)),
    "IP_TOS": (0, 1, 16), "IP_TTL": (0, 2, 33), "IP_MTU_DISCOVER": (0, 10, 2), "IP_RECVERR": (0, 11, 1), "IP_MINTTL": (0, 21, 7),
    "IP_PKTINFO": (0, 8, 1), "IP_RECVTOS": (0, 13, 1), "IP_RECVTTL": (0, 12, 1), "IP_RECVORIGDSTADDR": (0, 20, 1),
}
OF_TCP = {
    "TCP_NODELAY": (6, 1, 1), "TCP_MAXSEG": (6, 2, 900), "TCP_CORK": (6, 3, 1), "TCP_KEEPIDLE": (6, 4, 77), "TCP_KEEPINTVL": (6, 5, 33), "TCP_KEEPCNT": (6, 6, 4),
    "TCP_SYNCNT": (6, 7, 3), "TCP_LINGER2": (6, 8, 9), "TCP_DEFER_ACCEPT": (6, 9, 7), "TCP_WINDOW_CLAMP": (6, 10, 20000),
    "TCP_CONGESTION": (6, 13, b"reno"), "TCP_THIN_LINEAR_TIMEOUTS": (6, 16, 1), "TCP_USER_TIMEOUT": (6, 18, 1234), "TCP_FASTOPEN": (6, 23, 5),
    "TCP_NOTSENT_LOWAT": (6, 25, 4096), "TCP_SAVE_SYN": (6, 27, 1),
}
OF_IPV6 = {
    "IPV6_V6ONLY": (41, 26, 1), "IPV6_UNICAST_HOPS": (41, 16, 21), "IPV6_RECVPKTINFO": (41, 49, 1), "IPV6_TCLASS": (41, 67, 16), "IPV6_RECVTCLASS": (41, 66, 1),
    "IPV6_RECVHOPLIMIT": (41, 51, 1), "IPV6_MTU_DISCOVER": (41, 23, 2), "IPV6_RECVERR": (41, 25, 1), "IPV6_RECVORIGDSTADDR": (41, 74, 1), "IPV6_AUTOFLOWLABEL": (41, 70, 1),
}
OF_UDP = {"UDP_GRO": (17, 104, 1), "UDP_SEGMENT": (17, 103, 1200), "SO_BROADCAST": (1, 6, 1), "IP_MULTICAST_TTL": (0, 33, 4), "IP_MULTICAST_LOOP": (0, 34, 0), "SO_RXQ_OVFL": (1, 40, 1)}


def options(one, port, host, table, after=lambda one: None):
    """Each is set before the bind; those that the socket has otherwise afterwards."""
    def read(name):
        level, option, value = table[name]
        return outcome(one.getsockopt, level, option, 16 if isinstance(value, bytes) else 4)
    failed = {name: said for name, (level, option, value) in table.items() if (said := outcome(one.setsockopt, level, option, value)) != "done"}
    before = {name: read(name) for name in table}
    one.bind((host, port))
    after(one)
    lost = [name for name in table if read(name) != before[name]]
    return "refused " + repr(failed), "lost " + " ".join(lost)


@case
def options_tcp(port):
    return options(socket.socket(), port, "127.0.0.1", {**OPTIONS, **OF_TCP})


@case
def options_tcp_listening(port):
    return options(socket.socket(), port, "127.0.0.1", {**OPTIONS, **OF_TCP}, lambda one: one.listen())


@case
def options_udp(port):
    return options(socket.socket(INET, DGRAM), port, "127.0.0.1", {**OPTIONS, **OF_UDP})


@case
def options_tcp_ipv6(port):
    return options(socket.socket(INET6), port, "::", {**OF_IPV6, **OF_TCP})


@case
def options_udp_ipv6(port):
    return options(socket.socket(INET6, DGRAM), port, "::1", OF_IPV6)


@case
def options_of_a_claim(port):
    # At the address of another host IP_TRANSPARENT is for clients.
    return options(socket.socket(), port, "0.0.0.0", {"IP_FREEBIND": (0, 15, 1), "IP_TRANSPARENT": (0, 19, 1)})


@case
def option_of_device(port):
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    one.bind(("127.0.0.1", port))
    return one.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)


@case
def filter_of_packets(port):
    code = struct.pack("=HBBI", 6, 0, 0, 0xFFFF)
    memory = ctypes.create_string_buffer(code, 8)
    program = struct.pack("@HP", 1, ctypes.addressof(memory))
    one = socket.socket(INET, DGRAM)
    one.setsockopt(1, 26, program)  # SO_ATTACH_FILTER
    one.bind(("127.0.0.1", port))
    return libc.getsockopt(one.fileno(), 1, 26, None, ctypes.byref(ctypes.c_int(0)))


@case
def multipath(port):
    one = socket.socket(INET, STREAM, 262)
    one.bind(("127.0.0.1", port))
    return one.getsockopt(1, 38), outcome(one.listen)


@case
def v6only_after_bind(port):
    one = bound(port, INET6, "::")
    return outcome(one.setsockopt, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1), one.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


@case
def both_families(port):
    six, four = socket.socket(INET6), socket.socket()
    six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return outcome(six.bind, ("::", port)), outcome(four.bind, ("0.0.0.0", port)), outcome(six.listen), outcome(four.listen), answers(port), answers(port, "::1", INET6)


@case
def dual_stack_then_ipv4(port):
    six, four = bound(port, INET6, "::"), socket.socket()
    six.listen()
    return outcome(four.bind, ("0.0.0.0", port)), at(four, port), outcome(four.listen)


@case
def mapped(port):
    one = bound(port, INET6, "::ffff:127.0.0.1")
    return at(one, port), outcome(one.listen), answers(port)


@case
def scopes(port):
    def say(one, where):
        host, scope = where
        return f"{host}%{scope} {raw(one.fileno(), ipv6(port, host, scope))} {one.getsockname()[3]}"
    return each(INET6, (("::1", 1), ("::1", 99), ("::", 1), ("fe80::1", 0), ("fe80::1", 99)), say)


@case
def not_local(port):
    one, six = socket.socket(), socket.socket(INET6)
    return outcome(one.bind, ("192.0.2.1", port)), outcome(six.bind, ("2001:db8::1", port)), outcome(one.bind, ("255.255.255.255", port))


@case
def reuseport_programs(port):
    said = []
    for before in (True, False):
        one = socket.socket()
        one.setsockopt(1, socket.SO_REUSEPORT, 1)
        memory = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0), 8)
        program = struct.pack("@HP", 1, ctypes.addressof(memory))
        if before:
            said.append(outcome(one.setsockopt, 1, 51, program))  # SO_ATTACH_REUSEPORT_CBPF
        one.bind(("127.0.0.1", port))
        if not before:
            said.append(outcome(one.setsockopt, 1, 51, program))
        said.append(outcome(one.listen))
        one.close()
    return said


@case
def reuseport_many(port):
    all_of = []
    for _ in range(4):
        one = socket.socket()
        one.setsockopt(1, socket.SO_REUSEPORT, 1)
        one.bind(("127.0.0.1", port))
        one.listen()
        all_of.append(one)
    return answers(port), len({inode(one) for one in all_of})


@case
def closed_and_bound_again(port):
    said = []
    for _ in range(3):
        one = socket.socket()
        said += [outcome(one.bind, ("127.0.0.1", port)), outcome(one.listen), answers(port)]
        one.close()
    return said


@case
def same_address_twice(port):
    one, other = bound(port), socket.socket()
    one.listen()
    return outcome(other.bind, ("127.0.0.1", port)), inode(one) == inode(other)


@case
def copies(port):
    one = socket.socket()
    two, three = one.dup(), os.dup2(one.fileno(), 77, inheritable=False)
    two.bind(("127.0.0.1", port))
    return at(one, port), inode(one) == inode(two) == inode(three), outcome(one.listen), outcome(os.close, 77), answers(port)


def in_child(function):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, repr(function()).encode())
        except BaseException as error:
            os.write(writing, repr(error).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as end:
        return end.read().decode()


@case
def bound_by_a_child(port):
    """A socket of the parent's that a child binds."""
    one = socket.socket()
    said = in_child(lambda: (outcome(one.bind, ("127.0.0.1", port)), outcome(one.listen), at(one, port)))
    return said, at(one, port)


@case
def passed_and_bound(port):
    """A socket that another process has got by SCM_RIGHTS, and binds."""
    ours, theirs = socket.socketpair()
    one = socket.socket()
    socket.send_fds(ours, [b"x"], [one.fileno()])

    def child():
        _, fds, *_ = socket.recv_fds(theirs, 1, 1)
        got = socket.socket(fileno=fds[0])
        return outcome(got.bind, ("127.0.0.1", port)), outcome(got.listen), at(got, port)

    return in_child(child), at(one, port)


@case
def bound_and_passed(port):
    one = bound(port)
    one.listen()
    return in_child(lambda: (at(one, port), outcome(socket.socket(fileno=os.dup(one.fileno())).listen)))


@case
def spawned(port):
    """A child by vfork(2) and execve(2), and its own child."""
    script = f"import socket,os; s=socket.socket(); s.bind(('127.0.0.1',{port})); s.listen(); print(s.getsockname()[1]=={port})"
    first = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip()
    again = subprocess.run(["sh", "-c", f'"{sys.executable}" -c "{script}"; :'], capture_output=True, text=True).stdout.strip()
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", script.replace("print", "exit(0) if").replace("==" + str(port) + ")", f"=={port}) else 1")], os.environ)
    return first, again, os.waitpid(pid, 0)[1]


def unix(text, kind=STREAM):
    one = socket.socket(UNIX, kind)
    return outcome(one.bind, text), one


@case
def unix_path(port):
    said, one = unix(f"{DIRECTORY}/app.sock")
    return said, at(one, 0), outcome(one.listen), outcome(one.bind, f"{DIRECTORY}/other")


@case
def unix_again(port):
    os.path.exists(f"{DIRECTORY}/app.sock") and os.unlink(f"{DIRECTORY}/app.sock")
    said, one = unix(f"{DIRECTORY}/app.sock")
    client = socket.socket(UNIX)
    return said, outcome(one.listen), outcome(client.connect, f"{DIRECTORY}/app.sock"), os.path.exists(f"{DIRECTORY}/app.sock")


@case
def unix_relative(port):
    before = os.getcwd()
    os.chdir(DIRECTORY)
    said = []
    try:
        for text in ("app.sock", "./app.sock", ".//app.sock", f"../{os.path.basename(DIRECTORY)}/app.sock"):
            os.path.exists("app.sock") and os.unlink("app.sock")
            done, one = unix(text)
            client = socket.socket(UNIX)
            said += [done, at(one, 0), outcome(one.listen), outcome(client.connect, f"{DIRECTORY}/app.sock"), os.path.exists("app.sock")]
            one.close()
    finally:
        os.chdir(before)
    return said


@case
def unix_exists(port):
    with open(f"{DIRECTORY}/file", "w"):
        pass
    return unix(f"{DIRECTORY}/file")[0], unix(f"{DIRECTORY}/none/app.sock")[0], unix(f"{DIRECTORY}/file/app.sock")[0]


@case
def unix_other_types(port):
    said = []
    for kind in (socket.SOCK_SEQPACKET, DGRAM):
        os.path.exists(f"{DIRECTORY}/app.sock") and os.unlink(f"{DIRECTORY}/app.sock")
        done, one = unix(f"{DIRECTORY}/app.sock", kind)
        said += [done, outcome(one.listen)]
        one.close()
    return said


@case
def unix_mode(port):
    os.path.exists(f"{DIRECTORY}/app.sock") and os.unlink(f"{DIRECTORY}/app.sock")
    before = os.umask(0o027)
    said, one = unix(f"{DIRECTORY}/app.sock")
    os.umask(before)
    stat = os.stat(f"{DIRECTORY}/app.sock")
    return said, oct(stat.st_mode), stat.st_uid == os.geteuid()


@case
def unix_in_a_root_of_its_own(port):
    if os.geteuid() != 0:
        return "not tried"
    os.makedirs(f"{DIRECTORY}/root{DIRECTORY}", exist_ok=True)

    def child():
        os.chroot(f"{DIRECTORY}/root")
        os.chdir("/")
        return unix(f"{DIRECTORY}/app.sock")[0], unix("other.sock")[0]

    return in_child(child)


@case
def unix_lengths(port):
    said = []
    path = f"{DIRECTORY}/a".encode()
    for length in (0, 1, 2, 3, 110, 111, 128, 129):
        one = socket.socket(UNIX)
        memory = (struct.pack("=H", UNIX) + path).ljust(256, b"\0")
        said.append(f"{length} {raw(one.fileno(), memory, length)}")
        one.close()
        for left in (f"{DIRECTORY}/a", "/" ):
            left != "/" and os.path.exists(left) and os.unlink(left)
    said.append(unix(f"{DIRECTORY}/".ljust(108, "x"))[0])
    return said


@case
def unix_abstract(port):
    said = []
    for name in (b"\0neighbour", b"\0neighbour\0", b"\0neighbour\0\0x", b"\0\xff\xfe", b"\0", b"\0" + b"n".ljust(107, b"\0")):
        one, client = socket.socket(UNIX), socket.socket(UNIX)
        said.append((outcome(one.bind, name), outcome(one.getsockname), outcome(one.listen), outcome(client.connect, name)))
        one.close()
    return said


@case
def datagrams(port):
    one = bound(port, kind=DGRAM)
    client = socket.socket(INET, DGRAM)
    client.sendto(b"hello", ("127.0.0.1", port))
    one.settimeout(2)
    return one.recv(10), outcome(one.listen)


@case
def waits_for_events(port):
    one = socket.socket()
    poll = select.epoll()
    poll.register(one.fileno(), select.EPOLLIN)
    one.bind(("127.0.0.1", port))
    one.listen()
    said = answers(port)
    return said, [events for _, events in poll.poll(2)], outcome(poll.unregister, one.fileno())


@case
def without_a_right(port):
    if os.geteuid() != 0:
        return "not tried"

    def child():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        said = outcome(socket.socket().bind, ("127.0.0.1", 81)), outcome(socket.socket().bind, ("127.0.0.1", port))
        # All rights in a user namespace of its own, and none in this network.
        alone = libc.unshare(0x10000000)
        return said, alone, outcome(socket.socket().bind, ("127.0.0.1", 81))

    return in_child(child)


@case
def backlog(port):
    one = bound(port)
    said = outcome(one.listen, 7), outcome(one.listen, 0), outcome(one.listen, -1)
    return said


@case
def shut_down(port):
    one = bound(port)
    one.listen()
    one.shutdown(socket.SHUT_RDWR)
    return outcome(one.listen), answers(port)


if __name__ == "__main__":
    server = bound(PORTS[0])
    server.listen()
    for function, port in zip(CASES, PORTS[1:], strict=False):
        try:
            said = function(port)
        except Exception as error:
            said = f"EXCEPTION {error!r}"
        print(f"case {function.__name__}: {said}", flush=True)
    print(f"all of {len(CASES)}", flush=True)
    signal.pause()

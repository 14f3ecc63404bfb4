"""As `ip vrf exec`: runs a command whose internet sockets are bound to a device from their creation (a program of
type CGROUP_SOCK at the cgroup). Usage: device.py CGROUP IFINDEX COMMAND..."""
import ctypes, os, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]

def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, 128)
    done = libc.syscall(BPF, command, buffer, len(attributes))
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return done

group, index = sys.argv[1], int(sys.argv[2])
# r2 = index; ((struct bpf_sock *)r1)->bound_dev_if = r2; return 1
code = [(0xB4, 2, 0, index), (0x63, 0x21, 0, 0), (0xB7, 0, 0, 1), (0x95, 0, 0, 0)]
code = b"".join(struct.pack("<BBhi", *one) for one in code)
instructions, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
# BPF_PROG_LOAD, BPF_PROG_TYPE_CGROUP_SOCK
program = bpf(5, struct.pack("<IIQQ", 9, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(licence)))
os.makedirs(group, exist_ok=True)
# BPF_PROG_ATTACH, BPF_CGROUP_INET_SOCK_CREATE
bpf(8, struct.pack("<IIII", os.open(group, os.O_RDONLY), program, 2, 0))
with open(f"{group}/cgroup.procs", "w") as procs:
    procs.write("0")
os.execvp(sys.argv[3], sys.argv[3:])

"""Attaches a program of somebody else: foreign.py CGROUP FLAGS [FROM TO PORT]

At connect4 of CGROUP, with the attach flags FLAGS (0: for itself alone, 2:
beside others). It rewrites connections to the address FROM into ones to TO and
PORT, as a load balancer in the kernel does. Prints the program's id.
"""
import ctypes, os, platform, socket, struct, sys

SYS_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
BPF_PROG_LOAD, BPF_PROG_ATTACH, BPF_OBJ_GET_INFO_BY_FD = 5, 8, 15
CGROUP_SOCK_ADDR, CGROUP_INET4_CONNECT = 18, 10
USER_IP4, USER_PORT = 4, 24
libc = ctypes.CDLL(None, use_errno=True)


def bpf(command, attribute):
    buffer = ctypes.create_string_buffer(attribute, len(attribute))
    result = libc.syscall(SYS_BPF, command, buffer, len(attribute))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf({command})")
    return result


def instruction(code, to=0, source=0, offset=0, immediate=0):
    return struct.pack("=BBhI", code, to | source << 4, offset, immediate & 0xFFFFFFFF)


def address(text):
    return struct.unpack("=I", socket.inet_aton(text))[0]


group, flags = sys.argv[1], int(sys.argv[2])
program = b""
if len(sys.argv) > 3:
    before, after, port = address(sys.argv[3]), address(sys.argv[4]), socket.htons(int(sys.argv[5]))
    program += instruction(0x61, 2, 1, USER_IP4)  # r2 = ctx->user_ip4
    program += instruction(0xB4, 3, immediate=before)  # w3 = before
    program += instruction(0x5D, 2, 3, 4)  # if r2 != r3 skip 4
    program += instruction(0xB4, 3, immediate=after)
    program += instruction(0x63, 1, 3, USER_IP4)  # ctx->user_ip4 = r3
    program += instruction(0xB4, 3, immediate=port)
    program += instruction(0x63, 1, 3, USER_PORT)  # ctx->user_port = r3
program += instruction(0xB7, 0, immediate=1)  # r0 = 1
program += instruction(0x95)  # exit

code = ctypes.create_string_buffer(program, len(program))
license = ctypes.create_string_buffer(b"GPL")
fd = bpf(BPF_PROG_LOAD, struct.pack(
    "=IIQQIIQII16sII",
    CGROUP_SOCK_ADDR, len(program) // 8, ctypes.addressof(code), ctypes.addressof(license),
    0, 0, 0, 0, 0, b"somebody_else", 0, CGROUP_INET4_CONNECT,
))
directory = os.open(group, os.O_RDONLY)
bpf(BPF_PROG_ATTACH, struct.pack("=IIII", directory, fd, CGROUP_INET4_CONNECT, flags))
info = ctypes.create_string_buffer(8)
bpf(BPF_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, len(info), ctypes.addressof(info)))
print(struct.unpack("=II", info.raw)[1])

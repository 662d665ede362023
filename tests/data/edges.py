"""Sockets as odd as applications make them: edges.py HOW ADDRESS PORT [MORE ...]

Connects in the way HOW and sends one request for /peer. Prints what came of it,
in which time, and the two ends as the application sees them.
"""
import ctypes, errno, mmap, os, select, socket, struct, sys, time

how, address, port, more = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]
SO_BINDTODEVICE, IPPROTO_MPTCP = 25, 262


def io_uring_connect(s, to):
    """One IORING_OP_CONNECT, by the system calls themselves (x86-64 and arm64 number them alike)."""
    setup, enter, op_connect, enter_getevents = 425, 426, 16, 1
    libc = ctypes.CDLL(None, use_errno=True)
    parameters = ctypes.create_string_buffer(120)
    ring = libc.syscall(setup, 4, parameters)
    if ring < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    words = struct.unpack("=30I", parameters.raw)
    sq_entries, cq_entries = words[0], words[1]
    sq_head, sq_tail, sq_mask, _, _, _, sq_array = words[10:17]
    cq_head, cq_tail, cq_mask, _, _, cqes = words[20:26]
    size = max(sq_array + 4 * sq_entries, cqes + 16 * cq_entries)
    rings = mmap.mmap(ring, size, mmap.MAP_SHARED, offset=0)
    entries = mmap.mmap(ring, 64 * sq_entries, mmap.MAP_SHARED, offset=0x10000000)
    target = struct.pack("=H", socket.AF_INET) + struct.pack("!H", to[1]) + socket.inet_aton(to[0]) + bytes(8)
    target = ctypes.create_string_buffer(target, 16)
    entries[:64] = struct.pack("=BBHiQQII32x", op_connect, 0, 0, s.fileno(), len(target), ctypes.addressof(target), 0, 0)
    rings[sq_array:sq_array + 4] = struct.pack("=I", 0)
    tail, = struct.unpack("=I", rings[sq_tail:sq_tail + 4])
    rings[sq_tail:sq_tail + 4] = struct.pack("=I", tail + 1)
    if libc.syscall(enter, ring, 1, 1, enter_getevents, None, 0) < 0:
        raise OSError(ctypes.get_errno(), "io_uring_enter")
    result, = struct.unpack("=i", rings[cqes + 8:cqes + 12])
    if result < 0:
        raise OSError(-result, os.strerror(-result))


def epoll_connect(s, to):
    s.setblocking(False)
    result = s.connect_ex(to)
    if result != errno.EINPROGRESS:
        raise OSError(result, "EINPROGRESS was expected")
    poll = select.epoll()
    poll.register(s, select.EPOLLOUT)
    if not poll.poll(5):
        raise TimeoutError("not writable")
    failed = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failed:
        raise OSError(failed, os.strerror(failed))
    s.setblocking(True)


def connect(how):
    protocol = IPPROTO_MPTCP if how == "mptcp" else 0
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM, protocol)
    s.settimeout(float(more[0]) if how == "timeout" else 5)
    if how == "bind":
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind((more[0], int(more[1])))
    if how == "device":
        s.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, more[0].encode())
    if how == "epoll":
        epoll_connect(s, (address, port))
    elif how == "io_uring":
        s.settimeout(None)
        io_uring_connect(s, (address, port))
    else:
        s.connect((address, port))
    s.settimeout(float(more[0]) if how == "timeout" else 5)
    return s


began = time.monotonic()
try:
    s = connect(how)
    print("local", *s.getsockname()[:2])
    print("peer", *s.getpeername()[:2])
    s.sendall(b"GET /peer HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n")
    answer = b""
    while chunk := s.recv(65536):
        answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    print("status", head.split(b" ")[1].decode() if head else "none")
    print("server sees", body.decode().strip())
except OSError as error:
    print("error", errno.errorcode.get(error.errno, type(error).__name__))
print("ms", round((time.monotonic() - began) * 1000))

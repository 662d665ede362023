"""Sockets that are used in unusual ways: sockets.py HOW ARGUMENT...; says what they show."""
import ctypes, errno, os, selectors, socket, struct, sys

MSG_FASTOPEN = 0x20000000
REQUEST = b"GET /peer HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n"


def answer(s):
    text = b""
    while chunk := s.recv(65536):
        text += chunk
    head, _, body = text.partition(b"\r\n\r\n")
    return head.split(b" ")[1].decode() + " " + body.decode().strip()


def again(nobody, service, own):
    """One socket: refused, then to the workload itself; and through the mesh, then to the workload itself."""
    s = socket.socket()
    s.settimeout(5)
    print("refused", errno.errorcode[s.connect_ex((nobody, 5432))])
    s.connect((own, 9080))
    print("peer", *s.getpeername())
    s.close()
    s = socket.socket()
    s.settimeout(5)
    s.connect((service, 80))
    print("peer", *s.getpeername())
    # AF_UNSPEC: as a new socket.
    if ctypes.CDLL(None, use_errno=True).connect(s.fileno(), struct.pack("=H14x", 0), 16):
        raise OSError(ctypes.get_errno(), "disconnect")
    s.connect((own, 9080))
    print("peer", *s.getpeername())


def fastopen(service, own):
    """The request travels with the SYN, twice."""
    for _ in range(2):
        s = socket.socket()
        s.settimeout(5)
        s.sendto(REQUEST, MSG_FASTOPEN, (service, 80))
        print("peer", *s.getpeername())
        # TCPI_OPT_SYN_DATA: the other end has taken what came with the SYN.
        print("with the SYN", bool(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5] & 32))
        print("status", answer(s))


def bound(own, port, service):
    """From a given port; waits for a line before it closes."""
    s = socket.socket()
    s.settimeout(5)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((own, int(port)))
    s.connect((service, 80))
    s.sendall(REQUEST.replace(b"Connection: close\r\n", b"").replace(b"/peer", b"/"))
    print("answer", s.recv(65536).partition(b"\r\n\r\n")[2].decode(), flush=True)
    sys.stdin.readline()


def share(port):
    """Four listeners of one port, which say who they are; a line of input closes the first."""
    chosen = selectors.DefaultSelector()
    for number in range(4):
        s = socket.socket(socket.AF_INET6)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        s.bind(("::", int(port)))
        s.listen()
        chosen.register(s, selectors.EVENT_READ, number)
    chosen.register(sys.stdin, selectors.EVENT_READ)
    first = True
    while True:
        for key, _ in chosen.select():
            if key.data is not None:
                c, _ = key.fileobj.accept()
                c.sendall(b"%d" % key.data)
                c.close()
            elif first:
                first = not os.read(0, 100)
                closed = next(k.fileobj for k in list(chosen.get_map().values()) if k.data == 0)
                chosen.unregister(closed)
                closed.close()
                print("closed", flush=True)


def count(address, port, times):
    """Who answers, and how often nobody does."""
    said = {}
    for _ in range(int(times)):
        try:
            with socket.create_connection((address, int(port)), 5) as s:
                who = s.recv(10).decode() or "end"
        except OSError as error:
            who = type(error).__name__
        said[who] = said.get(who, 0) + 1
    print(*(f"{who}:{times}" for who, times in sorted(said.items())))


globals()[sys.argv[1]](*sys.argv[2:])

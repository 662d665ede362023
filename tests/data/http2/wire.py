"""Frames of HTTP/2 as they are on the wire, right and wrong, and what may come back. Arguments:
address and authority of a server that answers every request; names of cases, where not all are wanted."""
import contextlib
import socket, struct, sys, time
from concurrent.futures import ThreadPoolExecutor

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 1
END_HEADERS, PADDED, PRIORITIZED = 4, 8, 0x20
PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = 1, 3, 5, 6, 7, 8, 9
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_STREAMS, WINDOW, MAX_FRAME = 1, 2, 3, 4, 5
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
host, authority, PATIENCE = sys.argv[1].rsplit(":", 1), sys.argv[2], int(sys.argv[3])
cases = []


class Wrong(Exception):
    pass


def case(name, what):
    def add(function):
        cases.append((name, what, function))
        return function
    return add


def number(value, bits, first):
    """RFC 7541, section 5.1."""
    if value < (1 << bits) - 1:
        return bytes([first | value])
    rest, out = value - (1 << bits) + 1, [first | ((1 << bits) - 1)]
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes(out + [rest])


def string(text):
    data = text.encode("latin-1")
    return number(len(data), 7, 0) + data


def literal(name, value, first=0):
    """Section 6.2: not indexed, unless `first` says so."""
    return bytes([first]) + string(name) + string(value)


def block(*more, method="GET", path="/", scheme="http", without=()):
    fields = [(":method", method), (":scheme", scheme), (":path", path), (":authority", authority)]
    return b"".join(literal(*field) for field in [*(f for f in fields if f[0] not in without), *more])


def settings(*values):
    return b"".join(struct.pack(">HI", *value) for value in values)


class Connection:
    def __init__(self, *own, greet=True):
        self.socket = socket.create_connection((host[0], int(host[1])), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = self.socket.makefile("rb")
        self.peer = {}
        self.held = None
        if greet:
            self.raw(PREFACE)
            self.send(SETTINGS, 0, 0, settings(*own))
            self.until(lambda kind, flags, stream, data: kind == SETTINGS and flags & ACK)

    @contextlib.contextmanager
    def at_once(self):
        """What is sent within goes in one piece: a server may answer a request as soon as it has its head, and what
        follows an answer is judged differently."""
        self.held = b""
        yield
        data, self.held = self.held, None
        self.raw(data)

    def raw(self, data):
        if self.held is not None:
            self.held += data
            return
        try:
            self.socket.sendall(data)
        except OSError:
            pass  # What it says is read all the same.

    def send(self, kind, flags, stream, data=b"", length=None):
        length = len(data) if length is None else length
        self.raw(length.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + data)

    def request(self, stream=1, fields=None, flags=END_STREAM | END_HEADERS, before=b""):
        self.send(HEADERS, flags, stream, before + (block() if fields is None else fields))

    def frame(self):
        """The next frame; None at the end of the connection."""
        try:
            head = self.reader.read(9)
            if len(head) < 9:
                return None
            data = self.reader.read(int.from_bytes(head[:3], "big"))
        except TimeoutError:
            raise
        except OSError:
            return None
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
        if kind == SETTINGS and not flags & ACK:
            self.peer.update(struct.iter_unpack(">HI", data))
            self.send(SETTINGS, ACK, 0)
        return kind, flags, stream, data

    def until(self, wanted):
        """The first frame that is wanted; wrong, if the end or nothing comes."""
        deadline, seen = time.time() + PATIENCE, []
        while time.time() < deadline:
            try:
                frame = self.frame()
            except TimeoutError:
                break
            if frame is None:
                raise Wrong(f"the connection ended after {seen}")
            if wanted(*frame):
                return frame
            seen.append(frame[:3] + (frame[3][:8].hex(),))
        raise Wrong(f"nothing came but {seen}")

    def answered(self, stream=1):
        return self.until(lambda kind, flags, of, data: kind == HEADERS and of == stream)

    def ended(self, stream=1):
        self.until(lambda kind, flags, of, data: kind in (DATA, HEADERS) and of == stream and flags & END_STREAM)

    def alive(self):
        self.send(PING, 0, 0, b"are here")
        self.until(lambda kind, flags, of, data: kind == PING and flags & ACK and data == b"are here")

    def connection_error(self, *codes):
        """It says goodbye with one of the codes, or just goes (RFC 9113, section 5.4.1)."""
        self.error(lambda kind, data: kind == GOAWAY and int.from_bytes(data[4:8], "big") in codes)

    def stream_error(self, *codes):
        """It ends the stream with one of the codes, or the connection, as it may (section 5.4.2)."""
        self.error(lambda kind, data: kind == GOAWAY and int.from_bytes(data[4:8], "big") in codes
                   or kind == RST_STREAM and int.from_bytes(data, "big") in codes)

    def error(self, wanted):
        try:
            self.until(lambda kind, flags, of, data: wanted(kind, data))
        except Wrong as wrong:
            if not str(wrong).startswith("the connection ended"):
                raise


def result(case):
    name, what, function = case
    try:
        function()
        return f"{name} ok"
    except (Wrong, OSError) as wrong:
        return f"{name} WRONG {what} - {wrong}"


def run():
    wanted = set(sys.argv[4:])
    with ThreadPoolExecutor(8) as pool:
        print(*pool.map(result, [case for case in cases if not wanted or case[0] in wanted]), sep="\n")

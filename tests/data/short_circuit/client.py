"""`client.py <scenario> <address>`: says what an application sees."""
import errno
import fcntl
import hashlib
import os
import select
import signal
import socket
import struct
import sys
import tempfile
import termios
import threading
import time

sys.path.insert(0, os.path.dirname(__file__))
from stream import exchange, read_exactly, read_line, send_by_both

SCENARIO, ADDRESS = sys.argv[1:3]
MiB = 1 << 20
# How many times longer than usual everything may take, as on an emulated machine.
PATIENCE = int(os.environ.get("UNDERMESH_PATIENCE", "1"))
SO_ZEROCOPY, MSG_ZEROCOPY = 60, 0x4000000
SIOCOUTQ = termios.TIOCOUTQ


def connect(command, blocking=False):
    """With a timeout, Python's sockets do not block: they wait by poll(2), as event loops do."""
    connection = socket.create_connection((ADDRESS, 80), timeout=60)
    if blocking:
        connection.settimeout(None)
    connection.sendall(command.encode() + b"\n")
    return connection


def exchanges():
    """Sixteen connections with writes of all sizes, one with writes of up to 64 MiB."""
    failed = []

    def one(seed, total, largest):
        try:
            connection = connect(f"exchange {seed} {total} {largest}")
            exchange(connection, seed, seed + 1, total, largest)
        except Exception as error:
            failed.append(f"connection {seed}: {error!r}")

    plans = [(10 * number, 2 * MiB, 1 << 17) for number in range(16)]
    plans.append((1000, 64 * MiB + 1, 64 * MiB))
    threads = [threading.Thread(target=one, args=plan) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("\n".join(failed) or "all equal")


def ten():
    """Ten megabytes each way at once."""
    connection = connect(f"exchange 1 {10 * MiB} {1 << 17}")
    exchange(connection, 1, 2, 10 * MiB, 1 << 17)
    print("equal")


def ten_by_splice():
    """The same, read by splice(2)."""
    connection = connect(f"exchange 1 {10 * MiB} {1 << 17}", blocking=True)
    read, write = os.pipe()

    def receive(count):
        return os.read(read, os.splice(connection.fileno(), write, count))

    exchange(connection, 1, 2, 10 * MiB, 1 << 17, receive)
    print("equal")


def stopped():
    """Writes without end to a reader that has stopped: must be told to wait, and go on in time."""
    connection = connect(f"stop {3000 * PATIENCE}")
    connection.setblocking(False)
    start, sent, chunk = time.monotonic(), 0, bytes(256 * 1024)
    waited = 0
    while time.monotonic() - start < 2 * PATIENCE:
        try:
            sent += connection.send(chunk)
        except BlockingIOError:
            told = time.monotonic()
            time.sleep(0.01)
            waited += time.monotonic() - told
    print("accepted", sent)
    print("waits", waited > PATIENCE)
    connection.settimeout(60)
    more = bytes(4 * MiB)
    connection.sendall(more)
    connection.shutdown(socket.SHUT_WR)
    print("all read", int(read_line(connection)) == sent + len(more))
    # The reader goes on after 3 s: nothing may wait for a retransmission that backs off.
    print("in time", time.monotonic() - start < 6 * PATIENCE)


def half_close():
    connection = connect("half-close")
    content = os.urandom(MiB)
    connection.sendall(content)
    connection.shutdown(socket.SHUT_WR)
    print("digest", read_line(connection).strip() == hashlib.sha256(content).hexdigest())
    answer = b""
    while chunk := connection.recv(1 << 16):
        answer += chunk
    print("answer", len(answer) == MiB)
    print("end once", connection.recv(1) == b"")


def stream():
    """Half a gigabyte as fast as it goes."""
    connection = connect("digest")
    digest, content = hashlib.sha256(), os.urandom(MiB)
    for _ in range(512):
        digest.update(content)
        connection.sendall(content)
    connection.shutdown(socket.SHUT_WR)
    print("whole", read_line(connection).strip() == digest.hexdigest())


def early():
    """Two writes at once: with TCP_DEFER_ACCEPT, before the server's socket exists."""
    wrong = 0
    for number in range(60):
        connection = socket.create_connection((ADDRESS, 81), timeout=60)
        connection.sendall(b"echo\n")
        first, second = b"A" * 100, b"B" * (1 + number * 50)
        connection.sendall(first)
        connection.sendall(second)
        wrong += read_exactly(connection, len(first + second)) != first + second
        connection.close()
    print("in order", wrong == 0)


def unread():
    """The server closes with bytes unread: writes end in an error soon, not in silence."""
    connection = connect("unread 200")
    connection.sendall(bytes(1000))
    time.sleep(0.5)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    start = time.monotonic()
    while time.monotonic() - start < 2:
        try:
            connection.sendall(bytes(1000))
            time.sleep(0.05)
        except (BrokenPipeError, ConnectionResetError):
            print("told True")
            return
    print("told False")


def recv_flags():
    """What recv, poll and ioctl give, line by line, to be compared with and without the mesh."""
    late = connect("late", blocking=True)
    print("waitall", late.recv(17, socket.MSG_WAITALL))
    late.send(b"x")
    late.close()

    late = connect("late", blocking=True)
    late.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
    poll = select.poll()
    poll.register(late, select.POLLIN)
    poll.poll(5000)
    print("lowat", len(late.recv(100, socket.MSG_PEEK)) >= 10)
    late.send(b"x")
    late.close()

    echo = connect("echo", blocking=True)
    echo.sendall(b"0123456789")
    print("peek", echo.recv(4, socket.MSG_PEEK), echo.recv(4))
    time.sleep(0.2)
    print("fionread", struct.unpack("i", fcntl.ioctl(echo, termios.FIONREAD, bytes(4)))[0])
    print("trunc", echo.recv(100, socket.MSG_TRUNC)[:0], end=" ")
    print("outq", struct.unpack("i", fcntl.ioctl(echo, SIOCOUTQ, bytes(4)))[0])
    echo.close()

    read, write = os.pipe()
    echo = connect("echo", blocking=True)
    echo.sendall(b"through a pipe")
    moved = os.splice(echo.fileno(), write, 14) if hasattr(os, "splice") else splice(echo, write)
    print("splice", os.read(read, moved))
    echo.close()

    # A signal with SA_RESTART during a blocking recv: it goes on.
    echo = connect("echo", blocking=True)
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.siginterrupt(signal.SIGALRM, False)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    threading.Timer(0.5, echo.sendall, [b"after the signal"]).start()
    print("restart", raw_recv(echo))
    echo.close()

    # A reset during a blocking recv.
    reset = connect("reset 300", blocking=True)
    print("reset", raw_recv(reset))
    reset.close()


def splice(connection, pipe):
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    return libc.splice(connection.fileno(), None, pipe, None, 14, 0)


def raw_recv(connection):
    """recv(2) itself: Python would call again by itself."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(100)
    count = libc.recv(connection.fileno(), buffer, 100, 0)
    return buffer.raw[:count] if count >= 0 else errno.errorcode[ctypes.get_errno()]


def zerocopy():
    connection = connect("count")
    connection.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    content = os.urandom(100_000)
    connection.sendall(content, MSG_ZEROCOPY)
    poll = select.poll()
    poll.register(connection, 0)
    print("completion", bool(poll.poll(5000)) and bool(connection.recvmsg(1, 1000, socket.MSG_ERRQUEUE)[1]))
    connection.shutdown(socket.SHUT_WR)
    print("arrived", read_line(connection).strip() == f"{len(content)} {hashlib.sha256(content).hexdigest()}")


def sendfile():
    connection = connect("count")
    digest, random = hashlib.sha256(), os.urandom(MiB - 8)
    with tempfile.TemporaryFile() as file:
        # No two pieces are equal: none may be missing, come twice or in the place of another.
        for number in range(1024):
            piece = struct.pack("=Q", number) + random
            digest.update(piece)
            file.write(piece)
        file.seek(0)
        sent = connection.sendfile(file)
    print("sent", sent)
    connection.shutdown(socket.SHUT_WR)
    print("arrived", read_line(connection).strip() == f"{sent} {digest.hexdigest()}")


def hundred():
    """A hundred words in ten seconds, then waits for the end."""
    connection = connect("echo")
    for _ in range(100):
        connection.sendall(b"still there?")
        if read_exactly(connection, 12) != b"still there?":
            print("wrong")
        time.sleep(0.1)
    print("hundred")
    try:
        print("ended" if connection.recv(1) == b"" else "more")
    except ConnectionResetError:
        print("ended")


def by_both():
    """Bytes come both handed over and by TCP, to the server and from it, while nobody reads."""
    connection = connect("by-both")
    read_exactly(connection, 6)
    print("open", flush=True)
    sys.stdin.readline()
    send_by_both(connection)
    print("sent", flush=True)
    print("server has", read_line(connection).strip(), flush=True)
    print("client has", read_line(connection).strip(), flush=True)


def once():
    connection = connect("echo")
    connection.sendall(b"1234567890")
    print("echo", read_exactly(connection, 10).decode())
    connection.close()


def churn():
    """Connections that end in all ways, many at once."""
    ended, wrong = [], []

    def one(number):
        connection = connect("echo")
        content = os.urandom(1 + number * 997 % 40_000)
        connection.sendall(content)
        how = number % 4
        if how == 0:
            connection.shutdown(socket.SHUT_WR)
            if read_exactly(connection, len(content)) != content or connection.recv(1):
                wrong.append(number)
        elif how == 1:
            # A reset, with bytes unread and under way.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif how == 2:
            # Closed with bytes unread, or before they come.
            read_exactly(connection, 1)
        connection.close()
        ended.append(number)

    def many(first):
        for number in range(first, 400, 8):
            one(number)

    threads = [threading.Thread(target=many, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("ended", len(ended), "wrong", wrong)


def calls():
    """A thousand questions of 100 bytes, with answers of 900."""
    connection = connect("rpc")
    for _ in range(1000):
        connection.sendall(bytes(100))
        read_exactly(connection, 900)
    print("calls 1000")
    connection.close()


def farewell():
    """Many small messages, and the server is the first to close."""
    connection = connect("farewell 1000")
    count = 0
    while chunk := connection.recv(1 << 16):
        count += len(chunk)
    print("farewell", count)
    connection.close()


def short(count=64):
    """Connections with one question each."""
    for _ in range(count):
        with socket.create_connection((ADDRESS, 82), timeout=60) as connection:
            connection.sendall(b"once")
            assert read_exactly(connection, 4) == b"once"
    print("short", count)


def thousands_of_short():
    short(6_000)


def lasting(count=1):
    """Connections that are opened one right after the other, with many questions each."""
    connections = [socket.create_connection((ADDRESS, 82), timeout=60) for _ in range(count)]
    for _ in range(100):
        for connection in connections:
            connection.sendall(b"more")
        for connection in connections:
            assert read_exactly(connection, 4) == b"more"
    for connection in connections:
        connection.close()
    print("lasting", count)


def lasting_after_short():
    # More at once than are tried.
    for _ in range(1_000):
        socket.create_connection((ADDRESS, 82), timeout=60).close()
    lasting()


def sixteen_lasting():
    # What is tried was used up by short connections just before.
    time.sleep(0.5)
    lasting(16)


globals()[SCENARIO.replace("-", "_")]()

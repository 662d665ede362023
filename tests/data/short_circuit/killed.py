"""Connections that one end of which is killed. `killed.py serve <port> <file>`: each connection
says in its first line what it is to see; what must wait does so until the file is there.
`killed.py <fill|bereft|read> <address>`: a client."""
import errno
import os
import select
import socket
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(__file__))
from stream import read_line

# Every byte says where in the stream it belongs.
LARGEST = 1 << 16
SCALE = bytes(range(251)) * (LARGEST // 251 + 2)
# Nobody takes more, where nothing has moved for so long.
STILL_S = 0.5
PATIENCE_S = 20


def part(position, count):
    start = position % 251
    return SCALE[start : start + count]


def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def fill(connection):
    """Sends until nobody takes more. Gives the number of bytes."""
    connection.setblocking(False)
    sent, moved = 0, time.monotonic()
    while time.monotonic() - moved < STILL_S:
        try:
            sent += connection.send(part(sent, LARGEST))
            moved = time.monotonic()
        except BlockingIOError:
            time.sleep(0.01)
    return sent


def drain(connection):
    """Reads to the end. Gives how much it was, whether it was the right bytes, and the end."""
    connection.settimeout(PATIENCE_S)
    count, right = 0, True
    while True:
        try:
            chunk = connection.recv(LARGEST)
        except OSError as error:
            return count, right, errno.errorcode.get(error.errno, type(error).__name__)
        if not chunk:
            return count, right, "EOF"
        right &= chunk == part(count, len(chunk))
        count += len(chunk)


def bereave(connection):
    """Waits until the other end has gone. Gives whether it hears of it, and what it gets for writing."""
    poll = select.poll()
    poll.register(connection, select.POLLIN | select.POLLRDHUP)
    heard = bool(poll.poll(PATIENCE_S * 1000))
    start = time.monotonic()
    while time.monotonic() - start < PATIENCE_S:
        try:
            connection.send(b"still there?")
        except BlockingIOError:
            pass
        except OSError as error:
            return heard, errno.errorcode[error.errno]
        time.sleep(0.01)
    return heard, "no error"


def serve(port, signal):
    listener = socket.create_server(("", port))

    def one(connection):
        command = read_line(connection).strip()
        if command == "swallow":
            while not os.path.exists(signal):
                time.sleep(0.01)
            say("got", *drain(connection))
        elif command == "pour":
            say("poured", fill(connection))
            time.sleep(60)
        elif command == "ignore":
            time.sleep(60)
        elif command == "be bereft":
            say("filled", fill(connection))
            say("told", *bereave(connection))

    while True:
        threading.Thread(target=one, args=listener.accept()[:1], daemon=True).start()


def client(what, address):
    connection = socket.create_connection((address, 80), PATIENCE_S)
    commands = {"fill": "swallow", "read": "pour", "bereft": "ignore", "idle": "be bereft"}
    connection.sendall(commands[what].encode() + b"\n")
    say("open")
    if what == "fill":
        say("filled", fill(connection))
        time.sleep(60)
    elif what == "bereft":
        say("filled", fill(connection))
        say("told", *bereave(connection))
    elif what == "read":
        sys.stdin.readline()
        say("got", *drain(connection))
    else:
        time.sleep(60)


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]), sys.argv[3])
else:
    client(*sys.argv[1:])

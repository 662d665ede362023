"""Bytes whose order can be checked, both ways at once."""
import hashlib
import random
import socket
import threading
import time


def read_exactly(connection, count):
    parts = []
    while count:
        chunk = connection.recv(min(count, 1 << 20))
        if not chunk:
            raise EOFError("the other end has closed")
        parts.append(chunk)
        count -= len(chunk)
    return b"".join(parts)


def read_line(connection):
    line = b""
    while not line.endswith(b"\n"):
        line += read_exactly(connection, 1)
    return line.decode()


def send_by_both(connection):
    """Half a line by the short-circuit, half by TCP: who wants to hear of its pages gets TCP."""
    connection.sendall(b"handed over, ")
    connection.setsockopt(socket.SOL_SOCKET, 60, 1)  # SO_ZEROCOPY
    connection.sendall(b"by TCP\n")


def exchange(connection, seed, other_seed, total, largest, receive=None):
    """Sends `total` bytes in writes of random sizes up to `largest`, while as many
    are read, by `receive`, with random pauses. Both ends check that what came is what was sent."""
    receive = receive or connection.recv
    sender = threading.Thread(target=send, args=(connection, seed, total, largest))
    sender.start()
    numbers, digest, left = random.Random(-other_seed), hashlib.sha256(), total
    while left:
        chunk = receive(min(left, numbers.randint(1, 1 << numbers.randint(1, 20))))
        if not chunk:
            raise EOFError(f"{left} bytes are missing")
        digest.update(chunk)
        left -= len(chunk)
        if numbers.random() < 0.002:
            time.sleep(numbers.random() / 100)
    theirs = read_exactly(connection, 32)
    sender.join()
    if theirs != digest.digest():
        raise ValueError("bytes were lost, changed or moved")


def send(connection, seed, total, largest):
    numbers, digest, left = random.Random(seed), hashlib.sha256(), total
    while left:
        size = min(left, numbers.randint(1, 1 << numbers.randint(1, largest.bit_length() - 1)))
        chunk = numbers.randbytes(size)
        digest.update(chunk)
        connection.sendall(chunk)
        left -= size
    connection.sendall(digest.digest())

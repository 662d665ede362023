"""A server of many habits. Each connection says in its first line what it is to see."""
import hashlib
import os
import random
import socket
import struct
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(__file__))
from stream import exchange, read_exactly, read_line, send_by_both

TCP_DEFER_ACCEPT = 9


def serve(connection):
    # Not blocking, but waiting by poll(2).
    connection.settimeout(60)
    command, *arguments = read_line(connection).split()
    numbers = [int(argument) for argument in arguments]
    if command == "exchange":
        seed, total, largest = numbers
        exchange(connection, seed + 1, seed, total, largest)
    elif command == "stop":
        # Reads nothing for a while, then everything; answers with the number of bytes.
        time.sleep(numbers[0] / 1000)
        count = 0
        while chunk := connection.recv(1 << 20):
            count += len(chunk)
        connection.sendall(f"{count}\n".encode())
    elif command == "half-close":
        # Reads to the end, then answers as much and closes.
        digest, count = hashlib.sha256(), 0
        while chunk := connection.recv(1 << 16):
            digest.update(chunk)
            count += len(chunk)
        connection.sendall(digest.hexdigest().encode() + b"\n" + bytes(count))
    elif command == "digest":
        # Reads to the end, and answers with the digest.
        digest = hashlib.sha256()
        while chunk := connection.recv(1 << 20):
            digest.update(chunk)
        connection.sendall(digest.hexdigest().encode() + b"\n")
    elif command == "unread":
        # Goes away with bytes unread.
        time.sleep(numbers[0] / 1000)
    elif command == "count":
        # Counts to the end of what comes, by plain recv.
        digest, count = hashlib.sha256(), 0
        while chunk := connection.recv(1 << 20):
            digest.update(chunk)
            count += len(chunk)
        connection.sendall(f"{count} {digest.hexdigest()}\n".encode())
    elif command == "by-both":
        connection.sendall(b"ready\n")
        connection.sendall(read_line(connection).encode())
        time.sleep(1)
        send_by_both(connection)
        connection.recv(1)
    elif command == "echo":
        while chunk := connection.recv(1 << 16):
            connection.sendall(chunk)
    elif command == "rpc":
        # Answers each 100 bytes with 900.
        while connection.recv(1, socket.MSG_PEEK):
            read_exactly(connection, 100)
            connection.sendall(bytes(900))
    elif command == "farewell":
        for _ in range(numbers[0]):
            connection.sendall(b"0123456789")
    elif command == "late":
        # Sends in three parts, with pauses, then waits.
        for part in (b"first ", b"second ", b"third"):
            connection.sendall(part)
            time.sleep(0.1)
        connection.recv(1)
    elif command == "reset":
        time.sleep(numbers[0] / 1000)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def one(connection):
    """Closes it also where the client is gone before its time."""
    with connection:
        try:
            serve(connection)
        except OSError as error:
            print(error, flush=True)


def echo(connection):
    with connection:
        while chunk := connection.recv(1 << 16):
            connection.sendall(chunk)


def listen(port, deferred=False, habit=one):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if deferred:
        listener.setsockopt(socket.IPPROTO_TCP, TCP_DEFER_ACCEPT, 5)
    listener.bind(("0.0.0.0", port))
    listener.listen(1024)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=habit, args=(connection,), daemon=True).start()


random.seed(1)
threading.Thread(target=listen, args=(7001, True), daemon=True).start()
threading.Thread(target=listen, args=(7002, False, echo), daemon=True).start()
listen(7000)

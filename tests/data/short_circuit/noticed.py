"""What an application can notice of a socket whose bytes may take the short-circuit, found out by trying; one a line, by the
names that `meshctl check` has for it.

`noticed.py mesh ADDRESS`: of a socket that is handed bytes, as a client of server.py.
`noticed.py map`: of one that only is in a map of sockets, where nothing is handed over.
"""
import ctypes
import fcntl
import os
import select
import socket
import struct
import sys
import termios
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)
SYS_BPF = 321
BPF_MAP_CREATE, BPF_MAP_UPDATE_ELEM, BPF_MAP_TYPE_SOCKHASH = 0, 2, 18
SPLICE_F_NONBLOCK = 2


def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, 120)
    result = libc.syscall(SYS_BPF, command, buffer, len(buffer))
    if result < 0:
        raise OSError(ctypes.get_errno(), "bpf")
    return result


class Mesh:
    def connect(self, command):
        connection = socket.create_connection((sys.argv[2], 80), 10)
        connection.sendall(command.encode() + b"\n")
        return connection


class Map:
    """The habits of server.py that are needed, on connections whose two ends are in one map of sockets."""

    def __init__(self):
        self.map = bpf(BPF_MAP_CREATE, struct.pack("IIIII", BPF_MAP_TYPE_SOCKHASH, 8, 4, 64, 0))
        self.count, self.ends = 0, []
        self.listener = socket.create_server(("127.0.0.1", 0))

    def connect(self, command):
        connection = socket.create_connection(self.listener.getsockname(), 10)
        accepted, _ = self.listener.accept()
        for end in (connection, accepted):
            self.count += 1
            key = ctypes.create_string_buffer(struct.pack("Q", self.count), 8)
            value = ctypes.create_string_buffer(struct.pack("I", end.fileno()), 4)
            place = (ctypes.addressof(key), ctypes.addressof(value))
            bpf(BPF_MAP_UPDATE_ELEM, struct.pack("IIQQQ", self.map, 0, *place, 0))
        threading.Thread(target=self.serve, args=(accepted, command), daemon=True).start()
        return connection

    def serve(self, accepted, command):
        if command == "echo":
            # Once: a recv that waits for more would return with nothing on room to write.
            accepted.sendall(accepted.recv(100))
            return self.ends.append(accepted)
        elif command == "by-both":
            accepted.sendall(b"ready\n")
            accepted.recv(100)
            accepted.sendall(b"handed over, by TCP\n")
        else:
            time.sleep(0.3)
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()


def readable(connection):
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    assert poll.poll(5000)


def echoed(place):
    connection = place.connect("echo")
    connection.sendall(b"12345")
    readable(connection)
    return connection


def fionread(place):
    return struct.unpack("i", fcntl.ioctl(echoed(place), termios.FIONREAD, bytes(4)))[0] == 5


def splice(place):
    _, write = os.pipe()
    connection = echoed(place)
    connection.setblocking(False)
    return libc.splice(connection.fileno(), None, write, None, 5, SPLICE_F_NONBLOCK) == 5


def whole(place):
    connection = place.connect("by-both")
    assert connection.recv(6) == b"ready\n"
    connection.sendall(b"go on\n")
    echo = connection.recv(6) if isinstance(place, Mesh) else b""
    # The server sends what comes both ways a second later.
    time.sleep(1.5 if echo else 0.3)
    return connection.recv(100) == b"handed over, by TCP\n"


def reset(place):
    connection = place.connect("reset 300")
    connection.settimeout(None)
    buffer = ctypes.create_string_buffer(1)
    count = libc.recv(connection.fileno(), buffer, 1, 0)
    return count < 0 and ctypes.get_errno() == 104  # ECONNRESET


place = Mesh() if sys.argv[1] == "mesh" else Map()
for name, looks_as_ever in (
    ("FIONREAD", fionread),
    ("splice(2)", splice),
    ("a read that is short, though more is there", whole),
    ("a blocking recv during a reset", reset),
):
    if not looks_as_ever(place):
        print(name)

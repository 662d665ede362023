"""`held.py serve <port>...`: echoes, and says how each connection ended.
`held.py hold <kind> <address> <port>`: one connection, `kind` of v4, v6 or mapped; echoes lines of its
standard input through it, and says how it ended."""
import errno
import os
import select
import socket
import sys
import threading


def end_of(connection, answer):
    """Polls, as event loops do, until the end; `answer` gets what has come."""
    while True:
        ready, _, _ = select.select([connection] + answer.inputs, [], [])
        if connection in ready:
            try:
                data = connection.recv(65536)
            except BlockingIOError:
                continue
            except OSError as error:
                return errno.errorcode[error.errno]
            if not data:
                return "EOF"
            answer.received(connection, data)
        for source in ready:
            if source is not connection:
                answer.read(connection, source)


def say(*words):
    """In one write: threads that end at the same time would mix their words otherwise."""
    os.write(1, (" ".join(words) + "\n").encode())


class Echo:
    inputs = []

    def received(self, connection, data):
        connection.sendall(data)


class Lines:
    inputs = [sys.stdin]

    def received(self, connection, data):
        say("echo", data.decode().strip())

    def read(self, connection, source):
        data = os.read(source.fileno(), 4096)
        if data:
            connection.sendall(data)
        else:
            self.inputs = []


def serve(port):
    listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)

    def one(connection, peer):
        with connection:
            say("ended", peer[0], end_of(connection, Echo()))

    while True:
        connection, peer = listener.accept()
        connection.setblocking(False)
        threading.Thread(target=one, args=(connection, peer), daemon=True).start()


def hold(kind, address, port):
    family = socket.AF_INET if kind == "v4" else socket.AF_INET6
    connection = socket.socket(family)
    connection.connect(("::ffff:" + address if kind == "mapped" else address, int(port)))
    connection.setblocking(False)
    say("open")
    say("ended", end_of(connection, Lines()))


if sys.argv[1] == "serve":
    for port in sys.argv[2:]:
        threading.Thread(target=serve, args=(int(port),)).start()
else:
    hold(*sys.argv[2:])

"""`soak.py <connections> <kind>:<address>:<port>...`: for each line that it reads a storm of short connections, as many to
each target, a few at a time. `http` asks once, `tcp` sends and waits for an echo, up to a dozen times. They end in all
the ways in which connections end. Says, a line a storm, how many failed."""
import socket
import struct
import sys
import threading

COUNT, TARGETS = int(sys.argv[1]), [target.split(":") for target in sys.argv[2:]]
# To one target at a time: no more are in the agent's pools afterwards.
AT_ONCE = 4
RESET = struct.pack("ii", 1, 0)
failed = []


def read(connection, length):
    got = b""
    while len(got) < length:
        chunk = connection.recv(length - len(got))
        if not chunk:
            raise OSError(f"ended after {got!r}")
        got += chunk
    return got


def one(kind, address, port, number):
    with socket.create_connection((address, int(port)), timeout=20) as connection:
        if kind == "http":
            connection.sendall(b"GET /%d HTTP/1.1\r\nHost: %s\r\n\r\n" % (number, address.encode()))
            answer = read(connection, 12)
            if answer != b"HTTP/1.1 200":
                raise OSError(f"answered {answer!r}")
        else:
            said = b"%016d" % number * (1 + number % 200)
            for _ in range(1 + number % 12):
                connection.sendall(said)
                if read(connection, len(said)) != said:
                    raise OSError("another echo")
        how = number // AT_ONCE % 4
        if how == 1:
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
        elif how == 2:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        elif how == 3 and kind == "tcp":
            # With bytes under way.
            connection.sendall(b"last")


def some(target, first):
    for number in range(first, COUNT, AT_ONCE):
        try:
            one(*target, number)
        except OSError as error:
            failed.append(f"{target} {number}: {error!r}")


for line in sys.stdin:
    failed.clear()
    threads = [threading.Thread(target=some, args=(target, first)) for target in TARGETS for first in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("storm", len(failed), "failed", failed[:3], flush=True)

"""Load on an echo server, whose every byte is compared: direct_load.py ADDRESS PORT STOP_FILE

Streams that go on all the time, both ways at once, and new connections without a pause. All wait by poll(2). Ends when
STOP_FILE is there, and prints one line of JSON: what failed, and of each stream its port and how many bytes it has sent.
"""
import json
import os
import socket
import sys
import threading
import time

from echo import ask_once

address, port, stop_file = sys.argv[1], int(sys.argv[2]), sys.argv[3]
STREAMS, NEW, TIMEOUT_S = 6, 2, 15
lock = threading.Lock()
failures, streams, opened = [], [], 0
stopping = False


def failed(what, error):
    with lock:
        failures.append(f"{time.time():.3f} {what}: {error!r}")


def connect():
    return socket.create_connection((address, port), TIMEOUT_S)


def block(number):
    """Differs from all others, and in size from the next."""
    return b"%016d" % number * (1 + number * 131 % 2000)


def stream():
    try:
        with connect() as s:
            reader = threading.Thread(target=read, args=(s,))
            reader.start()
            sent, number = 0, 0
            while not stopping:
                data = block(number)
                s.sendall(data)
                sent, number = sent + len(data), number + 1
                time.sleep(0.002)
            s.shutdown(socket.SHUT_WR)
            reader.join()
            with lock:
                streams.append((s.getsockname()[1], sent))
    except OSError as error:
        failed("stream", error)


def read(s):
    number, wanted = 0, b""
    try:
        while chunk := s.recv(1 << 16):
            while len(wanted) < len(chunk):
                wanted, number = wanted + block(number), number + 1
            if chunk != wanted[:len(chunk)]:
                raise OSError("bytes were lost, changed or moved")
            wanted = wanted[len(chunk):]
        if wanted:
            raise OSError(f"{len(wanted)} bytes are missing")
    except OSError as error:
        failed("stream", error)


def new():
    global opened
    number = 0
    while not stopping:
        number += 1
        try:
            with connect() as s:
                ask_once(s, number)
            with lock:
                opened += 1
        except OSError as error:
            failed("new", error)
        time.sleep(0.005)


threads = [threading.Thread(target=run) for run, many in ((stream, STREAMS), (new, NEW)) for _ in range(many)]
for thread in threads:
    thread.start()
print("loading", flush=True)
while not os.path.exists(stop_file):
    time.sleep(0.05)
stopping = True
for thread in threads:
    thread.join()
print(json.dumps({"opened": opened, "streams": streams, "at_once": NEW, "failed": failures[:20]}), flush=True)

"""Load that counts what fails: load.py ADDRESS HTTP_PORT TCP_PORT STOP_FILE

New connections all the time (HTTP, and echo over TCP), and long ones of both
kinds. Ends when STOP_FILE is there, and prints one line of JSON.
"""
import json, os, socket, sys, threading, time

address, http_port, tcp_port, stop_file = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
TIMEOUT_S = 15
lock = threading.Lock()
counts = {"http_new": 0, "tcp_new": 0, "http_long": 0, "tcp_long": 0, "reopened": 0}
failures = []
stopping = False


def count(what):
    with lock:
        counts[what] += 1


def failed(what, error):
    with lock:
        failures.append(f"{time.time():.3f} {what}: {error!r}")


def connect(port):
    s = socket.create_connection((address, port), TIMEOUT_S)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s


def read_answer(stream):
    """One HTTP answer with a length; whether it is the last of its connection."""
    status = stream.readline()
    if not status.startswith(b"HTTP/1.1 200"):
        raise OSError(f"answered {status!r}")
    length, last = 0, False
    while (line := stream.readline()) not in (b"\r\n", b""):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        if name.lower() == b"connection" and value.strip().lower() == b"close":
            last = True
    if len(stream.read(length)) != length:
        raise OSError("answer is short")
    return last


GET = b"GET / HTTP/1.1\r\nHost: reviews\r\n\r\n"
GET_ONE = b"GET / HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n"


def http_new():
    while not stopping:
        try:
            with connect(http_port) as s:
                s.sendall(GET_ONE)
                read_answer(s.makefile("rb"))
            count("http_new")
        except OSError as error:
            failed("http_new", error)


def tcp_new():
    number = 0
    while not stopping:
        number += 1
        said = b"%d\n" % number
        try:
            with connect(tcp_port) as s:
                s.sendall(said)
                s.shutdown(socket.SHUT_WR)
                got = b""
                while chunk := s.recv(100):
                    got += chunk
                if got != said:
                    raise OSError(f"echo of {said!r} is {got!r}")
            count("tcp_new")
        except OSError as error:
            failed("tcp_new", error)


def http_long():
    s = None
    while not stopping:
        try:
            if s is None:
                s = connect(http_port)
                stream = s.makefile("rb")
            s.sendall(GET)
            last = read_answer(stream)
            count("http_long")
            if last:
                # As HTTP wants it: the server has said that this was the last one.
                s.close()
                s = None
                count("reopened")
            time.sleep(0.05)
        except OSError as error:
            failed("http_long", error)
            s = None


def tcp_long():
    try:
        with connect(tcp_port) as s:
            stream = s.makefile("rb")
            number = 0
            while not stopping:
                number += 1
                said = b"line %d\n" % number
                s.sendall(said)
                if (got := stream.readline()) != said:
                    raise OSError(f"echo of {said!r} is {got!r}")
                count("tcp_long")
                time.sleep(0.05)
            s.shutdown(socket.SHUT_WR)
            if stream.read() != b"":
                raise OSError("more than was sent")
    except OSError as error:
        failed("tcp_long", error)


kinds = [(http_new, 4), (tcp_new, 4), (http_long, 10), (tcp_long, 20)]
threads = [threading.Thread(target=run) for run, many in kinds for _ in range(many)]
began = time.time()
for thread in threads:
    thread.start()
print("loading", flush=True)
while not os.path.exists(stop_file):
    time.sleep(0.05)
stopping = True
for thread in threads:
    thread.join()
seconds = time.time() - began
print(json.dumps({
    **counts,
    "seconds": round(seconds, 1),
    "new_per_second": round((counts["http_new"] + counts["tcp_new"]) / seconds),
    "failures": failures[:20],
    "failed": len(failures),
}), flush=True)

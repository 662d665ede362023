"""Load that counts what fails: load.py ADDRESS HTTP_PORT TCP_PORT NEW_PER_SECOND STOP_FILE

So many new connections a second, or as many as the machine can (HTTP, and echo over TCP), and two hundred long
ones of both kinds. Says every now and then how many new ones there were. Ends when STOP_FILE is there, and prints
one line of JSON.
"""
import itertools, json, multiprocessing, os, socket, sys, threading, time

from echo import ask_once

address, stop_file = sys.argv[1], sys.argv[5]
http_port, tcp_port, new_per_second = map(int, sys.argv[2:5])
TIMEOUT_S = 15
# New ones of each kind, where they take long.
AT_ONCE = 16
# Of each kind, and between what is said on each.
LONG, PAUSE_S = 100, 0.5
KINDS = ["http_new", "tcp_new", "long", "http_long", "tcp_long", "reopened"]
counts = {kind: multiprocessing.Value("Q") for kind in KINDS}
failures = multiprocessing.SimpleQueue()
stopping = multiprocessing.Event()


def count(what):
    with counts[what].get_lock():
        counts[what].value += 1


def failed(what, error):
    failures.put(f"{time.time():.3f} {what}: {error!r}")


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


def http_new(number):
    with connect(http_port) as s:
        s.sendall(GET_ONE)
        read_answer(s.makefile("rb"))


def tcp_new(number):
    with connect(tcp_port) as s:
        ask_once(s, number)


def again_and_again(one):
    """Half of the new ones: as often as is due, and no faster than the machine."""
    began, numbers = time.monotonic(), itertools.count()

    def work():
        while not stopping.is_set():
            number = next(numbers)
            time.sleep(max(0, began + number * 2 / new_per_second - time.monotonic()))
            try:
                one(number)
                count(one.__name__)
            except OSError as error:
                failed(one.__name__, error)

    at_once([work] * AT_ONCE)


def http_long():
    s = connect(http_port)
    stream = s.makefile("rb")
    count("long")
    while not stopping.is_set():
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
            time.sleep(PAUSE_S)
        except OSError as error:
            failed("http_long", error)
            s = None


def tcp_long():
    try:
        with connect(tcp_port) as s:
            count("long")
            stream = s.makefile("rb")
            number = 0
            while not stopping.is_set():
                number += 1
                said = b"line %d\n" % number
                s.sendall(said)
                if (got := stream.readline()) != said:
                    raise OSError(f"echo of {said!r} is {got!r}")
                count("tcp_long")
                time.sleep(PAUSE_S)
            s.shutdown(socket.SHUT_WR)
            if stream.read() != b"":
                raise OSError("more than was sent")
    except OSError as error:
        failed("tcp_long", error)


def at_once(works):
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def new_ones():
    return counts["http_new"].value + counts["tcp_new"].value


processes = [
    multiprocessing.Process(target=target, args=(argument,))
    for target, argument in [
        (again_and_again, http_new),
        (again_and_again, tcp_new),
        (at_once, [http_long] * LONG + [tcp_long] * LONG),
    ]
]
began = time.time()
for process in processes:
    process.start()
said, seen = -1, []
while any(process.is_alive() for process in processes):
    if os.path.exists(stop_file):
        stopping.set()
    while not failures.empty():
        seen.append(failures.get())
    if counts["long"].value == 2 * LONG and new_ones() > said:
        said = new_ones()
        print("new", said, flush=True)
    time.sleep(0.05)
while not failures.empty():
    seen.append(failures.get())
seconds = time.time() - began
print(json.dumps({
    **{kind: count.value for kind, count in counts.items()},
    "seconds": round(seconds, 1),
    "new_per_second": round(new_ones() / seconds),
    "failures": seen[:20],
    "failed": len(seen),
}), flush=True)

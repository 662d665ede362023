"""`storm.py <address> <port> <connections> <seconds>`: as many connections, evenly over the time, each of
which sends a few bytes and waits for as many. Says how many failed, and how long it took."""
import socket
import sys
import threading
import time

ADDRESS, PORT, COUNT, SECONDS = sys.argv[1], *map(int, sys.argv[2:5])
THREADS = 16
failed = []
start = time.monotonic()


def some(first):
    for number in range(first, COUNT, THREADS):
        due = start + SECONDS * number / COUNT
        time.sleep(max(0, due - time.monotonic()))
        try:
            with socket.create_connection((ADDRESS, PORT), timeout=10) as connection:
                connection.sendall(b"echo\n")
                left = 5
                while left:
                    got = connection.recv(left)
                    if not got:
                        raise OSError("it ended")
                    left -= len(got)
        except OSError as error:
            failed.append(repr(error))


threads = [threading.Thread(target=some, args=(first,)) for first in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(failed), "failed", failed[:3], f"{time.monotonic() - start:.1f} s")

"""Holds a connection to an echo: hold.py ADDRESS PORT STOP_FILE

A line every 50 ms, until STOP_FILE is there. Prints `held` after the first
echo, and `whole <lines>` and the peer's address at the end.
"""
import os, socket, sys, time

s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
stream = s.makefile("rb")
number = 0
while not os.path.exists(sys.argv[3]):
    number += 1
    said = b"line %d\n" % number
    s.sendall(said)
    assert stream.readline() == said, "echo is wrong, or ended"
    if number == 1:
        print("held", flush=True)
    time.sleep(0.05)
peer = s.getpeername()
s.shutdown(socket.SHUT_WR)
assert stream.read() == b""
print("whole", number, "peer", *peer, flush=True)

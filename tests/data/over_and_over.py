"""Connects over and over; a line each: when it began and ended (ns since 1970), and who answered."""

import socket
import sys
import time

while True:
    began = time.time_ns()
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as connection:
            answer = connection.recv(16).decode() or "end"
    except OSError as error:
        answer = type(error).__name__
    print(began, time.time_ns(), answer, flush=True)

"""Says its name to whoever connects."""

import socket
import sys

listener = socket.create_server(("", int(sys.argv[1])), backlog=1024)
while True:
    connection, _ = listener.accept()
    with connection:
        try:
            connection.sendall(sys.argv[2].encode())
        except OSError:
            pass

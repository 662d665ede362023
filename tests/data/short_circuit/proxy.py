"""`proxy.py <port> <address>`: a TCP proxy that moves bytes by splice(2), as Go's io.Copy does: it waits until
its socket is readable, and moves what is there into a pipe and on."""
import os
import select
import socket
import sys
import threading

port, address = int(sys.argv[1]), sys.argv[2]
CHUNK, SPLICE_F_MOVE, SPLICE_F_NONBLOCK = 1 << 18, 1, 2


def copy(source, target):
    read, write = os.pipe()
    poll = select.poll()
    poll.register(source, select.POLLIN | select.POLLRDHUP)
    while True:
        poll.poll()
        try:
            count = os.splice(source.fileno(), write, CHUNK, flags=SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
        except BlockingIOError:
            continue
        if not count:
            break
        while count:
            count -= os.splice(read, target.fileno(), count, flags=SPLICE_F_MOVE)
    target.shutdown(socket.SHUT_WR)
    os.close(read)
    os.close(write)


def serve(client):
    server = socket.create_connection((address, 80))
    back = threading.Thread(target=copy, args=(server, client))
    back.start()
    copy(client, server)
    back.join()
    client.close()
    server.close()


listener = socket.create_server(("0.0.0.0", port), backlog=64)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

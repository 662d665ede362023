"""`greeter.py serve <port>`: greets whoever comes, and echoes.
`greeter.py greeted <address> <port>`: waits for the greeting, then has a hundred words echoed."""
import socket
import sys
import threading


def greet(connection):
    with connection:
        connection.settimeout(60)
        connection.sendall(b"hello\n")
        while chunk := connection.recv(65536):
            connection.sendall(chunk)


def serve(port):
    listener = socket.create_server(("", int(port)), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=greet, args=(connection,), daemon=True).start()


def greeted(address, port):
    connection = socket.create_connection((address, int(port)), timeout=60)
    lines = connection.makefile("rb")
    print(lines.readline().decode().strip())
    equal = 0
    for number in range(100):
        word = b"word %d\n" % number
        connection.sendall(word)
        equal += lines.readline() == word
    print("equal", equal)


globals()[sys.argv[1]](*sys.argv[2:])

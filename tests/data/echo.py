"""What clients of an echo server share."""
import socket


def ask_once(s, number):
    """Says something on a new connection, and reads to its end what comes back: it must be the same."""
    said = b"%d\n" % number
    s.sendall(said)
    s.shutdown(socket.SHUT_WR)
    got = b""
    while chunk := s.recv(100):
        got += chunk
    if got != said:
        raise OSError(f"echo of {said!r} is {got!r}")

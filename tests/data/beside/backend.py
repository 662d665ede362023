"""An HTTP/1.1 server that answers with what it got, byte for byte, and otherwise as the
header `x-answer` asks: a status, or one of the words below."""
import json, socket, struct, sys, threading, time
from collections import Counter

seen = Counter()


def read_head(reader):
    lines = []
    while True:
        line = reader.readline(65536)
        if not line:
            return None
        line = line.rstrip(b"\r\n").decode("latin-1")
        if not line:
            if lines:
                return lines
            continue
        lines.append(line)


def read_body(reader, headers):
    """The body and the trailers."""
    if "chunked" in headers.get("transfer-encoding", ""):
        body = b""
        while size := int(reader.readline().split(b";")[0], 16):
            body += reader.read(size)
            reader.readline()
        trailers = []
        while line := reader.readline().rstrip(b"\r\n"):
            trailers.append(line.decode("latin-1"))
        return body, trailers
    return reader.read(int(headers.get("content-length", 0))), []


def serve(connection):
    reader = connection.makefile("rb")
    while head := read_head(reader):
        fields = [line.split(":", 1) for line in head[1:]]
        fields = [(name.lower(), value.strip()) for name, value in fields]
        headers = dict(fields)
        if "expect" in headers:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body, trailers = read_body(reader, headers)
        case = headers.get("x-case", "")
        seen[case] += 1
        method, path, _ = head[0].split(" ", 2)
        if path.startswith("/seen/"):
            body, case = str(seen[path[6:]]).encode(), "-"
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
            continue
        answer = headers.get("x-answer", "200")
        if answer == "early-hints":
            connection.sendall(b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n")
        if answer == "slow":
            time.sleep(1)
        if answer == "slower":
            time.sleep(4)
        if answer == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            break
        if answer in ("half", "drip"):
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nfirst")
            for _ in range(20 if answer == "drip" else 0):
                time.sleep(0.1)
                connection.sendall(b"drop")
            break
        if answer == "upgrade":
            connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
            while data := connection.recv(4096):
                connection.sendall(data)
            break
        if answer == "recover" and seen[case] > 1:
            answer = "200"
        status = int(answer) if answer.isdigit() else 503 if answer == "recover" else 200
        echo = json.dumps({"line": head[0], "headers": fields, "body": body.decode("latin-1"),
                           "trailers": trailers, "attempt": seen[case]}).encode()
        lines = [f"HTTP/1.1 {status} Whatever", "x-app: 1", "x-app: 2", "X-Mixed-Case: Kept", "x-gone: 1",
                 "content-type: application/json"]
        if status in (204, 304):
            connection.sendall("\r\n".join(lines + ["etag: \"1\"", "", ""]).encode())
            continue
        chunked = answer in ("chunked", "trailers")
        lines.append("transfer-encoding: chunked" if chunked else f"content-length: {len(echo)}")
        if answer == "trailers":
            lines.append("trailer: x-sum")
        if answer == "close":
            lines.append("connection: close")
        connection.sendall("\r\n".join(lines + ["", ""]).encode())
        if method == "HEAD":
            continue
        if chunked:
            half = len(echo) // 2
            for piece in (echo[:half], echo[half:]):
                connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
            connection.sendall(b"0\r\n" + (b"x-sum: 7\r\n" if answer == "trailers" else b"") + b"\r\n")
        else:
            connection.sendall(echo)
        if answer == "close":
            break
    connection.close()


def guarded(connection):
    try:
        serve(connection)
    except (OSError, ValueError):
        connection.close()


listener = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True, backlog=256)
while True:
    threading.Thread(target=guarded, args=(listener.accept()[0],), daemon=True).start()

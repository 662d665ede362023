"""Sends requests that end in all ways, and prints what came of each, a line of JSON. A request's
name is its `user-agent`. Arguments: address of the HTTP port, and of three TCP ports: one that
works, one where nobody listens, one without endpoints."""
import json, socket, struct, sys, time

http, up, down, nobody = (address.rsplit(":", 1) for address in sys.argv[1:5])


def connect(address):
    return socket.create_connection((address[0], int(address[1])), timeout=10)


def head(case, path, answer="200", method="GET", more=""):
    return (f"{method} {path} HTTP/1.1\r\nhost: web\r\nuser-agent: {case}\r\nx-request-id: id-{case}\r\n"
            f"x-answer: {answer}\r\nx-case: {time.monotonic_ns()}\r\n{more}\r\n").encode()


def read(connection, method="GET"):
    """Status and header fields; the body is read to its end, or to where it breaks off."""
    reader = connection.makefile("rb")
    line = reader.readline().decode()
    if not line:
        return {"status": 0}
    fields = []
    while field := reader.readline().decode("latin-1").strip():
        fields.append([part.strip() for part in field.split(":", 1)])
    headers = {name.lower(): value for name, value in fields}
    try:
        if method != "HEAD" and "chunked" in headers.get("transfer-encoding", ""):
            while size := int(reader.readline(), 16):
                reader.read(size + 2)
        elif method != "HEAD":
            reader.read(int(headers.get("content-length", 0)))
    except (OSError, ValueError):
        pass
    gone = {"date", "server", "content-length", "x-envoy-upstream-service-time", "content-type", "connection", "transfer-encoding", "grpc-message"}
    return {"status": int(line.split(" ")[1]), "headers": sorted([name.lower(), value] for name, value in fields if name.lower() not in gone)}


def ask(case, path, answer="200", method="GET", more="", body=b""):
    with connect(http) as connection:
        connection.sendall(head(case, path, answer, method, more) + body)
        say(case, read(connection, method))


def say(case, got):
    print(json.dumps({"case": case, "got": got}), flush=True)


def leave(case, path, answer):
    """The client goes in the middle."""
    connection = connect(http)
    connection.sendall(head(case, path, answer))
    if answer == "drip":
        connection.recv(1)
    time.sleep(0.2)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


ask("plain", "/plain?a=b")
ask("head", "/plain", method="HEAD")
ask("post", "/plain", method="POST", more="content-length: 5\r\n", body=b"hello")
ask("chunks", "/plain", method="POST", more="transfer-encoding: chunked\r\n", body=b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
ask("chunked", "/plain", "chunked")
ask("forwarded", "/plain", more="x-forwarded-for: 1.2.3.4\r\n")
ask("404", "/plain", "404")
ask("503", "/once", "503")
ask("no-body", "/plain", "204")
ask("no-route", "/")
ask("no-route-grpc", "/", method="POST", more="content-type: application/grpc\r\ncontent-length: 0\r\n")
ask("refused", "/refused")
ask("refused-grpc", "/refused", method="POST", more="content-type: application/grpc\r\ncontent-length: 0\r\n")
ask("again", "/again")
ask("slow", "/slow", "slower")
ask("slow-tries", "/tries", "slower")
ask("tries", "/tries", "503")
ask("recovers", "/tries", "recover")
ask("delay", "/delay")
ask("both", "/both")
ask("abort", "/abort")
ask("empty", "/empty")
ask("absent", "/absent")
ask("denied", "/denied")
ask("moved", "/moved")
ask("direct", "/direct")
ask("direct-head", "/direct", method="HEAD")
ask("preflight", "/cors", method="OPTIONS", more="origin: https://good.example\r\naccess-control-request-method: GET\r\n")
ask("rewritten", "/old/path")
ask("reset", "/once", "reset")
ask("reset-tries", "/tries", "reset")
ask("ended", "/once", "half")
with connect(http) as connection:
    connection.sendall(head("switched", "/plain", "upgrade", more="connection: upgrade\r\nupgrade: websocket\r\n"))
    got = read(connection)
    connection.sendall(b"ping")
    connection.recv(4)
    say("switched", got)
with connect(http) as first:
    first.sendall(head("first", "/limited", "slower"))
    time.sleep(0.3)
    ask("limited", "/limited")
    say("first", read(first))
leave("leaves", "/plain", "slower")
leave("leaves-late", "/plain", "drip")
with connect(up) as connection:
    connection.sendall(head("tcp", "/"))
    say("tcp", read(connection))
for case, address in (("tcp-refused", down), ("tcp-nobody", nobody)):
    try:
        with connect(address) as connection:
            connection.sendall(b"hello")
            say(case, {"bytes": connection.recv(10).decode()})
    except ConnectionError:
        say(case, {"bytes": ""})

# Sends `requests()` and reads the answers.
def read_all(connection):
    reader = connection.makefile("rb")
    while True:
        status = reader.readline().decode("latin-1")
        if not status:
            return None
        fields = []
        while line := reader.readline().rstrip(b"\r\n").decode("latin-1"):
            name, value = line.split(":", 1)
            fields.append((name.lower(), value.strip()))
        code = int(status.split(" ")[1])
        if code >= 200 or code == 101:
            return reader, code, fields


def answer(method, data):
    connection = socket.create_connection(tuple(address.rsplit(":", 1)), timeout=5)
    try:
        connection.sendall(data)
        got = read_all(connection)
        if got is None:
            return {"status": 0}
        reader, code, fields = got
        headers, body, trailers = dict(fields), b"", []
        if code == 101:
            connection.sendall(b"ping")
            body = reader.read(4)
        elif method == "HEAD" or code in (204, 304):
            pass
        elif "chunked" in headers.get("transfer-encoding", ""):
            while size := int(reader.readline(), 16):
                body += reader.read(size)
                reader.readline()
            while line := reader.readline().rstrip(b"\r\n"):
                trailers.append(line.decode("latin-1"))
        elif "content-length" in headers:
            body = reader.read(int(headers["content-length"]))
        else:
            body = reader.read()
        return {"status": code, "headers": fields, "body": body.decode("latin-1"), "trailers": trailers}
    except (TimeoutError, ConnectionError, ValueError) as error:
        return {"status": 0, "error": type(error).__name__}
    finally:
        connection.close()


def copies(case):
    """How often `shadow` was asked; a copy may come later than the answer."""
    last = 0
    for _ in range(20):
        with socket.create_connection(tuple(shadow.rsplit(":", 1)), timeout=5) as connection:
            connection.sendall(b"GET /seen/%s HTTP/1.1\r\nhost: shadow\r\n\r\n" % case.encode())
            reader, _, fields = read_all(connection)
            count = int(reader.read(int(dict(fields)["content-length"])))
        if count == last and count:
            return count
        last = count
        time.sleep(0.05)
    return 0


def line(number, name, method, head, body):
    case = f"{side}-{number}"
    raw = head.encode("latin-1") + f"x-case: {case}\r\n\r\n".encode() + body
    got = answer(method, raw)
    # The answer to HEAD has the length of a body that lists headers which differ.
    ignored = IGNORED | ({"content-length", "transfer-encoding", "grpc-message"} if method == "HEAD" else set())
    got["headers"] = sorted(field for field in got.get("headers", []) if field[0] not in ignored)
    try:
        asked = json.loads(got["body"])
        asked["headers"] = sorted(field for field in asked["headers"] if field[0] not in IGNORED and field != ["content-length", "0"])
        got["asked"], got["body"] = asked, ""
        # It counts what is in the body that was taken apart just now.
        got["headers"] = [field for field in got["headers"] if field[0] != "content-length"]
    except (KeyError, ValueError):
        pass
    if any(path in name for path in MIRRORED):
        got["copies"] = copies(case)
    return json.dumps({"name": name, "request": head, "got": got})


with ThreadPoolExecutor(8) as pool:
    print(*pool.map(lambda numbered: line(numbered[0], *numbered[1]), enumerate(requests())), sep="\n")

# What every server has to refuse, and how: the error codes of RFC 9113 and RFC 7541.

POST = block(method="POST")
WHOLE = END_STREAM | END_HEADERS


def fails(name, what, kind, codes, *frames, state="new"):
    """Frames that end the connection or the stream, sent on a connection in a certain state."""
    @case(name, what)
    def _():
        c = Connection()
        if state == "ended":
            c.request()
            c.ended()
        with c.at_once():
            if state == "open":
                c.request(fields=POST, flags=END_HEADERS)
            elif state == "half-closed":
                c.request()
            elif state == "reset":
                c.request(fields=POST, flags=END_HEADERS)
                c.send(RST_STREAM, 0, 1, b"\0\0\0\x08")
            for frame in frames:
                c.send(*frame)
        getattr(c, kind + "_error")(*codes)


def connection(name, what, codes, *frames, state="new"):
    fails(name, what, "connection", codes if isinstance(codes, tuple) else (codes,), *frames, state=state)


def stream(name, what, codes, *frames, state="new"):
    fails(name, what, "stream", codes if isinstance(codes, tuple) else (codes,), *frames, state=state)


@case("3.4/invalid", "a preface that is none")
def _():
    c = Connection(greet=False)
    c.raw(b"INVALID CONNECTION PREFACE\r\n\r\n")
    try:
        while c.frame():
            pass
    except TimeoutError:
        raise Wrong("the connection stays") from None


def ignored(name, what, *frames):
    @case(name, what)
    def _():
        c = Connection()
        for frame in frames:
            c.send(*frame)
        c.alive()


ignored("4.1/unknown-type", "frames of a type that nothing defines", (0x16, 0, 0, bytes(8)), (0x16, 0, 1, bytes(8)))
ignored("4.1/reserved-bit", "the reserved bit", (PING, 0, 1 << 31, b"reserved"))
ignored("5.5/extension", "a frame of an extension", (0xFA, 0xFF, 0, b"extension"))
ignored("6.5.2/unknown", "a setting that nothing defines", (SETTINGS, 0, 0, settings((0xFF, 1))))
ignored("6.7/ack", "PING's acknowledgement that nobody waits for", (PING, ACK, 0, b"whatever"))
ignored("7/goaway", "GOAWAY with a code that nothing defines", (GOAWAY, 0, 0, bytes(4) + b"\0\0\0\xff"))


@case("7/reset", "RST_STREAM with a code that nothing defines")
def _():
    c = Connection()
    c.request(fields=POST, flags=END_HEADERS)
    c.send(RST_STREAM, 0, 1, b"\0\0\0\xff")
    c.alive()


@case("4.2/data-largest", "DATA of 2^14 bytes is accepted")
def _():
    c = Connection()
    c.request(fields=POST, flags=END_HEADERS)
    c.send(DATA, END_STREAM, 1, bytes(1 << 14))
    c.answered()


@case("4.2/data-too-large", "DATA above SETTINGS_MAX_FRAME_SIZE")
def _():
    c = Connection()
    c.request(fields=POST, flags=END_HEADERS)
    c.send(DATA, END_STREAM, 1, bytes(c.peer.get(MAX_FRAME, 1 << 14) + 1))
    c.stream_error(FRAME_SIZE_ERROR)


@case("4.2/headers-too-large", "HEADERS above SETTINGS_MAX_FRAME_SIZE")
def _():
    c = Connection()
    size = c.peer.get(MAX_FRAME, 1 << 14) + 1
    c.request(fields=block(("x-large", "v" * size)))
    c.connection_error(FRAME_SIZE_ERROR)


connection("4.3/fragment", "a block that is cut off", COMPRESSION_ERROR, (HEADERS, WHOLE, 1, block() + b"\x40"))
connection("4.3/priority-inside", "PRIORITY within a block", PROTOCOL_ERROR, (HEADERS, END_STREAM, 1, block()), (PRIORITY, 0, 1, bytes(5)), (CONTINUATION, END_HEADERS, 1, literal("x", "y")))
connection("4.3/headers-inside", "HEADERS of another stream within a block", PROTOCOL_ERROR, (HEADERS, END_STREAM, 1, block()), (HEADERS, WHOLE, 3, block()))
connection("5.5/extension-inside", "a frame of an extension within a block", PROTOCOL_ERROR, (HEADERS, END_STREAM, 1, block()), (0xFA, 0, 0, b"x"), (CONTINUATION, END_HEADERS, 1, literal("x", "y")))
connection("6.2/data-inside", "DATA within a block", PROTOCOL_ERROR, (HEADERS, 0, 1, POST), (DATA, END_STREAM, 1, b"x"))

for _name, _kind, _data in (("data", DATA, b"test"), ("reset", RST_STREAM, b"\0\0\0\x08"), ("window", WINDOW_UPDATE, b"\0\0\0\x64"), ("continuation", CONTINUATION, literal("x", "y"))):
    connection(f"5.1/idle-{_name}", "a frame of a stream that was never opened", PROTOCOL_ERROR, (_kind, END_HEADERS if _kind == CONTINUATION else 0, 1, _data))
for _state in ("half-closed", "reset", "ended"):
    _codes = (STREAM_CLOSED,)
    stream(f"5.1/{_state}-data", "DATA of a stream that has ended", _codes, (DATA, END_STREAM, 1, b"test"), state=_state)
    stream(f"5.1/{_state}-headers", "HEADERS of a stream that has ended", _codes, (HEADERS, WHOLE, 1, block()), state=_state)
    connection(f"5.1/{_state}-continuation", "CONTINUATION of a stream that has ended", (STREAM_CLOSED, PROTOCOL_ERROR), (CONTINUATION, END_HEADERS, 1, literal("x", "y")), state=_state)
connection("5.1.1/even", "a client's stream has an odd number", PROTOCOL_ERROR, (HEADERS, WHOLE, 2, block()))
connection("5.1.1/lower", "numbers of streams grow", PROTOCOL_ERROR, (HEADERS, WHOLE, 5, block()), (HEADERS, WHOLE, 3, block()))


@case("5.1.2/too-many", "more streams than SETTINGS_MAX_CONCURRENT_STREAMS")
def _():
    c = Connection((WINDOW, 0))
    most = c.peer.get(MAX_STREAMS)
    if most is None or most > 2000:
        return  # There is no bound to try.
    c.raw(b"".join(len(POST).to_bytes(3, "big") + bytes([HEADERS, END_HEADERS]) + stream.to_bytes(4, "big") + POST
                   for stream in range(1, 2 * (most + 2), 2)))
    c.stream_error(PROTOCOL_ERROR, REFUSED_STREAM)


stream("5.3.1/headers", "HEADERS that depend on themselves", PROTOCOL_ERROR, (HEADERS, WHOLE | PRIORITIZED, 1, b"\0\0\0\1\xff" + block()))
stream("5.3.1/priority", "PRIORITY that depends on itself", PROTOCOL_ERROR, (PRIORITY, 0, 1, b"\0\0\0\1\xff"), state="open")


@case("5.4.1/close", "after a connection error the connection ends")
def _():
    c = Connection()
    c.send(PING, 0, 1, bytes(8))
    try:
        while c.frame():
            pass
    except TimeoutError:
        raise Wrong("the connection stays") from None


connection("6.1/stream-0", "DATA of stream 0", PROTOCOL_ERROR, (DATA, END_STREAM, 0, b"test"), state="open")
connection("6.1/padding", "more padding than DATA", PROTOCOL_ERROR, (DATA, END_STREAM | PADDED, 1, b"\x06test"), state="open")
connection("6.2/stream-0", "HEADERS of stream 0", PROTOCOL_ERROR, (HEADERS, WHOLE, 0, block()))
connection("6.2/padding", "more padding than HEADERS", PROTOCOL_ERROR, (HEADERS, WHOLE | PADDED, 1, bytes([len(block()) + 1]) + block()))
connection("6.3/stream-0", "PRIORITY of stream 0", PROTOCOL_ERROR, (PRIORITY, 0, 0, bytes(5)))
stream("6.3/length", "PRIORITY of another length", FRAME_SIZE_ERROR, (PRIORITY, 0, 1, bytes(4)), state="open")
connection("6.4/stream-0", "RST_STREAM of stream 0", PROTOCOL_ERROR, (RST_STREAM, 0, 0, b"\0\0\0\x08"))
connection("6.4/length", "RST_STREAM of another length", FRAME_SIZE_ERROR, (RST_STREAM, 0, 1, b"\0\0\x08"), state="open")
connection("6.5/ack", "an acknowledgement of SETTINGS with settings", FRAME_SIZE_ERROR, (SETTINGS, ACK, 0, settings((MAX_STREAMS, 1))))
connection("6.5/stream", "SETTINGS of a stream", PROTOCOL_ERROR, (SETTINGS, 0, 1, settings((MAX_STREAMS, 1))))
connection("6.5/length", "SETTINGS of another length", FRAME_SIZE_ERROR, (SETTINGS, 0, 0, b"\0\3\0"))
connection("6.5.2/push", "ENABLE_PUSH is 0 or 1", PROTOCOL_ERROR, (SETTINGS, 0, 0, settings((ENABLE_PUSH, 2))))
connection("6.5.2/window", "a window above 2^31 - 1", FLOW_CONTROL_ERROR, (SETTINGS, 0, 0, settings((WINDOW, 1 << 31))))
connection("6.5.2/frame-small", "a frame size below 2^14", PROTOCOL_ERROR, (SETTINGS, 0, 0, settings((MAX_FRAME, (1 << 14) - 1))))
connection("6.5.2/frame-large", "a frame size above 2^24 - 1", PROTOCOL_ERROR, (SETTINGS, 0, 0, settings((MAX_FRAME, 1 << 24))))


@case("6.5.3/order", "settings count in their order")
def _():
    c = Connection()
    c.send(SETTINGS, 0, 0, settings((WINDOW, 100), (WINDOW, 1)))
    c.until(lambda kind, flags, of, data: kind == SETTINGS and flags & ACK)
    c.request()
    frame = c.until(lambda kind, flags, of, data: kind == DATA)
    if len(frame[3]) != 1:
        raise Wrong(f"DATA of {len(frame[3])} bytes into a window of one")


@case("6.5.3/ack", "SETTINGS are acknowledged")
def _():
    c = Connection()
    c.send(SETTINGS, 0, 0)
    c.until(lambda kind, flags, of, data: kind == SETTINGS and flags & ACK)


connection("6.6/push", "a client pushes nothing", PROTOCOL_ERROR, (PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\3" + block()), state="open")
connection("6.7/stream", "PING of a stream", PROTOCOL_ERROR, (PING, 0, 1, bytes(8)))
connection("6.7/length", "PING of another length", FRAME_SIZE_ERROR, (PING, 0, 0, bytes(6)))
connection("6.8/stream", "GOAWAY of a stream", PROTOCOL_ERROR, (GOAWAY, 0, 1, bytes(8)))
connection("6.9/nothing", "WINDOW_UPDATE by 0 of the connection", PROTOCOL_ERROR, (WINDOW_UPDATE, 0, 0, bytes(4)))
stream("6.9/nothing-stream", "WINDOW_UPDATE by 0 of a stream", PROTOCOL_ERROR, (WINDOW_UPDATE, 0, 1, bytes(4)), state="open")
connection("6.9/length", "WINDOW_UPDATE of another length", FRAME_SIZE_ERROR, (WINDOW_UPDATE, 0, 0, bytes(3)))
_LARGE = (WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), (WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff")
connection("6.9.1/overflow", "a window of the connection above 2^31 - 1", FLOW_CONTROL_ERROR, *_LARGE)
stream("6.9.1/overflow-stream", "a window of a stream above 2^31 - 1", FLOW_CONTROL_ERROR, *[(kind, flags, 1, data) for kind, flags, _, data in _LARGE], state="open")


@case("6.9.1/one", "no more than the window allows")
def _():
    c = Connection((WINDOW, 1))
    c.request()
    frame = c.until(lambda kind, flags, of, data: kind == DATA)
    if len(frame[3]) != 1:
        raise Wrong(f"DATA of {len(frame[3])} bytes into a window of one")


@case("6.9.2/later", "a window that grows after the request")
def _():
    c = Connection((WINDOW, 0))
    c.request()
    c.answered()
    c.send(SETTINGS, 0, 0, settings((WINDOW, 1)))
    frame = c.until(lambda kind, flags, of, data: kind == DATA)
    if len(frame[3]) != 1:
        raise Wrong(f"DATA of {len(frame[3])} bytes into a window of one")


@case("6.9.2/negative", "a window that became negative has to grow above 0 first")
def _():
    c = Connection((WINDOW, 3))
    c.request()
    c.until(lambda kind, flags, of, data: kind == DATA)
    c.send(SETTINGS, 0, 0, settings((WINDOW, 2)))
    c.send(WINDOW_UPDATE, 0, 1, b"\0\0\0\2")
    frame = c.until(lambda kind, flags, of, data: kind == DATA)
    if len(frame[3]) != 1:
        raise Wrong(f"DATA of {len(frame[3])} bytes into a window of one")


connection("6.10/other-frame", "another frame between CONTINUATIONs", PROTOCOL_ERROR, (HEADERS, END_STREAM, 1, block()), (CONTINUATION, 0, 1, literal("x", "y")), (DATA, END_STREAM, 1, b"x"))
connection("6.10/stream-0", "CONTINUATION of stream 0", PROTOCOL_ERROR, (HEADERS, END_STREAM, 1, block()), (CONTINUATION, END_HEADERS, 0, literal("x", "y")))
connection("6.10/after-headers", "CONTINUATION after the end of a block", (PROTOCOL_ERROR, STREAM_CLOSED), (CONTINUATION, END_HEADERS, 1, literal("x", "y")), state="open")
connection("6.10/after-continuation", "CONTINUATION after the last", (PROTOCOL_ERROR, STREAM_CLOSED), (HEADERS, 0, 1, POST), (CONTINUATION, END_HEADERS, 1, literal("x", "y")), (CONTINUATION, END_HEADERS, 1, literal("x", "y")))
connection("6.10/after-data", "CONTINUATION after DATA", (PROTOCOL_ERROR, STREAM_CLOSED), (DATA, 0, 1, b"x"), (CONTINUATION, END_HEADERS, 1, literal("x", "y")), state="open")

# Requests that are malformed (RFC 9113, section 8.1.1): an error of their stream.
stream("8.1/headers-again", "a second HEADERS that does not end the stream", PROTOCOL_ERROR, (HEADERS, END_HEADERS, 1, literal("x", "y")), state="open")
stream("8.1/pseudo-trailers", "a pseudo field among trailers", PROTOCOL_ERROR, (HEADERS, WHOLE, 1, literal(":method", "GET")), state="open")
stream("8.1.1/length", "DATA of another length than content-length", PROTOCOL_ERROR, (HEADERS, END_HEADERS, 1, block(("content-length", "1"), method="POST")), (DATA, END_STREAM, 1, b"test"))
stream("8.1.1/length-many", "several DATA of another length than content-length", PROTOCOL_ERROR, (HEADERS, END_HEADERS, 1, block(("content-length", "1"), method="POST")), (DATA, 0, 1, b"test"), (DATA, END_STREAM, 1, b"test"))
stream("8.1.1/length-none", "no DATA where content-length says some", PROTOCOL_ERROR, (HEADERS, WHOLE, 1, block(("content-length", "4"), method="POST")))
for _name, _what, _block in (
        ("8.2/upper-case", "a name with capitals", block(("X-Capital", "1"))), ("8.2/blank-name", "a name with a blank", block(("x y", "1"))),
        ("8.2.1/newline", "a value with a newline", block(("x", "a\nb"))), ("8.2.1/nul", "a value with NUL", block(("x", "a\0b"))),
        ("8.2.2/connection", "a field of the connection", block(("connection", "keep-alive"))), ("8.2.2/transfer-encoding", "a transfer coding", block(("transfer-encoding", "chunked"))),
        ("8.2.2/te", "TE other than trailers", block(("te", "trailers, deflate"))), ("8.3/unknown", "a pseudo field that nothing defines", literal(":test", "x") + block()),
        ("8.3/of-response", "a pseudo field of responses", block() + literal(":status", "200")), ("8.3/after", "a pseudo field after another field", literal("x", "y") + block()),
        ("8.3.1/empty-path", "an empty :path", block(path="")), ("8.3.1/no-method", "no :method", block(without=(":method",))), ("8.3.1/no-scheme", "no :scheme", block(without=(":scheme",))),
        ("8.3.1/no-path", "no :path", block(without=(":path",))), ("8.3.1/method-twice", ":method twice", literal(":method", "GET") + block()),
        ("8.3.1/scheme-twice", ":scheme twice", literal(":scheme", "http") + block()), ("8.3.1/path-twice", ":path twice", literal(":path", "/") + block())):
    stream(_name, _what, PROTOCOL_ERROR, (HEADERS, WHOLE, 1, _block))

# A field `x` up to its value, which is `x-test` by Huffman's code: 33 bits.
_X = literal("x", "")[:-1]
for _name, _what, _bytes in (
        ("hpack/2.3.3-index", "an index above the tables", b"\xfe"), ("hpack/2.3.3-literal", "a name's index above the tables", b"\x7e\0"), ("hpack/4.2-update", "a size update at the end of a block", number(1, 5, 0x20)),
        ("hpack/5.2-padding", "a padding of more than 7 bits", _X + b"\x86\xf2\xb2\x4a\x84\xff\xff"), ("hpack/5.2-zero", "a padding of zeros", _X + b"\x85\xf2\xb2\x4a\x84\x80"),
        ("hpack/5.2-end", "the end of string within a string", _X + b"\x88\xf2\xb2\x4a\x84\xff\xff\xff\xff"), ("hpack/6.1-zero", "the index 0", b"\x80")):
    connection(_name, _what, COMPRESSION_ERROR, (HEADERS, WHOLE, 1, block() + _bytes))
connection("hpack/6.3-update", "a table larger than SETTINGS_HEADER_TABLE_SIZE", COMPRESSION_ERROR, (HEADERS, WHOLE, 1, number((1 << 20), 5, 0x20) + block()))

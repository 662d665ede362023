# What every server has to take: RFC 9113 used as it is meant.

@case("use/preface", "is answered with SETTINGS")
def _():
    c = Connection(greet=False)
    c.raw(PREFACE)
    c.send(SETTINGS, 0, 0)
    c.until(lambda kind, flags, of, data: kind == SETTINGS)


def priority(stream=0, weight=15, exclusive=False):
    return (stream | exclusive << 31).to_bytes(4, "big") + bytes([weight])


def accepted(name, what, *frames, fields=None, flags=END_STREAM | END_HEADERS, first=True):
    """The request of stream 1 is answered, whatever else is sent before or after."""
    @case(name, what)
    def _():
        c = Connection()
        if first:
            c.request(fields=fields, flags=flags)
        for frame in frames:
            c.send(*frame)
        if not first:
            c.request(fields=fields, flags=flags)
        c.answered()


accepted("use/priority-idle", "PRIORITY before its stream", (PRIORITY, 0, 1, priority()), first=False)
accepted("use/window-half-closed", "WINDOW_UPDATE after END_STREAM", (WINDOW_UPDATE, 0, 1, b"\0\0\0\1"))
accepted("use/priority-half-closed", "PRIORITY after END_STREAM", (PRIORITY, 0, 1, priority()))
accepted("use/data", "DATA", (DATA, END_STREAM, 1, b"test"), fields=block(method="POST"), flags=END_HEADERS)
accepted("use/data-many", "several DATA", (DATA, 0, 1, b"te"), (DATA, 0, 1, b""), (DATA, END_STREAM, 1, b"st"), fields=block(method="POST"), flags=END_HEADERS)
accepted("use/data-padded", "DATA with padding", (DATA, END_STREAM | PADDED, 1, b"\4test\0\0\0\0"), fields=block(method="POST"), flags=END_HEADERS)
accepted("use/headers", "HEADERS")
accepted("use/window-connection", "WINDOW_UPDATE of the connection", (WINDOW_UPDATE, 0, 0, b"\0\0\0\1"), first=False)
accepted("use/window-stream", "WINDOW_UPDATE of an open stream", (WINDOW_UPDATE, 0, 1, b"\0\0\0\1"), (DATA, END_STREAM, 1, b"x"), fields=block(method="POST"), flags=END_HEADERS)
for _weight in (0, 255):
    accepted(f"use/priority-weight-{_weight}", "PRIORITY of any weight", (PRIORITY, 0, 1, priority(weight=_weight)), first=False)
accepted("use/priority-dependency", "PRIORITY below a stream that is not there", (PRIORITY, 0, 1, priority(7)), first=False)
accepted("use/priority-exclusive", "PRIORITY exclusive", (PRIORITY, 0, 1, priority(7, exclusive=True)), first=False)
accepted("use/priority-higher", "PRIORITY of a higher stream does not close lower ones", (PRIORITY, 0, 9, priority()), first=False)
accepted("use/settings", "SETTINGS within the connection", (SETTINGS, 0, 0, settings((MAX_STREAMS, 10))), first=False)
accepted("use/trailers", "trailers", (DATA, 0, 1, b"test"), (HEADERS, END_STREAM | END_HEADERS, 1, literal("x-sum", "1")), fields=block(method="POST"), flags=END_HEADERS)
accepted("use/content-length", "DATA as long as it says", (DATA, END_STREAM, 1, b"test"), fields=block(("content-length", "4"), method="POST"), flags=END_HEADERS)


def whole(name, what, *frames):
    @case(name, what)
    def _():
        c = Connection()
        for frame in frames:
            c.send(*frame)
        c.answered()


_half = len(block()) // 2
whole("use/padded", "HEADERS with padding", (HEADERS, END_STREAM | END_HEADERS | PADDED, 1, b"\3" + block() + b"\0\0\0"))
whole("use/prioritized", "HEADERS with priority", (HEADERS, END_STREAM | END_HEADERS | PRIORITIZED, 1, priority(3) + block()))
whole("use/continuation", "a block in two frames", (HEADERS, END_STREAM, 1, block()[:_half]), (CONTINUATION, END_HEADERS, 1, block()[_half:]))
whole("use/continuations", "a block in many frames", (HEADERS, END_STREAM, 1, block()[:4]), *[
    (CONTINUATION, 0, 1, block()[at:at + 4]) for at in range(4, 16, 4)], (CONTINUATION, END_HEADERS, 1, block()[16:]))
whole("4.1/unknown-flag", "flags that nothing defines", (HEADERS, END_STREAM | END_HEADERS | 0x52, 1, block()))


@case("use/head", "HEAD, which has an answer without DATA")
def _():
    c = Connection()
    c.request(fields=block(method="HEAD"))
    c.answered()
    c.send(PING, 0, 0, bytes(8))
    while (frame := c.frame()) and frame[0] != PING:
        if frame[0] == DATA and frame[3]:
            raise Wrong("DATA came")


@case("use/reset", "RST_STREAM of a stream leaves the connection alone")
def _():
    c = Connection()
    c.request(fields=block(method="POST"), flags=END_HEADERS)
    c.send(RST_STREAM, 0, 1, b"\0\0\0\x08")
    c.alive()


@case("use/reset-half-closed", "RST_STREAM after END_STREAM")
def _():
    c = Connection()
    c.request()
    c.send(RST_STREAM, 0, 1, b"\0\0\0\x08")
    c.alive()
    c.request(3)
    c.answered(3)


@case("use/priority-closed", "PRIORITY after the answer")
def _():
    c = Connection()
    c.request()
    c.ended()
    c.send(PRIORITY, 0, 1, priority())
    c.request(3)
    c.answered(3)


@case("use/goaway", "GOAWAY of a client: what is under way is answered")
def _():
    c = Connection()
    c.request()
    c.send(GOAWAY, 0, 0, bytes(8))
    c.answered()


@case("use/many", "requests at once")
def _():
    c = Connection()
    for stream in range(1, 60, 2):
        c.request(stream)
    for _ in range(30):
        c.until(lambda kind, flags, of, data: kind == HEADERS)


@case("use/ping", "PING")
def _():
    Connection().alive()


# HPACK (RFC 7541, section 6), plain and by Huffman's code.
_huffman = bytes([0x88]) + bytes.fromhex("25a849e95ba97d7f"), bytes([0x89]) + bytes.fromhex("25a849e95bb8e8b4bf")
_plain = string("custom-key"), string("custom-value")
for _name, _first, _bits in (("incremental", 0x40, 6), ("without", 0x00, 4), ("never", 0x10, 4)):
    for _code, (_key, _value) in (("plain", _plain), ("huffman", _huffman)):
        accepted(f"hpack/{_name}-new-{_code}", "a new name", fields=block() + bytes([_first]) + _key + _value)
        accepted(f"hpack/{_name}-indexed-{_code}", "an indexed name", fields=block() + number(58, _bits, _first) + _value)
accepted("hpack/indexed", "an indexed field", fields=bytes([0x82, 0x86, 0x84]) + literal(":authority", authority))
accepted("hpack/size-update", "a smaller table", fields=number(128, 5, 0x20) + block())
accepted("hpack/size-updates", "a smaller table, and a larger one", fields=number(0, 5, 0x20) + number(4096, 5, 0x20) + block())


@case("hpack/dynamic", "a field that an earlier request has put into the table")
def _():
    c = Connection()
    c.request(1, block() + literal("x-custom", "value", 0x40))
    c.ended(1)
    c.request(3, block() + bytes([0x80 | 62]))
    c.answered(3)

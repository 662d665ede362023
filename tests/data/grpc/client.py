# The cases of gRPC's "Interoperability Test Case Descriptions", by their names there.
import grpc, queue, sys

channel = grpc.insecure_channel(sys.argv[1])
grpc.channel_ready_future(channel).result(timeout=10)
PATIENCE = 10
SIZES = 31415, 9, 2653, 58979
BODIES = 27182, 8, 1828, 45904


def call(kind, method, service=SERVICE):
    return getattr(channel, kind)(service + method)


def expect(got, wanted):
    assert got == wanted, f"{got!r} instead of {wanted!r}"


def failure(function):
    try:
        function()
    except grpc.RpcError as error:
        return error.code(), error.details()
    raise AssertionError("no error")


def parameters(size, interval_us=0):
    return (2, encode((1, size), *([(2, interval_us)] if interval_us else [])))


def duplex(**options):
    """A call with a queue of what is still to be sent; None ends it."""
    requests = queue.Queue()
    return requests, call("stream_stream", "FullDuplexCall")(iter(requests.get, None), **{"timeout": PATIENCE, **options})


def ask(requests, size, body, *more):
    requests.put(encode(parameters(size), (3, payload(body)), *more))


def empty_unary():
    expect(call("unary_unary", "EmptyCall")(b"", timeout=PATIENCE), b"")


def large_unary():
    answer = call("unary_unary", "UnaryCall")(encode((2, 314159), (3, payload(271828))), timeout=PATIENCE)
    expect(size_of(answer), 314159)


def client_streaming():
    requests = (encode((1, payload(size))) for size in BODIES)
    answer = call("stream_unary", "StreamingInputCall")(requests, timeout=PATIENCE)
    expect(decode(answer)[1][0], 74922)


def server_streaming():
    answers = call("unary_stream", "StreamingOutputCall")(encode(*map(parameters, SIZES)), timeout=PATIENCE)
    expect([size_of(answer) for answer in answers], list(SIZES))


def ping_pong():
    requests, answers = duplex()
    for size, body in zip(SIZES, BODIES):
        ask(requests, size, body)
        expect(size_of(next(answers)), size)
    requests.put(None)
    expect(list(answers), [])
    expect(answers.code(), grpc.StatusCode.OK)


def empty_stream():
    requests, answers = duplex()
    requests.put(None)
    expect(list(answers), [])
    expect(answers.code(), grpc.StatusCode.OK)


def custom_metadata():
    metadata = (INITIAL, "test_initial_metadata_value"), (TRAILING, b"\xab\xab\xab")

    def check(of):
        expect(dict(of.initial_metadata())[INITIAL], metadata[0][1])
        expect(dict(of.trailing_metadata())[TRAILING], metadata[1][1])

    request = encode((2, 314159), (3, payload(271828)))
    check(call("unary_unary", "UnaryCall").with_call(request, metadata=metadata, timeout=PATIENCE)[1])
    requests, answers = duplex(metadata=metadata)
    ask(requests, 314159, 271828)
    requests.put(None)
    expect([size_of(answer) for answer in answers], [314159])
    check(answers)


def status(message):
    request = (7, encode((1, 2), (2, message)))
    wanted = grpc.StatusCode.UNKNOWN, message
    expect(failure(lambda: call("unary_unary", "UnaryCall")(encode(request), timeout=PATIENCE)), wanted)
    requests, answers = duplex()
    requests.put(encode(request))
    requests.put(None)
    expect(failure(lambda: list(answers)), wanted)


def status_code_and_message():
    status("test status message")


def special_status_message():
    status("\t\ntest with whitespace\r\nand Unicode BMP \u263a and non-BMP \U0001f608\t\n")


def unimplemented_method():
    code, _ = failure(lambda: call("unary_unary", "UnimplementedCall")(b"", timeout=PATIENCE))
    expect(code, grpc.StatusCode.UNIMPLEMENTED)


def unimplemented_service():
    code, _ = failure(lambda: call("unary_unary", "UnimplementedCall", "/grpc.testing.UnimplementedService/")(b"", timeout=PATIENCE))
    expect(code, grpc.StatusCode.UNIMPLEMENTED)


def cancel_after_begin():
    requests = queue.Queue()
    future = call("stream_unary", "StreamingInputCall").future(iter(requests.get, None), timeout=PATIENCE)
    future.cancel()
    requests.put(None)
    assert future.cancelled()
    expect(future.code(), grpc.StatusCode.CANCELLED)


def cancel_after_first_response():
    requests, answers = duplex()
    ask(requests, 31415, 27182)
    expect(size_of(next(answers)), 31415)
    answers.cancel()
    requests.put(None)
    expect(failure(lambda: list(answers))[0], grpc.StatusCode.CANCELLED)


def timeout_on_sleeping_server():
    requests, answers = duplex(timeout=0.001)
    ask(requests, 31415, 27182)
    code, _ = failure(lambda: list(answers))
    requests.put(None)
    expect(code, grpc.StatusCode.DEADLINE_EXCEEDED)


for case in (empty_unary, large_unary, client_streaming, server_streaming, ping_pong, empty_stream, custom_metadata,
             status_code_and_message, special_status_message, unimplemented_method, unimplemented_service,
             cancel_after_begin, cancel_after_first_response, timeout_on_sleeping_server, empty_unary):
    try:
        case()
        print(case.__name__, "passed")
    except (AssertionError, grpc.RpcError, KeyError, StopIteration) as error:
        print(case.__name__, "FAILED:", repr(error)[:300])

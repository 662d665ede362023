# The server's side of gRPC's interoperability tests.
import grpc, sys, time
from concurrent import futures


def echo_metadata(context):
    sent = dict(context.invocation_metadata())
    if INITIAL in sent:
        context.send_initial_metadata(((INITIAL, sent[INITIAL]),))
    if TRAILING in sent:
        context.set_trailing_metadata(((TRAILING, sent[TRAILING]),))


def echo_status(request, context):
    if 7 in request:
        status = decode(request[7][0])
        code = next(code for code in grpc.StatusCode if code.value[0] == status[1][0])
        context.abort(code, status.get(2, [b""])[0].decode())


def unary(request, context):
    echo_metadata(context)
    request = decode(request)
    echo_status(request, context)
    return encode((1, payload(request.get(2, [0])[0])))


def outputs(request):
    for parameters in request.get(2, []):
        parameters = decode(parameters)
        time.sleep(parameters.get(2, [0])[0] / 1e6)
        yield encode((1, payload(parameters.get(1, [0])[0])))


def streaming_input(requests, context):
    return encode((1, sum(size_of(request) for request in requests)))


def full_duplex(requests, context):
    echo_metadata(context)
    for request in map(decode, requests):
        echo_status(request, context)
        yield from outputs(request)


class Service(grpc.GenericRpcHandler):
    METHODS = {
        "EmptyCall": grpc.unary_unary_rpc_method_handler(lambda request, context: b""),
        "UnaryCall": grpc.unary_unary_rpc_method_handler(unary),
        "StreamingOutputCall": grpc.unary_stream_rpc_method_handler(lambda request, context: outputs(decode(request))),
        "StreamingInputCall": grpc.stream_unary_rpc_method_handler(streaming_input),
        "FullDuplexCall": grpc.stream_stream_rpc_method_handler(full_duplex),
    }

    def service(self, details):
        return self.METHODS.get(details.method.removeprefix(SERVICE))


server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
server.add_generic_rpc_handlers((Service(),))
server.add_insecure_port(sys.argv[1])
server.start()
server.wait_for_termination()

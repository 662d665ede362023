"""Sends the requests of a list, each over a connection of its own, and prints
what came back, a line of JSON each. Arguments: address, name of the side, where `shadow` is."""
import itertools, json, random, socket, sys, time
from concurrent.futures import ThreadPoolExecutor

address, side, shadow = sys.argv[1:4]

IGNORED = {"date", "server", "x-envoy-upstream-service-time", "connection", "keep-alive", "x-case", "x-request-id", "x-forwarded-proto",
           "x-envoy-internal", "x-envoy-external-address"}


def request(method, path, headers="", body=b"", version="1.1", host="web", answer="200", name=None):
    head = f"{method} {path} HTTP/{version}\r\n" + (f"host: {host}\r\n" if host is not None else "")
    head += f"x-answer: {answer}\r\n" if answer != "200" else ""
    head += headers + "\r\n" if headers else ""
    chunks = body if isinstance(body, list) else None
    if chunks is not None:
        data = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks[:-1]) + b"0\r\n" + chunks[-1] + b"\r\n"
        head += "transfer-encoding: chunked\r\n"
    else:
        data = body
        head += f"content-length: {len(body)}\r\n" if body else ""
    return name or f"{method} {path}", method, head, data

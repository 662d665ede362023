# The same requests as ever: the seed is fixed.
PATHS = """/ /exact /exact/ /exact?q=1 /Exact /prefix/ /prefix/a/b?c=d /prefix /prefixed /regex/abc12 /regex/abc12/ /regex/ABC
/regex/abc12?x=y /case/exact /CASE/EXACT /Case/Exact?q /CASE/prefix/Rest /case/PREFIX /method /method?x=1 /authority
/headers /headers/deep /query?a=1 /query?a=1&a=2 /query?a=2&a=1 /query?a=xy /query?b= /query?b /query?b=12 /query?b=12x /query?b=%31
/query /query?B=12 /query?c=3&b=7 /rewrite/exact /rewrite/exact?q=1 /rewrite/exact/ /rewrite/regex/one/two?q=%20
/rewrite/regex/a%2Fb/c /rewrite/regex/ /redirect/path /redirect/path/x?y=z /redirect/prefix/x?y=z /redirect/prefixed
/redirect/all/x?y=z /redirect/https?y=z /redirect/port?y /redirect/host/x /direct/text /direct/plain/x /direct/empty
/edit /edit?x=1 /host /cors /cors/x /abort/http /abort/grpc /delay /retry/off /mirror /mirror?x=1 /nowhere /plain /plain?
/plain?a=b&a=c /plain/a%20b /plain/%7Euser /plain/%41%2f%2F%5c /plain//double//slash /plain/./dot/../x /plain/a/.. /plain/a/b/.
/plain/../exact /plain/..%2fexact /plain/%2e%2e/exact /plain/x/../../exact /../../exact /exact/../plain /plain\\back /plain/a;b=c/d
/plain/..;/x /plain/%zz /plain/% /plain/a+b?c+d=%2B&e=f%26g /plain?q=/../x /plain/"quoted" /plain/{braces} /plain/~tilde!$&'()*,=:@
/unmatched /plain/%00 /plain/%C3%A9 /plain/a|b^c""".split()
MIRRORED = ["/mirror"]
METHODS = ["GET"] * 6 + ["POST", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "PURGE"]
HEADERS = [
    "end-user: jason", "end-user: jason\r\nx-there: 1", "end-user: jason\r\nend-user: bob", "END-USER: james", "end-user: bob",
    "x-there:", "X-There: a", "end-user:   jason  ", "x-added: client", "x-set: client\r\nx-set: again", "x-removed: 1\r\nX-Removed: 2",
    "cookie: a=b\r\ncookie: c=d", "x-list: a, b\r\nx-list: c", "accept: */*\r\nuser-agent: me", "te: trailers", "te: gzip, trailers",
    "connection: x-hop\r\nx-hop: 1", "connection: close", "connection: keep-alive\r\nkeep-alive: timeout=5", "proxy-connection: x",
    "x-unmatched: yes", "origin: https://good.example", "origin: https://a.good.example", "origin: https://bad.example",
    "origin: https://good.example\r\naccess-control-request-method: PUT", "origin: https://bad.example\r\naccess-control-request-method: PUT",
    "x-forwarded-for: 1.2.3.4", "x-envoy-max-retries: 1", "x-request-id: mine", "x-latin: caf\xe9", "x-long: " + "v" * 3000,
    "content-type: application/grpc", "upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAMAAABkAAQAAP__",
    "via: 1.1 other", "x-empty:", "authorization: Basic eDp5", "range: bytes=0-3", "x_under_score: 1", "x.dot: 1"]
NO_ORIGIN = [fields for fields in HEADERS if not fields.startswith("origin")]
HOSTS = ["web"] * 6 + ["web:80", "WEB", "special.example", "shop.example", "special.example:80", "Special.example"]
ANSWERS = ["200"] * 8 + ["404", "500", "503", "204", "304", "chunked", "close", "early-hints", "201", "429"]


def requests():
    chance = random.Random(20261124)
    for path in PATHS:
        yield request("GET", path)
    for path, extra in itertools.product(["/plain", "/headers", "/edit", "/cors", "/format?x=y"], HEADERS):
        yield request("OPTIONS" if path == "/cors" and "access-control" in extra else "GET", path, extra)
    for _ in range(260):
        method = chance.choice(METHODS)
        body = b""
        if method in ("POST", "PUT", "PATCH", "PURGE"):
            size = chance.choice([0, 1, 17, 5000, 70000])
            body = bytes(chance.choices(b"abcdef", k=size))
            if chance.random() < 0.4 and size:
                body = [body[:size // 2 + 1], body[size // 2 + 1:] or b"z", b""]
        version = "1.0" if chance.random() < 0.1 and not isinstance(body, list) else "1.1"
        yield request(method, chance.choice(PATHS), "\r\n".join(chance.sample(chance.choice([HEADERS, NO_ORIGIN]), 1) + chance.sample(NO_ORIGIN, chance.choice([0, 0, 1]))), body, version,
                      chance.choice(HOSTS), chance.choice(ANSWERS))
    for answer in ("503", "500", "409", "429", "recover", "reset", "slow", "200"):
        for path in ("/retry/code", "/retry/5xx", "/retry/reset", "/retry/off", "/timeout", "/plain", "/mirror"):
            if answer != "slow" or path in ("/retry/5xx", "/timeout"):
                yield request("GET", path, answer=answer, name=f"{answer} to {path}")
                yield request("POST", path, body=b"again", answer=answer, name=f"{answer} to POST {path}")
    for origin in ("https://good.example", "https://bad.example"):
        for more in ("", "\r\naccess-control-request-method: GET"):
            for path in ("/abort/http", "/abort/grpc", "/cors"):
                yield request("OPTIONS", path, f"origin: {origin}{more}")
    for name, value in {"upstream-rq-timeout-ms": "200", "upstream-rq-per-try-timeout-ms": "200"}.items():
        for path in ("/plain", "/timeout", "/retry/5xx", "/retry/off"):
            for more in ("", "\r\nx-envoy-retry-on: 5xx", "\r\nx-envoy-retry-on: reset\r\nx-envoy-max-retries: 3"):
                yield request("GET", path, f"x-envoy-{name}: {value}{more}", answer="slow")
    for lines in ("retry-on: 5xx", "retry-on: 5xx\r\nx-envoy-max-retries: 4", "max-retries: 4", "max-retries: 0", "max-retries: x",
                  "retry-on: retriable-status-codes\r\nx-envoy-retriable-status-codes: 503,x", "retry-on: nonsense",
                  "retry-grpc-on: unavailable", "upstream-rq-timeout-ms: 0", "upstream-rq-timeout-ms: -1"):
        for path in ("/plain", "/retry/code", "/retry/off"):
            yield request("GET", path, f"x-envoy-{lines}", answer="503")
        yield request("GET", "/timeout", f"x-envoy-{lines}")
    yield request("M-SEARCH", "/plain", name="another method")
    yield request("get", "/plain", name="method in small letters")
    yield request("GET", "/plain#fragment", name="fragment")
    yield request("GET", "/plain", "te: trailers", answer="trailers", name="response trailers")
    yield request("GET", "/plain", host=None, name="no host")
    yield request("GET", "/plain", host=None, version="1.0", name="no host in 1.0")
    yield request("GET", "/exact", version="1.0", headers="connection: keep-alive", name="1.0 keep-alive")
    yield request("GET", "/plain", headers="host: other", name="two hosts")
    yield request("GET", "http://web/exact?x=1", name="absolute form")
    yield request("GET", "http://other.example/exact?x=1", name="absolute form of another host")
    yield request("OPTIONS", "*", name="asterisk form")
    yield request("GET", "exact", name="no path")
    yield request("GET", "/plain", version="1.2", name="version 1.2")
    yield request("GET", "/plain", version="2.0", name="version 2.0")
    yield request("POST", "/plain", "expect: 100-continue", b"body", name="expect")
    yield request("POST", "/plain", "trailer: x-sum", [b"abc", b"x-sum: 1\r\n"], name="request trailers")
    yield request("GET", "/plain", "connection: upgrade\r\nupgrade: websocket", answer="upgrade", name="upgrade")
    yield request("GET", "/plain", "connection: upgrade\r\nupgrade: websocket", name="upgrade refused")
    for name, lines in {"length and chunked": "content-length: 3\r\ntransfer-encoding: chunked", "two lengths": "content-length: 3\r\ncontent-length: 4",
                        "same length twice": "content-length: 3\r\ncontent-length: 3", "length list": "content-length: 3, 3",
                        "signed length": "content-length: +3", "odd coding": "transfer-encoding: xchunked", "chunked twice": "transfer-encoding: chunked, chunked",
                        "coding in capitals": "transfer-encoding: Chunked", "identity": "transfer-encoding: identity\r\ncontent-length: 3",
                        "blank before colon": "x-a : 1", "folded": "x-a: 1\r\n  2", "no colon": "x-a", "bare newline": "x-a: 1\nx-b: 2",
                        "control in value": "x-a: 1\x01", "nul in value": "x-a: \0", "blank name": " x-a: 1", "return in value": "x-a: 1\rx-b: 2"}.items():
        yield name, "POST", f"POST /plain HTTP/1.1\r\nhost: web\r\n{lines}\r\n", b"3\r\nabc\r\n0\r\n\r\n" if "transfer-encoding" in lines else b"abc"

# What Istio makes of mixed.yaml for this client.
there = header("x-there")
both = {"request_mirror_policies": [{"cluster": "shadow", "disable_shadow_host_suffix_append": True, "trace_sampled": False}] * 2}
copy = {"request_mirror_policies": both["request_mirror_policies"][:1]}


def without(name, test):
    return header(name, test, invert_match=True, **({"treat_missing_header_as_empty": True} if test else {}))


def tried(count, on, numbers=(), **more):
    policy = retries(on, count, **more)
    return {**policy, "retriable_status_codes": list(numbers)} if numbers else policy


closed = {"allow_origin_string_match": [exact("https://good.example")]}
routes = [
    to({"prefix": "/delegated/again", "headers": [there, header(":method", exact("GET"))]},
       retries=tried(2, "reset,retriable-status-codes", [503]), action={"prefix_rewrite": "/again"},
       **{**edits("request", set={"x-set": "team"}, add={"x-added": "team"}), **edits("response", set={"x-team": "again"})}),
    to({"prefix": "/delegated/copy", "headers": [there], "query_parameters": [query("a", exact("1"))]}, action=copy,
       destination=edits("response", set={"x-team": "copy"}),
       typed_per_filter_config=cors(allow_origin_string_match=[regex("https://.*good\\.example")], allow_methods="PUT")),
    to({"prefix": "/delegated", "headers": [there]}, action={"host_rewrite_literal": "team.example"},
       **edits("response", set={"x-team": "rest"}, remove=["x-gone"])),
    to({**regex("/v[0-9]+/books/[^/]+"), "query_parameters": [query("page", regex("[0-9]+"))],
        "headers": [without("end-user", prefix("ja"))]},
       action={"regex_rewrite": {"pattern": {"regex": "^/v([0-9]+)/books/(.*)$"}, "substitution": "/books/\\2/of/\\1"}},
       **{**edits("request", set={"x-route": "regex", "x-was": "%REQ(:PATH)%"}, remove=["end-user"]), **edits("response", add={"x-app": "3"})}),
    to({**insensitive("prefix", "/Catalog"), "headers": [header(":method", exact("GET"))]},
       retries=tried(1, "retriable-status-codes", [503, 409]),
       action={"prefix_rewrite": "/c", "host_rewrite_literal": "catalog.example"},
       destination={**edits("request", add={"x-added": "catalog"}), **edits("response", remove=["x-gone"])}),
    {"match": insensitive("prefix", "/Catalog"),
     "redirect": {"prefix_rewrite": "/catalogue", "host_redirect": "other.example", "response_code": "TEMPORARY_REDIRECT"}},
    to({"prefix": "/shared"}, retries=tried(2, "5xx"), action={**copy, "prefix_rewrite": "/copied"},
       typed_per_filter_config={**fault(delay="0.05s"), **cors(
           allow_origin_string_match=[prefix("https://good.")], allow_methods="GET,POST", expose_headers="x-one,x-two", max_age="3600")},
       **edits("response", set={"x-shared": "%REQ(ORIGIN)%"})),
    to({"prefix": "/twice"}, action={**both, "prefix_rewrite": "/both/", "host_rewrite_literal": "both.example"},
       **edits("request", set={"x-set": "both"})),
    to({"prefix": "/never"}, **edits("request", remove=["x-removed"])),
    to({"prefix": "/broken", "headers": [header("end-user", exact("jason"))]},
       typed_per_filter_config={**fault(abort={"http_status": 429}, delay="0.05s"), **cors(**closed, allow_credentials=True)},
       **edits("response", set={"x-broken": "yes"}, remove=["content-type"])),
    {"match": {"prefix": "/broken"}, "direct_response": {"status": 503, "body": {"inline_string": "closed"}},
     "typed_per_filter_config": cors(**closed), **edits("response", add={"retry-after": "7"})},
    to({"path": "/one", "headers": [header("x-long", prefix("vvv"))]}, action={"prefix_rewrite": "/uno"}),
    to({"prefix": "/one/", "query_parameters": [query("q", exact("1"))]}, action={"prefix_rewrite": "/uno"}),
    to({**regex("/one[a-z]+"), "headers": [without("cookie", None)]},
       action={"regex_rewrite": {"pattern": {"regex": ".*"}, "substitution": "/uno"}}),
    to({"prefix": "/split"}, destination={**edits("request", add={"x-added": "heavy"}), **edits("response", set={"x-split": "heavy"})},
       **{**edits("request", set={"x-set": "rule"}), **edits("response", set={"x-set": "rule"})}),
    to({"prefix": "/name", "headers": [header(":authority", regex("[a-z]+\\.example")), header(":scheme", exact("http"))]},
       action={"host_rewrite_literal": "by-rewrite.example"}),
    {"match": {"prefix": "/name", "headers": [header(":scheme", exact("https"))]}, "direct_response": {"status": 410}},
    to({"prefix": "/mine"}, **edits("response", set={"x-mine": "yes"})),
    to({"prefix": "/late"}, timeout="0.4s", retries=tried(3, "gateway-error,reset", per_try_timeout="0.15s"),
       typed_per_filter_config=fault(delay="0.1s")),
    {"match": {"prefix": "/moved", "headers": [header("x-there", regex(".*"))], "query_parameters": [query("to", prefix("new"))]},
     "redirect": {"path_redirect": "/new", "scheme_redirect": "https", "port_redirect": 444, "response_code": "PERMANENT_REDIRECT"},
     **edits("response", set={"x-moved": "%REQ(:AUTHORITY)%"})},
    # `derivePort`: the port is left to the scheme, and 80 is http's.
    {"match": {"prefix": "/moved", "headers": [header(":method", regex("GET|HEAD"))]}, "redirect": {"host_redirect": "port.example"}},
    to({"prefix": "/moved"}, retries=tried(2, "retriable-4xx,connect-failure"), action={"prefix_rewrite": "/"}),
    to({"path": "/call", "headers": [header("content-type", prefix("application/grpc"))]},
       typed_per_filter_config=fault(abort={"grpc_status": 8}), **edits("response", set={"x-call": "1"})),
    to({"path": "/call"}, action={"prefix_rewrite": "/called?with=1"}),
    {"match": {"prefix": "/", "headers": [header("x-unmatched", exact("yes")), without("x-there", regex("[a-z]"))]},
     "direct_response": {"status": 421}},
    to({"prefix": "/plain", "headers": [header("x-empty", exact(""))]}, **edits("response", set={"x-plain": "empty"})),
    to({"prefix": "/plain"}), to({"path": "/"}),
]

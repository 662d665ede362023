"""Prints the configuration of Envoy that Istio would make of rules.yaml. Arguments: address of
the listener, endpoint of `web`, endpoint of `shadow`."""
import json, sys

listener, web, shadow = (argument.rsplit(":", 1) for argument in sys.argv[1:4])
TYPE = "type.googleapis.com/envoy."


def exact(text, ignore_case=False):
    return {"exact": text, "ignore_case": ignore_case}


def prefix(text):
    return {"prefix": text}


def regex(text):
    return {"safe_regex": {"regex": text}}


def header(name, test=None, **more):
    return {"name": name, **({"string_match": test} if test else {"present_match": True}), **more}


def query(name, test):
    return {"name": name, "string_match": test}


def values(headers, action):
    return [{"header": {"key": name, "value": value}, "append_action": action} for name, value in headers.items()]


def edits(side, set={}, add={}, remove=()):
    to = values(set, "OVERWRITE_IF_EXISTS_OR_ADD") + values(add, "APPEND_IF_EXISTS_OR_ADD")
    return {f"{side}_headers_to_add": to, **({f"{side}_headers_to_remove": list(remove)} if remove else {})}


DEFAULT_RETRIES = {
    "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes", "num_retries": 2,
    "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {
        "@type": TYPE + "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}],
    "host_selection_retry_max_attempts": "5"}


def to(match, cluster="web", destination=None, timeout="0s", retries=DEFAULT_RETRIES, **more):
    """A route to the one destination, with the header edits of it in `destination`."""
    more = dict(more)
    route = {"cluster": cluster, "timeout": timeout, **({"retry_policy": retries} if retries else {}),
             **more.pop("action", {})}
    if destination:
        route.pop("cluster")
        route["weighted_clusters"] = {"clusters": [{"name": cluster, "weight": 1, **destination}]}
    return {"match": match, "route": route, **more}


def named(name):
    return edits("response", set={"x-route": name})


def fault(abort=None, delay=None):
    every = {"numerator": 100, "denominator": "HUNDRED"}
    return {"envoy.filters.http.fault": {
        "@type": TYPE + "extensions.filters.http.fault.v3.HTTPFault",
        **({"abort": {**abort, "percentage": every}} if abort else {}),
        **({"delay": {"fixed_delay": delay, "percentage": every}} if delay else {})}}


def cors(**policy):
    return {"envoy.filters.http.cors": {"@type": TYPE + "extensions.filters.http.cors.v3.CorsPolicy", **policy,
            "filter_enabled": {"default_value": {"numerator": 100}}, "forward_not_matching_preflights": True}}


def insensitive(kind, text):
    return {kind: text, "case_sensitive": False}


def retries(on, count, **more):
    return {**DEFAULT_RETRIES, "retry_on": on, "num_retries": count, **more}


web_edit = {**edits("request", set={"x-set": "destination"}, add={"x-added": "destination"}),
            **edits("response", set={"x-set": "destination"}, add={"x-app": "destination"})}
route_edit = {**edits("request", set={"x-set": "route", "x-mine": "100%%"}, add={"x-added": "route"}, remove=["x-removed"]),
              **edits("response", set={"x-set": "route"}, add={"x-app": "route"}, remove=["x-gone"])}

routes = [
    to({"path": "/exact"}, destination=named("exact")),
    to({"prefix": "/prefix/"}, destination=named("prefix"), action={"prefix_rewrite": "/"}),
    to(regex("/regex/[a-z]+[0-9]*"), destination=named("regex")),
    to(insensitive("path", "/Case/Exact"), destination=named("case-exact")),
    to(insensitive("prefix", "/case/Prefix"), destination=named("case-prefix"), action={"prefix_rewrite": "/lower"}),
    to({"prefix": "/method", "headers": [header(":method", exact("POST"))]}, destination=named("method")),
    to({"prefix": "/method", "headers": [header(":method", regex("P(UT|ATCH)"))]}, destination=named("method")),
    to({"prefix": "/authority", "headers": [header(":authority", exact("special.example"))]}, destination=named("authority")),
    to({"prefix": "/authority", "headers": [header(":authority", prefix("shop."))]}, destination=named("authority")),
    to({"prefix": "/headers", "headers": [header("end-user", exact("jason")), header("x-there")]}, destination=named("headers-exact")),
    to({"prefix": "/headers", "headers": [header("end-user", prefix("ja"))]}, destination=named("headers-prefix")),
    to({"prefix": "/headers", "headers": [header("end-user", regex("[a-z]+,[a-z]+"))]}, destination=named("headers-regex")),
    to({"prefix": "/headers", "headers": [
        header("end-user", exact("bob"), invert_match=True, treat_missing_header_as_empty=True),
        header("x-there", invert_match=True)]}, destination=named("headers-without")),
    to({"prefix": "/query", "query_parameters": [query("a", exact("1"))]}, destination=named("query-exact")),
    to({"prefix": "/query", "query_parameters": [query("a", prefix("x"))]}, destination=named("query-prefix")),
    to({"prefix": "/query", "query_parameters": [query("b", exact(""))]}, destination=named("query-empty")),
    to({"prefix": "/query", "query_parameters": [query("b", regex("[0-9]+"))]}, destination=named("query-regex")),
    to({"path": "/rewrite/exact"}, action={"prefix_rewrite": "/new", "host_rewrite_literal": "new.example"}),
    to({"prefix": "/rewrite/regex"}, action={"regex_rewrite": {
        "pattern": {"regex": "^/rewrite/regex/([^/]+)/(.*)$"}, "substitution": "/\\2/by/\\1"}}),
    {"match": {"prefix": "/redirect/path"}, "redirect": {"path_redirect": "/elsewhere"}},
    {"match": {"prefix": "/redirect/prefix"}, "redirect": {"prefix_rewrite": "/p", "response_code": "PERMANENT_REDIRECT"}},
    {"match": {"prefix": "/redirect/all"}, "redirect": {
        "path_redirect": "/all", "host_redirect": "other.example", "scheme_redirect": "https", "port_redirect": 8443, "response_code": "FOUND"}},
    {"match": {"prefix": "/redirect/https"}, "redirect": {"scheme_redirect": "https", "response_code": "TEMPORARY_REDIRECT"}},
    {"match": {"prefix": "/redirect/port"}, "redirect": {"port_redirect": 8080, "response_code": "SEE_OTHER"}},
    {"match": {"prefix": "/redirect/host"}, "redirect": {"host_redirect": "other.example"}, **edits("response", set={"x-redirected": "yes"})},
    {"match": {"prefix": "/direct/text"}, "direct_response": {"status": 418, "body": {"inline_string": "short and stout"}},
     **edits("response", set={"content-type": "text/teapot"}, add={"x-direct": "1"})},
    {"match": {"prefix": "/direct/plain"}, "direct_response": {"status": 200, "body": {"inline_string": "plain"}}},
    {"match": {"prefix": "/direct/empty"}, "direct_response": {"status": 204}},
    to({"prefix": "/edit"}, destination=web_edit, **route_edit),
    to({"prefix": "/format"},
       **edits("request", set={"x-target": "%REQ(:PATH)% of %REQ(:AUTHORITY)%", "x-either": "%REQ(X-MISSING?X-SET)%",
                               "x-none": "%REQ(x-missing)%", "x-short": "%REQ(X-LONG):5%!"}, add={"x-list": "%PROTOCOL%"}),
       **edits("response", set={"x-method": "%REQ(:METHOD)%", "x-escaped": "%%REQ(x)%%"}, add={"x-app": "%REQ(x-set)%"})),
    to({"prefix": "/host"}, action={"host_rewrite_literal": "set.example"}),
    to({"prefix": "/cors"}, typed_per_filter_config=cors(
        allow_origin_string_match=[exact("https://good.example"), regex("https://.*\\.good\\.example")],
        allow_methods="GET,PUT", allow_headers="x-one,x-two", expose_headers="x-app", max_age="600", allow_credentials=True)),
    to({"prefix": "/abort/http"}, typed_per_filter_config={**fault(abort={"http_status": 555}), **cors(
        allow_origin_string_match=[exact("https://good.example")], allow_methods="GET")}, **edits("response", set={"x-set": "fault"})),
    to({"prefix": "/abort/grpc"}, typed_per_filter_config=fault(abort={"grpc_status": 14})),
    to({"prefix": "/delay"}, typed_per_filter_config=fault(delay="0.3s")),
    to({"prefix": "/timeout"}, timeout="0.3s"),
    to({"prefix": "/retry/code"}, retries=retries("retriable-status-codes", 3, retriable_status_codes=[503])),
    to({"prefix": "/retry/5xx"}, retries=retries("5xx", 2, per_try_timeout="0.3s")),
    to({"prefix": "/retry/reset"}, retries=retries("reset,retriable-4xx", 2)),
    to({"prefix": "/retry/off"}, retries=None),
    to({"prefix": "/mirror"}, action={"request_mirror_policies": [{
        "cluster": "shadow", "disable_shadow_host_suffix_append": True, "trace_sampled": False}]},
       **edits("request", set={"x-copied": "yes"})),
    to({"prefix": "/nowhere"}, cluster="absent"),
    {"match": {"prefix": "/", "headers": [header("x-unmatched", exact("yes"))]}, "direct_response": {"status": 421}},
    to({"prefix": "/plain"}), to({"path": "/"}), to({"prefix": "/.."}),
]


def filter_of(name, kind):
    return {"name": "envoy.filters.http." + name, "typed_config": {"@type": TYPE + "extensions.filters.http." + kind}}


def cluster(name, endpoint):
    address = {"socket_address": {"address": endpoint[0], "port_value": int(endpoint[1])}}
    return {"name": name, "connect_timeout": "10s", "circuit_breakers": {"thresholds": [{"max_retries": 4294967295}]}, "load_assignment": {
        "cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}}


manager = {
    "@type": TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "stat_prefix": "beside", "normalize_path": True, "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
    "http_protocol_options": {"accept_http_10": True, "default_host_for_http_10": "web.default.svc.cluster.local"},
    # The application's own wishes (`x-envoy-...`) count, as from anybody inside.
    "use_remote_address": True, "skip_xff_append": True,
    "internal_address_config": {"cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]},
    "upgrade_configs": [{"upgrade_type": "websocket"}], "stream_idle_timeout": "0s",
    "route_config": {"validate_clusters": False, "ignore_port_in_host_matching": True, "virtual_hosts": [
        {"name": "web", "domains": ["*"], "include_request_attempt_count": True, "routes": routes}]},
    "http_filters": [filter_of("fault", "fault.v3.HTTPFault"), filter_of("cors", "cors.v3.Cors"),
                     filter_of("router", "router.v3.Router")]}
print(json.dumps({"static_resources": {
    "listeners": [{"name": "outbound",
        "address": {"socket_address": {"address": listener[0], "port_value": int(listener[1])}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}]}],
    "clusters": [cluster("web", web), cluster("shadow", shadow)]}}))

"""Prints the configuration of Envoy that Istio would make of mesh.yaml. Arguments: address of `web`,
of `guarded`, file of the access log."""
import json, sys

web, guarded, log = sys.argv[1:4]
TYPE = "type.googleapis.com/envoy."
EVERY = {"numerator": 100, "denominator": "HUNDRED"}
# pilot/pkg/model/telemetry_logging.go
FIELDS = {
    "start_time": "%START_TIME%", "route_name": "%ROUTE_NAME%", "method": "%REQ(:METHOD)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%", "protocol": "%PROTOCOL%", "response_code": "%RESPONSE_CODE%",
    "response_flags": "%RESPONSE_FLAGS%", "response_code_details": "%RESPONSE_CODE_DETAILS%",
    "connection_termination_details": "%CONNECTION_TERMINATION_DETAILS%", "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%", "duration": "%DURATION%", "upstream_service_time": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    "x_forwarded_for": "%REQ(X-FORWARDED-FOR)%", "user_agent": "%REQ(USER-AGENT)%", "request_id": "%REQ(X-REQUEST-ID)%",
    "authority": "%REQ(:AUTHORITY)%", "upstream_host": "%UPSTREAM_HOST%", "upstream_cluster": "%UPSTREAM_CLUSTER_RAW%",
    "upstream_local_address": "%UPSTREAM_LOCAL_ADDRESS%", "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%", "requested_server_name": "%REQUESTED_SERVER_NAME%",
    "upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%"}
access_log = [{"name": "file", "typed_config": {
    "@type": TYPE + "extensions.access_loggers.file.v3.FileAccessLog", "path": log,
    "log_format": {"json_format": FIELDS}}}]
DEFAULT_RETRIES = {
    "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes", "num_retries": 2,
    "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {
        "@type": TYPE + "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}],
    "host_selection_retry_max_attempts": "5"}


def name(host, subset="", port=80):
    return f"outbound|{port}|{subset}|{host}.default.svc.cluster.local"


def to(route_name, path, cluster, retries=DEFAULT_RETRIES, timeout="0s", filters=None, **more):
    route = {"cluster": cluster, "timeout": timeout, **more}
    if retries:
        route["retry_policy"] = retries
    return {"name": route_name, "match": {"prefix": path}, "route": route, "typed_per_filter_config": filters or {}}


def fault(**what):
    return {"envoy.filters.http.fault": {"@type": TYPE + "extensions.filters.http.fault.v3.HTTPFault", **what}}


delay = {"delay": {"fixed_delay": "0.1s", "percentage": EVERY}}
cors = {"envoy.filters.http.cors": {
    "@type": TYPE + "extensions.filters.http.cors.v3.CorsPolicy", "allow_origin_string_match": [{"exact": "https://good.example"}],
    "allow_methods": "GET", "filter_enabled": {"default_value": {"numerator": 100}}, "forward_not_matching_preflights": True}}
routes = [
    to("refused", "/refused", name("gone"), None),
    to("again", "/again", name("gone")),
    to("slow", "/slow", name("web"), None, "1s"),
    to("tries", "/tries", name("web", "v1"), {**DEFAULT_RETRIES, "retry_on": "5xx", "per_try_timeout": "1s"}),
    to("delay", "/delay", name("web"), filters=fault(**delay)),
    to("both", "/both", name("web"), filters=fault(abort={"http_status": 418, "percentage": EVERY}, **delay)),
    to("abort", "/abort", name("web"), filters=fault(abort={"http_status": 503, "percentage": EVERY})),
    to("limited", "/limited", name("limited")),
    to("empty", "/empty", name("empty")),
    to("absent", "/absent", name("absent")),
    to("guarded", "/denied", name("guarded")),
    {"name": "moved", "match": {"prefix": "/moved"}, "redirect": {"path_redirect": "/there"}},
    {"name": "direct", "match": {"prefix": "/direct"}, "direct_response": {"status": 202, "body": {"inline_string": "taken"}}},
    to("cors", "/cors", name("web"), filters=cors),
    to("rewritten", "/old", name("web"), prefix_rewrite="/new"),
    to("once", "/once", name("web"), None),
    to("plain.all", "/plain", name("web")),
]


def filter_of(kind, config, **more):
    return {"name": "envoy.filters.http." + kind, "typed_config": {"@type": TYPE + "extensions.filters.http." + config, **more}}


def cluster(cluster_name, endpoint=None, thresholds=None):
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {
        "address": endpoint.rsplit(":", 1)[0], "port_value": int(endpoint.rsplit(":", 1)[1])}}}}]}] if endpoint else []
    return {"name": cluster_name, "connect_timeout": "10s", "circuit_breakers": {"thresholds": [{"max_retries": 4294967295, **(thresholds or {})}]},
            "load_assignment": {"cluster_name": cluster_name, "endpoints": endpoints}}


def manager(prefix, table, filters):
    return {
        "@type": TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": prefix,
        "normalize_path": True, "access_log": access_log, "use_remote_address": True, "skip_xff_append": True,
        "generate_request_id": False, "upgrade_configs": [{"upgrade_type": "websocket"}], "stream_idle_timeout": "0s",
        "route_config": {"validate_clusters": False, "virtual_hosts": [
            {"name": "web", "domains": ["*"], "include_request_attempt_count": True, "routes": table}]},
        "http_filters": filters}


def listener(port, network_filter, config):
    return {"name": str(port), "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
            "filter_chains": [{"filters": [{"name": network_filter, "typed_config": config}]}]}


def tcp(port, cluster_name):
    return listener(port, "tcp", {"@type": TYPE + "extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "tcp",
                                  "cluster": cluster_name, "access_log": access_log})


router = filter_of("router", "router.v3.Router")
rbac = filter_of("rbac", "rbac.v3.RBAC", rules={"action": "DENY", "policies": {"ns[default]-policy[closed]-rule[0]": {
    "permissions": [{"url_path": {"path": {"exact": "/denied"}}}], "principals": [{"any": True}]}}})
print(json.dumps({"static_resources": {
    "listeners": [
        listener(10000, "http", manager("outbound", routes, [
            filter_of("fault", "fault.v3.HTTPFault"), filter_of("cors", "cors.v3.Cors"), router])),
        # What stands in front of `guarded`.
        listener(10001, "http", manager("inbound", [to("default", "/", "inbound|8080||", None)], [rbac, router])),
        tcp(9000, name("raw", port=9000)), tcp(9001, name("raw", port=9001)), tcp(9002, name("empty", port=9002))],
    "clusters": [
        cluster(name("web"), f"{web}:8080"), cluster(name("web", "v1"), f"{web}:8080"), cluster(name("gone"), f"{web}:8081"),
        cluster(name("empty")), cluster(name("limited"), f"{web}:8080", {"max_requests": 1}),
        cluster(name("guarded"), "127.0.0.1:10001"), cluster("inbound|8080||", f"{guarded}:8080"),
        cluster(name("raw", port=9000), f"{web}:8080"), cluster(name("raw", port=9001), f"{web}:8081"),
        cluster(name("empty", port=9002))]}}))

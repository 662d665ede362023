# Around the table `routes`.
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

"""Prints a configuration of Envoy, of parts as Istio makes them. Arguments: address of the
listener, endpoint of `web`, endpoint of `shadow`. A table of routes follows, then `main.py`."""
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

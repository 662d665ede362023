//! May the kernel connect a client straight to an endpoint of a service? Only
//! where the agent would do nothing but choose one.

use super::upstream_policy::{Algorithm, Balancer, UpstreamPolicy, UpstreamTls};
use super::{ClientView, Routes};
use crate::registry::{Distribution, Resolution, Service};

/// How connections that need no proxy are spread over a service's endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectPlan {
    /// How an endpoint is chosen.
    pub algorithm: Algorithm,
}

/// Whether connections of `client` to `port` of `service` may be sent, at L4,
/// straight to the service's endpoints: no rule of a VirtualService and no
/// feature of a DestinationRule asks for the proxy.
///
/// The address that the client connects to decides, as in Istio's ambient mode:
/// a `Host` header that names another service is not looked at. The
/// connect timeout of a DestinationRule (and the retry of a failed connect) is the
/// kernel's. Whether policy and transport allow it is not decided here.
pub fn plan(
    routes: &Routes,
    client: &ClientView<'_>,
    service: &Service,
    port: u16,
) -> Option<DirectPlan> {
    service.port(port)?;
    let reachable = service.resolution == Resolution::Static
        && service.distribution == Distribution::Any
        && service.session_affinity.is_none()
        && service
            .endpoints
            .iter()
            .all(|endpoint| endpoint.address.is_some());
    if !reachable || routes.has_rules_for(&service.host, client) {
        return None;
    }
    match routes.destination_rule(client, service) {
        None => Some(DirectPlan {
            algorithm: Algorithm::default(),
        }),
        Some(rule) => without_proxy(rule.policy(port)).map(|algorithm| DirectPlan { algorithm }),
    }
}

/// The algorithm of a policy that asks for nothing else.
fn without_proxy(policy: &UpstreamPolicy) -> Option<Algorithm> {
    // Every field is named: a new one is thought about here.
    let UpstreamPolicy {
        balancer,
        locality,
        warmup,
        tls,
        connect_timeout: _,
        tcp,
        http,
        outlier,
        retry_budget: _,
        proxy_protocol,
        tunnel,
    } = policy;
    let Balancer::Simple(algorithm) = balancer else {
        return None;
    };
    let default = UpstreamPolicy::default();
    let plain = locality.is_none()
        && warmup.is_none()
        && matches!(tls, UpstreamTls::Auto | UpstreamTls::IstioMutual)
        && *tcp == default.tcp
        && *http == default.http
        && outlier.is_none()
        && proxy_protocol.is_none()
        && tunnel.is_none();
    plain.then_some(*algorithm)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::registry::Protocol;
    use crate::route::fixture::{registry, routes, service};

    fn plan_with(
        virtual_services: &[(&str, &str)],
        destination_rules: &[(&str, &str)],
    ) -> Option<DirectPlan> {
        let ports = [(80, Protocol::Http), (9000, Protocol::Tcp)];
        let address = "10.0.0.1:8080".parse().expect("an address");
        let reviews = service("reviews.default", &ports, &[(address, "v1")]);
        let registry = registry(vec![reviews.clone()]);
        let (routes, _) = routes(&registry, virtual_services, destination_rules);
        let client = ClientView {
            node: None,
            namespace: "default",
            labels: &BTreeMap::from([("app".to_owned(), "sleep".to_owned())]),
        };
        plan(&routes, &client, &reviews, 80)
    }

    fn policy(traffic_policy: &str) -> Option<Algorithm> {
        let spec = format!("{{host: reviews, trafficPolicy: {traffic_policy}}}");
        plan_with(&[], &[("default/r", &spec)]).map(|plan| plan.algorithm)
    }

    #[test]
    fn a_service_without_rules_needs_no_proxy() {
        let expected = DirectPlan {
            algorithm: Algorithm::LeastRequest,
        };
        assert_eq!(plan_with(&[], &[]), Some(expected));
    }

    #[test]
    fn simple_balancers_need_no_proxy() {
        for (traffic_policy, algorithm) in [
            ("{loadBalancer: {simple: RANDOM}}", Algorithm::Random),
            (
                "{loadBalancer: {simple: ROUND_ROBIN}}",
                Algorithm::RoundRobin,
            ),
            ("{tls: {mode: ISTIO_MUTUAL}}", Algorithm::LeastRequest),
            (
                "{connectionPool: {tcp: {connectTimeout: 1s}}}",
                Algorithm::LeastRequest,
            ),
        ] {
            assert_eq!(policy(traffic_policy), Some(algorithm), "{traffic_policy}");
        }
    }

    #[test]
    fn whatever_the_kernel_cannot_do_needs_the_proxy() {
        for traffic_policy in [
            "{outlierDetection: {}}",
            "{connectionPool: {tcp: {maxConnections: 1}}}",
            "{connectionPool: {tcp: {tcpKeepalive: {}}}}",
            "{connectionPool: {tcp: {maxConnectionDuration: 1h}}}",
            "{connectionPool: {tcp: {idleTimeout: 1m}}}",
            "{connectionPool: {http: {http1MaxPendingRequests: 1}}}",
            "{connectionPool: {http: {http2MaxRequests: 1}}}",
            "{connectionPool: {http: {maxRequestsPerConnection: 1}}}",
            "{connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}",
            "{loadBalancer: {consistentHash: {useSourceIp: true}}}",
            "{loadBalancer: {consistentHash: {httpHeaderName: x}}}",
            "{loadBalancer: {simple: PASSTHROUGH}}",
            "{loadBalancer: {localityLbSetting: {enabled: true}}}",
            "{loadBalancer: {warmup: {duration: 10s}}}",
            "{tls: {mode: DISABLE}}",
            "{tls: {mode: SIMPLE}}",
            "{proxyProtocol: {}}",
            "{tunnel: {targetHost: a, targetPort: 1}}",
        ] {
            assert_eq!(policy(traffic_policy), None, "{traffic_policy}");
        }
    }

    #[test]
    fn the_policy_of_the_port_counts() {
        let policy = "{outlierDetection: {}, portLevelSettings: \
                      [{port: {number: 80}, loadBalancer: {simple: RANDOM}}]}";
        assert_eq!(self::policy(policy), Some(Algorithm::Random));
    }

    #[test]
    fn rules_need_the_proxy() {
        let to = "route: [{destination: {host: reviews}}]";
        for spec in [
            format!("{{hosts: [reviews], http: [{{{to}}}]}}"),
            format!("{{hosts: [reviews], tcp: [{{{to}}}]}}"),
            format!("{{hosts: ['*.local'], http: [{{{to}}}]}}"),
            format!(
                "{{hosts: [reviews], http: [{{match: [{{sourceLabels: {{app: sleep}}, uri: {{prefix: /a}}}}], {to}}}]}}"
            ),
        ] {
            assert_eq!(plan_with(&[("default/v", &spec)], &[]), None, "{spec}");
        }
    }

    #[test]
    fn rules_for_others_do_not() {
        let to = "route: [{destination: {host: reviews}}]";
        for spec in [
            format!("{{hosts: [ratings], http: [{{{to}}}]}}"),
            format!("{{hosts: [reviews], gateways: [edge], http: [{{{to}}}]}}"),
            format!(
                "{{hosts: [reviews], http: [{{match: [{{sourceLabels: {{app: web}}}}], {to}}}]}}"
            ),
        ] {
            assert!(plan_with(&[("default/v", &spec)], &[]).is_some(), "{spec}");
        }
        let hidden = format!(
            "{{hosts: [reviews.default.svc.cluster.local], exportTo: ['.'], http: [{{{to}}}]}}"
        );
        assert!(plan_with(&[("shop/v", &hidden)], &[]).is_some());
    }

    #[test]
    fn subsets_alone_do_nothing() {
        let rule = "{host: reviews, subsets: [{name: v1, labels: {version: v1}, \
                    trafficPolicy: {outlierDetection: {}}}]}";
        assert!(plan_with(&[], &[("default/r", rule)]).is_some());
    }
}

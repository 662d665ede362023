//! Labels that follow from where a workload is, as Kubernetes gives them to nodes and Istio to endpoints.

use std::collections::BTreeMap;

use super::Endpoint;

/// Labels of a client or an endpoint with what its locality says.
pub fn topology<'a>(labels: &'a BTreeMap<String, String>, locality: &'a str, key: &str) -> &'a str {
    let part = match key {
        "topology.kubernetes.io/region" => 0,
        "topology.kubernetes.io/zone" => 1,
        "topology.istio.io/subzone" => 2,
        _ => return labels.get(key).map_or("", String::as_str),
    };
    let of_locality = locality.split('/').nth(part).unwrap_or_default();
    if of_locality.is_empty() {
        labels.get(key).map_or("", String::as_str)
    } else {
        of_locality
    }
}

impl Endpoint {
    /// Whether it has all of these labels.
    pub fn has(&self, labels: &BTreeMap<String, String>) -> bool {
        labels.iter().all(|(key, value)| {
            let of_place = || topology(&self.labels, &self.locality, key);
            self.labels.get(key) == Some(value) || (!value.is_empty() && of_place() == value)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_the_labels_of_its_place() {
        let labels = |text: &str| -> BTreeMap<String, String> {
            let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
            pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
        };
        let endpoint = Endpoint {
            labels: labels("version=v1,empty=").into(),
            locality: "eu/one".to_owned(),
            ..Endpoint::unknown(80, 80)
        };
        for (wanted, expected) in [
            ("", true),
            ("version=v1", true),
            ("version=v2", false),
            ("empty=", true),
            ("none=", false),
            ("version=v1,topology.kubernetes.io/region=eu", true),
            ("topology.kubernetes.io/zone=two", false),
            ("topology.istio.io/subzone=", false),
        ] {
            assert_eq!(endpoint.has(&labels(wanted)), expected, "{wanted}");
        }
    }
}

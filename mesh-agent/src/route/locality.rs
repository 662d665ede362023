//! `localityLbSetting`: which endpoints are near.

use crate::resource::destination_rule::LocalityLbSetting;

/// How near endpoints are preferred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalitySetting {
    /// Not at all.
    Off,
    /// Near ones first; where outlier detection says that they fail, others, those of
    /// the named regions (from, to) first.
    Failover(Vec<(String, String)>),
    /// Those first whose values of these labels are the client's, in order of weight;
    /// a label may demand a value of the endpoint. Among equals, near ones first, where
    /// regions are named, as above.
    FailoverPriority(Vec<(String, Option<String>)>, Vec<(String, String)>),
    /// Shares by locality of the client.
    Distribute(Vec<Shares>),
}

/// One `distribute` entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Locality of clients; may end in `*`.
    pub from: String,
    /// Localities of endpoints (may end in `*`) and their weights, which add up to 100.
    pub to: Vec<(String, u32)>,
}

impl LocalitySetting {
    pub(super) fn compile(block: &LocalityLbSetting) -> Self {
        if block.enabled == Some(false) {
            return Self::Off;
        }
        if !block.distribute.is_empty() {
            let shares = block.distribute.iter().map(|entry| Shares {
                from: entry.from.clone(),
                to: entry.to.clone().into_iter().collect(),
            });
            return Self::Distribute(shares.collect());
        }
        let regions = block.failover.iter();
        let regions = regions
            .map(|entry| (entry.from.clone(), entry.to.clone()))
            .collect();
        if !block.failover_priority.is_empty() {
            let labels = block
                .failover_priority
                .iter()
                .map(|label| match label.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (label.clone(), None),
                });
            return Self::FailoverPriority(labels.collect(), regions);
        }
        Self::Failover(regions)
    }
}

/// Whether a locality (`region/zone/subzone`) lies in another, whose end may be
/// left out or be `*`.
pub fn lies_in(locality: &str, area: &str) -> bool {
    let mut parts = locality.split('/');
    for part in area.split('/') {
        if part == "*" {
            return true;
        }
        if parts.next().unwrap_or_default() != part {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::lies_in;

    #[test]
    fn an_area_may_leave_its_end_open() {
        for (locality, area, expected) in [
            ("eu/west/a", "eu/west/a", true),
            ("eu/west/a", "eu/west/*", true),
            ("eu/west/a", "eu/*", true),
            ("eu/west/a", "eu", true),
            ("eu/west/a", "*", true),
            ("eu/west/a", "eu/east/*", false),
            ("eu/west", "eu/west/a", false),
            ("", "eu", false),
            ("europe", "eu", false),
        ] {
            assert_eq!(lies_in(locality, area), expected, "{locality} in {area}");
        }
    }
}

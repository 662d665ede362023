//! All clusters of a node.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use super::cluster::{Cluster, ClusterKey, Destination, EndpointPool};
use crate::registry::WorkloadName;

/// A cluster without use for so long is forgotten, with its ejections and idle connections.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(2 * 3600);

/// All clusters, made when they are used first.
pub struct Clusters<P> {
    /// By hash of the key, so that a look-up needs no key of its own.
    buckets: RwLock<HashMap<u64, Vec<Arc<Cluster<P>>>>>,
    hasher: RandomState,
}

impl<P> Default for Clusters<P> {
    fn default() -> Self {
        Self {
            buckets: RwLock::default(),
            hasher: RandomState::new(),
        }
    }
}

impl<P: EndpointPool> Clusters<P> {
    /// The cluster of a destination, in its present configuration.
    pub fn get(&self, destination: &Destination<'_>, now: Instant) -> Arc<Cluster<P>> {
        let hash = self.hash(destination);
        let known = self.find(hash, destination);
        let cluster = known.unwrap_or_else(|| self.add(hash, destination, now));
        cluster.refresh(destination, now);
        cluster
    }

    /// As [`Self::get`], faster where the destination is that of `last`.
    pub fn get_again(
        &self,
        last: &mut Option<Arc<Cluster<P>>>,
        destination: &Destination<'_>,
        now: Instant,
    ) -> Arc<Cluster<P>> {
        if let Some(last) = last
            && last.is_for(destination)
        {
            last.refresh(destination, now);
            return Arc::clone(last);
        }
        let cluster = self.get(destination, now);
        *last = Some(Arc::clone(&cluster));
        cluster
    }

    fn hash(&self, destination: &Destination<'_>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        destination.client.name.hash(&mut hasher);
        destination.service.host.hash(&mut hasher);
        destination.port.hash(&mut hasher);
        let subset = destination.subset.map(|subset| subset.name.as_str());
        subset.hash(&mut hasher);
        hasher.finish()
    }

    fn find(&self, hash: u64, destination: &Destination<'_>) -> Option<Arc<Cluster<P>>> {
        let buckets = self.buckets.read();
        let bucket = buckets.get(&hash)?;
        bucket
            .iter()
            .find(|cluster| cluster.is_for(destination))
            .cloned()
    }

    fn add(&self, hash: u64, destination: &Destination<'_>, now: Instant) -> Arc<Cluster<P>> {
        let mut buckets = self.buckets.write();
        let bucket = buckets.entry(hash).or_default();
        if let Some(known) = bucket.iter().find(|cluster| cluster.is_for(destination)) {
            return Arc::clone(known);
        }
        let key = ClusterKey {
            client: destination.client.name.clone(),
            service: destination.service.host.clone(),
            port: destination.port,
            subset: destination.subset.map(|subset| subset.name.clone()),
        };
        let cluster = Arc::new(Cluster::new(key, destination, now));
        bucket.push(Arc::clone(&cluster));
        cluster
    }

    /// All that are known.
    pub fn all(&self) -> Vec<Arc<Cluster<P>>> {
        self.buckets.read().values().flatten().cloned().collect()
    }

    /// Forgets those of a client that has left; its connections are not used again.
    pub fn forget(&self, client: &WorkloadName) {
        self.buckets.write().retain(|_, bucket| {
            bucket.retain(|cluster| {
                let is_its = cluster.key.client == *client;
                if is_its {
                    for (member, _) in cluster.members() {
                        member.host.pool.renew();
                    }
                }
                !is_its
            });
            !bucket.is_empty()
        });
    }

    /// Forgets those that nobody uses any more.
    pub fn forget_unused(&self, now: Instant) {
        let unused = |cluster: &Arc<Cluster<P>>| {
            let kept = FORGOTTEN_AFTER.max(cluster.session_affinity());
            Arc::strong_count(cluster) == 1 && cluster.idle(now) > kept
        };
        if !self.buckets.read().values().flatten().any(unused) {
            return;
        }
        self.buckets.write().retain(|_, bucket| {
            bucket.retain(|cluster| !unused(cluster));
            !bucket.is_empty()
        });
    }
}

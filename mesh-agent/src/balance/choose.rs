//! Which endpoint of a cluster a request goes to.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use rand::Rng;

use super::cluster::{Cluster, EndpointPool};
use super::host::{EndpointAddress, Member};
use super::set::Draw;
use super::state::State;
use crate::route::Balancer;

/// Picks that are made to find an endpoint which has not been tried (Envoy's
/// `host_selection_retry_max_attempts` in Istio's configuration).
const PICKS: u32 = 5;
/// Tries before `retryRemoteLocalities` looks elsewhere, as Istio configures Envoy.
const TRIES_PER_LOCALITY: usize = 2;

/// What a choice depends on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice<'a> {
    /// Hash of the request, where the balancer is consistent hashing and the request has the property.
    pub hash: Option<u64>,
    /// Endpoints to avoid where there are others, because they have been tried.
    pub avoid: &'a [EndpointAddress],
    /// Leave the localities of endpoints that have been tried twice, where there are others
    /// (`retryRemoteLocalities`).
    pub remote: bool,
    /// Address of the client: endpoints of its family come first where a service has both.
    pub like: Option<IpAddr>,
}

impl<P: EndpointPool> Cluster<P> {
    /// Chooses an endpoint; `None` where none is in service.
    pub fn choose(
        &self,
        choice: &Choice<'_>,
        now: Instant,
        random: &mut impl Rng,
    ) -> Option<Arc<Member<P>>> {
        let state = self.state.load();
        // A hash says more precisely who stays where.
        let session = (state.service.session_affinity)
            .filter(|_| matches!(state.policy.balancer, Balancer::Simple(_)));
        let Some(timeout) = session else {
            return self.draw(&state, choice, now, random);
        };
        let kept = self.session.endpoint(timeout, now).and_then(|address| {
            let mut members = state.members.iter();
            members.find(|member| member.host.address == address)
        });
        let stays = |member: &&Arc<Member<P>>| {
            !member.host.monitor.is_out() && !choice.avoid.contains(&member.host.address)
        };
        if let Some(member) = kept.filter(stays) {
            return Some(Arc::clone(member));
        }
        let chosen = self.draw(&state, choice, now, random)?;
        self.session.keep(&chosen.host.address, now);
        Some(chosen)
    }

    fn draw(
        &self,
        state: &State<P>,
        choice: &Choice<'_>,
        now: Instant,
        random: &mut impl Rng,
    ) -> Option<Arc<Member<P>>> {
        let draw = Draw {
            algorithm: state.policy.algorithm(),
            hash: choice.hash,
            turn: &|| self.turns.fetch_add(1, Relaxed),
            warmup: state.policy.warmup.map(|warmup| (warmup, now)),
        };
        // As in Istio, a hash decides even about a second try.
        let hashed = matches!(state.policy.balancer, Balancer::Hash(_));
        let avoid = if hashed { &[] } else { choice.avoid };
        let is_new = |member: &Member<P>| !avoid.contains(&member.host.address);
        if choice.remote
            && choice.avoid.len() >= TRIES_PER_LOCALITY
            && let Some(member) = state
                .view
                .near(choice.like)
                .find_map(|near| near.elsewhere(choice.avoid)?.draw(&draw, random).cloned())
        {
            return Some(member);
        }
        let mut tried = None;
        for near in state.view.near(choice.like) {
            let mut pick = || {
                let set = match choice.hash {
                    // The same hash always leads to the same place.
                    Some(hash) => near.set(|below| hash % below.max(1)),
                    None => near.set(|below| random.random_range(0..below.max(1))),
                };
                set?.draw(&draw, random)
            };
            let Some(mut picked) = pick() else { continue };
            for _ in 1..PICKS {
                if is_new(picked) {
                    break;
                }
                picked = pick()?;
            }
            if !is_new(picked)
                && let Some(new) = near.members().find(|member| is_new(member))
            {
                picked = new;
            }
            if is_new(picked) {
                return Some(Arc::clone(picked));
            }
            // A server may listen in one address family only: the other's are next.
            tried.get_or_insert(picked);
        }
        tried.cloned()
    }
}

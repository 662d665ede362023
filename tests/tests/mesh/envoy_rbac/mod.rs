//! AuthorizationPolicy, decided by our agent and by Envoy's RBAC filter as Istio configures it:
//! policies and requests come from a generator with a fixed seed, and every decision is the same.

mod generator;
mod table;
mod translate;
mod world;

use mesh_tests::{Node, envoy};
use serde_json::{Value, json};

use generator::{Dice, policies, request};
use world::{Normalization, World, envoy_configuration};

const PORT: u16 = 9080;
const TCP_PORT: u16 = 9090;
/// Sets of policies, and requests to each.
const SETS: usize = 24;
const REQUESTS: usize = 30;
/// Stands for the address that is asked, which is another one at Envoy.
const DESTINATION: &str = "DESTINATION";

/// `UNDERMESH_RBAC_SEED` makes other policies and requests.
fn compare(seed: u64, how: &Normalization) {
    let Some(binary) = envoy() else { return };
    let other = std::env::var("UNDERMESH_RBAC_SEED").ok();
    let mut dice = Dice(other.map_or(seed, |text| text.parse().expect("a number")));
    let sets: Vec<Vec<Value>> = (0..SETS).map(|_| policies(&mut dice)).collect();
    let requests: Vec<Vec<Value>> = (0..SETS)
        .map(|set| (0..REQUESTS).map(|_| request(&mut dice, set)).collect())
        .collect();

    let world = World::start(how);
    let place = world.lab.workload(Node::Outside, "envoy", &[]);
    let configuration = envoy_configuration(&world.lab, &place, &sets, how);
    let _envoy = place.envoy(&binary, PORT, &configuration);
    let of_envoy = world.outcomes(&requests.concat(), &place, |client| {
        if client.name == "nobody" {
            return ["-", "-"].map(str::to_owned);
        }
        let (chain, key) = world
            .lab
            .certificate_in(&client.namespace, &client.name, client);
        [chain, key].map(|path| path.to_string_lossy().into_owned())
    });
    let count = |outcome: &str| of_envoy.iter().filter(|one| *one == outcome).count();
    let (allowed, denied) = (count("allow"), count("deny"));
    assert!(
        allowed > 100 && denied > 100,
        "{allowed} allowed, {denied} denied"
    );

    let mut differences = String::new();
    for (set, policies) in sets.iter().enumerate() {
        world.apply(policies);
        let ours = world.outcomes(&requests[set], &world.web, |_| {
            ["plain", "-"].map(str::to_owned)
        });
        for (at, ours) in ours.iter().enumerate() {
            let envoys = &of_envoy[set * REQUESTS + at];
            // A path with a NUL is refused before policies are asked.
            let is_refused = envoys == "400" && requests[set][at]["path"] == "/a/b%00c";
            if ours != envoys && !is_refused {
                differences += &format!(
                    "we {ours}, Envoy {envoys}: {} by {}\n",
                    requests[set][at],
                    json!(policies)
                );
            }
        }
    }
    assert!(differences.is_empty(), "{differences}");
    println!(
        "{allowed} allowed, {denied} denied, {} others",
        of_envoy.len() - allowed - denied
    );
}

#[test]
fn envoy_decides_the_same() {
    compare(
        4,
        &Normalization {
            flag: "BASE",
            merge_slashes: false,
            escaped_slashes: "KEEP_UNCHANGED",
        },
    );
}

#[test]
fn envoy_decides_the_same_where_slashes_are_decoded_and_merged() {
    compare(
        5,
        &Normalization {
            flag: "DECODE_AND_MERGE_SLASHES",
            merge_slashes: true,
            escaped_slashes: "UNESCAPE_AND_FORWARD",
        },
    );
}

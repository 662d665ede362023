//! What is trusted changes while the mesh works: revocation lists, roots, trust domains.

use std::fs;
use std::path::Path;
use std::time::Duration;

use mesh_tests::{Agent, Lab, Node, ServicePort, Workload, eventually, service, workload_entries};

use crate::ca_client::{PATIENCE, Stage, check, leaves};
use crate::held::Held;

/// Replaces a file whole.
fn replace(path: &Path, text: &str) {
    let draft = path.with_extension("draft");
    fs::write(&draft, text).expect("written");
    fs::rename(draft, path).expect("renamed");
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The list of the lab's authority with these serials on it, by openssl.
pub(super) fn revocation_list(lab: &Lab, place: &Workload, serials: &[&str]) -> String {
    let ca = lab.ca();
    let issuer = (&*ca.join("ca-cert.pem"), &*ca.join("ca-key.pem"));
    list_of(lab, place, issuer, serials)
}

/// The same of whoever has this certificate and key.
fn list_of(
    lab: &Lab,
    place: &Workload,
    (certificate, key): (&Path, &Path),
    serials: &[&str],
) -> String {
    let folder = lab.folder().join("crl");
    fs::create_dir_all(&folder).expect("a folder");
    let index: String = serials
        .iter()
        .map(|serial| {
            let serial = serial.to_uppercase();
            format!("R\t491231235959Z\t200101000000Z\t{serial}\tunknown\t/CN=revoked\n")
        })
        .collect();
    fs::write(folder.join("index.txt"), index).expect("written");
    fs::write(folder.join("number"), "01\n").expect("written");
    let settings = "[ca]\ndefault_ca = own\n[own]\ndatabase = index.txt\ncrlnumber = number\n\
        default_md = sha256\ndefault_crl_days = 1\ncrl_extensions = extensions\n\
        [extensions]\nauthorityKeyIdentifier = keyid:always\n";
    fs::write(folder.join("settings"), settings).expect("written");
    let script = format!(
        "cd {} && openssl ca -config settings -gencrl -cert {} -keyfile {}",
        folder.display(),
        certificate.display(),
        key.display(),
    );
    place.run("sh", &["-c", &script]).success()
}

fn logs(agent: &Agent, text: &str) {
    eventually(PATIENCE, text, || {
        let log = agent.log();
        if log.contains(text) { Ok(()) } else { Err(log) }
    });
}

#[test]
fn a_revocation_list_counts_also_where_the_authority_is_elsewhere() {
    let stage = Stage::new();
    let _authority = stage.authority();
    let list = stage.lab.folder().join("crl.pem");
    let revoke = |serials: &[&str]| {
        replace(&list, &revocation_list(&stage.lab, &stage.host, serials));
    };
    revoke(&[]);
    let path = list.to_string_lossy();
    let flags = ["--ca-token", &stage.token, "--ca-crl", &path];
    let a = stage.agent_with(Node::A, &flags);
    let b = stage.agent_with(Node::B, &flags);
    stage.reaches();
    let _echo = stage
        .far
        .serve(7, "bookinfo", &["echo", "--listen", "[::]:7"]);
    let mut open = Held::open(&stage.sleep, "v4", &stage.far.v4.to_string(), 7);

    // Somebody else's certificate concerns nobody here.
    revoke(&["0123456789"]);
    logs(&b, "revocation list is renewed");
    stage.reaches();
    open.echoes("still");

    let (serial, _) = &leaves(&a)[0];
    revoke(&[serial.trim_matches('"')]);
    open.ends(PATIENCE);
    logs(&b, "client is not trusted any more");
    let refused = |what: &str| {
        eventually(PATIENCE, what, || {
            match stage.sleep.curl(&["--max-time", "5", "http://far/"]) {
                reply if reply.exit != 0 => Ok(()),
                reply => Err(format!("{reply:?}")),
            }
        });
    };
    refused("a revoked certificate opens nothing");
    // What is no list does not make the one before void.
    replace(&list, "nonsense");
    logs(&b, "revocation list not renewed, the old one stays");
    assert!(b.log().contains(&*path), "it is named");
    refused("still revoked");

    revoke(&[]);
    stage.reaches();
}

/// Each node has an intermediate of its own below one root, as a plug-in authority.
#[test]
fn a_root_takes_an_intermediate_back_and_its_workloads_are_cut_at_either_side() {
    let lab = Lab::new();
    let sleep = lab.workload(Node::A, "sleep", &[("app", "sleep")]);
    let far = lab.workload(Node::B, "far", &[("app", "far")]);
    let _servers = [
        far.serve(9080, "bookinfo", &["details"]),
        far.serve(7, "bookinfo", &["echo", "--listen", "[::]:7"]),
    ];
    lab.configure("workloads.yaml", &workload_entries(&[&sleep, &far]));
    let folder = lab.folder();
    let script = format!(
        "set -e; cd {}; new='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'\n\
         openssl req -x509 $new -keyout root-key.pem -out root-cert.pem -days 30 -subj /O=own/CN=root\n\
         printf 'basicConstraints=critical,CA:true,pathlen:0\\nkeyUsage=critical,keyCertSign,cRLSign\\n\
         subjectKeyIdentifier=hash\\nauthorityKeyIdentifier=keyid\\n' > ext\n\
         for node in a b; do mkdir ca-$node; cp root-cert.pem ca-$node\n\
         openssl req $new -keyout ca-$node/ca-key.pem -out $node.csr -subj /O=own/CN=node-$node\n\
         openssl x509 -req -in $node.csr -CA root-cert.pem -CAkey root-key.pem \
           -set_serial 0x4711$(openssl rand -hex 4) -extfile ext -days 10 -out ca-$node/ca-cert.pem\n\
         cat ca-$node/ca-cert.pem root-cert.pem > ca-$node/cert-chain.pem; done",
        folder.display()
    );
    sleep.run("sh", &["-c", &script]).success();
    let [of_a, of_b] = ["ca-a", "ca-b"].map(|name| folder.join(name));
    let start = |node, ca: &Path| Agent::start_with(&lab, node, &["--ca", &ca.to_string_lossy()]);
    let agents = [start(Node::A, &of_a), start(Node::B, &of_b)];
    let url = format!("http://{}:9080/", far.v4);
    let reply = || sleep.curl(&["--max-time", "5", &url]);
    let reaches = || {
        eventually(PATIENCE, "far is reached", || match reply() {
            reply if reply.status == 200 => Ok(()),
            reply => Err(format!("{reply:?}")),
        });
    };
    let root = (folder.join("root-cert.pem"), folder.join("root-key.pem"));
    let serial = |ca: &Path| {
        let certificate = ca.join("ca-cert.pem").to_string_lossy().into_owned();
        let arguments = ["x509", "-noout", "-serial", "-in", &certificate];
        let said = sleep.run("openssl", &arguments).success();
        said.trim().trim_start_matches("serial=").to_owned()
    };
    // The server hears that the client's issuer is taken back, then the client the server's.
    for (hears, agent, theirs) in [(&of_b, &agents[1], &of_a), (&of_a, &agents[0], &of_b)] {
        let revoke = |serials: &[&str]| {
            let list = list_of(&lab, &sleep, (&root.0, &root.1), serials);
            replace(&hears.join("crl.pem"), &list);
        };
        reaches();
        let mut open = Held::open(&sleep, "v4", &far.v4.to_string(), 7);
        let renewals = || agent.log().matches("authority is renewed").count();
        let before = renewals();
        revoke(&["0123456789"]);
        eventually(PATIENCE, "the list is read", || {
            if renewals() > before {
                Ok(())
            } else {
                Err(agent.log())
            }
        });
        reaches();
        open.echoes("another intermediate's end concerns nobody here");

        revoke(&[&serial(theirs)]);
        open.ends(PATIENCE);
        eventually(PATIENCE, "nothing is opened", || match reply() {
            reply if reply.exit != 0 && reply.exit != 28 => Ok(()),
            reply => Err(format!("{reply:?}")),
        });
        assert!(agent.log().contains("evoked"), "{}", agent.log());
        revoke(&[]);
        reaches();
    }
}

#[test]
fn an_agent_may_show_a_certificate_instead_of_a_token() {
    let stage = Stage::new();
    let _authority = stage.authority();
    let agent = |node, account: &str| {
        let (chain, key) = stage.lab.certificate(account, &stage.host);
        let (chain, key) = (chain.to_string_lossy(), key.to_string_lossy());
        let flags = ["--ca-client-cert", &chain, "--ca-client-key", &key];
        stage.agent_with(node, &flags)
    };
    let a = agent(Node::A, "sleep");
    let b = agent(Node::B, "far");
    stage.reaches();
    for (agent, account) in [(&a, "sleep"), (&b, "far")] {
        let all = agent.meshctl_json(&["certs"]).to_string();
        assert!(all.contains(&format!("ns/default/sa/{account}")), "{all}");
        assert!(check(agent).starts_with('√'), "{}", check(agent));
    }
    // The certificate is good for its own identity and no other.
    let more = stage.lab.workload(Node::A, "more", &[("app", "more")]);
    let entries = workload_entries(&[&stage.sleep, &stage.far, &more]);
    stage.lab.configure("workloads.yaml", &entries);
    eventually(PATIENCE, "another identity is refused", || {
        let said = check(&a);
        if said.starts_with('×') && said.contains("sa/more") && said.contains("gRPC status 7") {
            Ok(())
        } else {
            Err(said)
        }
    });
    assert_eq!(leaves(&a).len(), 1);
    stage.reaches();
}

/// As `docs/identity.md` says it, with certificates that are renewed every few seconds.
#[test]
fn another_root_is_taken_up_from_an_authority_elsewhere() {
    let stage = Stage::new();
    let _authority = stage.authority();
    let flags = ["--ca-token", &stage.token, "--cert-lifetime", "8s"];
    let agents = [Node::A, Node::B].map(|node| stage.agent_with(node, &flags));
    stage.reaches();
    let (ca, elsewhere) = (stage.lab.ca(), stage.lab.folder().join("new-ca"));
    fs::create_dir(&elsewhere).expect("a folder");
    let make = format!(
        "cd {} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca-key.pem \
         -out ca-cert.pem -days 30 -subj /O=new/CN=root -addext basicConstraints=critical,CA:true 2>&1",
        elsewhere.display()
    );
    stage.host.run("sh", &["-c", &make]).success();
    let old_root = read(&ca.join("root-cert.pem"));
    let new_root = read(&elsewhere.join("ca-cert.pem"));
    // While a step is awaited, requests go on.
    let all = |what: &str, is: &dyn Fn(&serde_json::Value) -> bool| {
        eventually(PATIENCE, what, || {
            let reply = stage.sleep.curl(&["http://far/"]);
            assert_eq!(reply.status, 200, "{what}: {reply:?}");
            let certs = agents
                .each_ref()
                .map(|agent| agent.meshctl_json(&["certs"]));
            match certs.iter().find(|certs| !is(certs)) {
                None => Ok(()),
                Some(certs) => Err(certs.to_string()),
            }
        });
    };
    let roots = |certs: &serde_json::Value| {
        let all = certs.as_array().expect("a list").iter();
        all.filter(|one| one["kind"] == "Root").count()
    };
    replace(&ca.join("root-cert.pem"), &format!("{old_root}{new_root}"));
    all("both roots are trusted", &|certs| roots(certs) == 2);
    replace(&ca.join("cert-chain.pem"), &new_root);
    replace(&ca.join("ca-key.pem"), &read(&elsewhere.join("ca-key.pem")));
    replace(&ca.join("ca-cert.pem"), &new_root);
    all("the new authority signs", &|certs| {
        certs.to_string().contains("[\"O=new, CN=root\"]")
    });
    replace(&ca.join("root-cert.pem"), &new_root);
    all("the old root is gone", &|certs| roots(certs) == 1);
    stage.reaches();
}

/// A mesh on its way from one name to another: one node has the new one already.
#[test]
fn a_trust_domain_is_renamed_node_by_node() {
    let lab = Lab::new();
    let workload = |node, name| lab.workload(node, name, &[("app", name)]);
    let (sleep, stranger) = (workload(Node::A, "sleep"), workload(Node::A, "stranger"));
    let (far, caller) = (workload(Node::B, "far"), workload(Node::B, "caller"));
    let near = workload(Node::A, "near");
    let _servers = [&near, &far].map(|server| server.serve(9080, "bookinfo", &["details"]));
    lab.configure(
        "workloads.yaml",
        &workload_entries(&[&sleep, &stranger, &near, &far, &caller]),
    );
    for (name, host) in [("near", 40), ("far", 41)] {
        let port = ServicePort {
            name: "http",
            port: 80,
            target: 9080,
        };
        lab.configure(&format!("{name}.yaml"), &service(name, host, &[port]));
    }
    let flags = |own, alias| ["--trust-domain", own, "--trust-domain-alias", alias];
    let _agents = [
        Agent::start_with(&lab, Node::A, &flags("new.example", "old.example")),
        Agent::start_with(&lab, Node::B, &flags("old.example", "new.example")),
    ];
    let until = |from: &Workload, url: &str, status: u16, why: &str| {
        eventually(Duration::from_secs(10), why, || match from.curl(&[url]) {
            reply if reply.status == status => Ok(()),
            reply => Err(format!("{} to {url}: {reply:?}", from.name)),
        });
    };
    until(&sleep, "http://far/", 200, "new to old");
    until(&caller, "http://near/", 200, "old to new");
    // Policies may name either, or mean the mesh's own by the usual name.
    for domain in ["old.example", "new.example", "cluster.local"] {
        let allow = |server: &str, client: &str| {
            format!(
                "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {server}}}\n\
                 spec: {{selector: {{matchLabels: {{app: {server}}}}}, \
                 rules: [{{from: [{{source: {{principals: [{domain}/ns/default/sa/{client}]}}}}]}}]}}\n"
            )
        };
        let policies = allow("far", "sleep") + &allow("near", "caller");
        lab.configure("policy.yaml", &policies);
        until(&stranger, "http://far/", 403, domain);
        until(&stranger, "http://near/", 403, domain);
        until(&sleep, "http://far/", 200, domain);
        until(&caller, "http://near/", 200, domain);
    }
    // Somebody else's trust domain is not meant.
    let policies = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: far}\n\
        spec: {rules: [{from: [{source: {principals: [other.example/ns/default/sa/sleep]}}]}]}\n";
    lab.configure("policy.yaml", policies);
    until(&sleep, "http://far/", 403, "other.example");
}

//! What is printed once the cluster is ready: lines to paste.

use super::{Cluster, Options};
use heimdall_certs::{CA_FILE, CERTIFICATE_FILE, KEY_FILE};

pub(super) fn print(options: &Options, cluster: &Cluster) {
    let Cluster { layouts, operator, upstreams } = cluster;
    let Some(first) = layouts.first() else { return };
    println!("\n{} replica(s) ready, upstream {}\n", layouts.len(), upstreams.addresses().join(", "));
    println!("Ask:");
    for layout in layouts {
        println!("  dig @{} -p {} example.com", layout.dns.ip(), layout.dns.port());
    }
    if let Some(operator) = operator {
        let [ca, certificate, key] = [CA_FILE, CERTIFICATE_FILE, KEY_FILE].map(|file| operator.join(file));
        let (ca, certificate, key) = (ca.display(), certificate.display(), key.display());
        println!("\nWho is there, who owns a name, and what a replica has for it:");
        println!(
            "  grpcurl -plaintext unix://{} heimdall.coordination.v1.MeshAgent/ListMembers",
            first.socket.display()
        );
        println!(
            "  grpcurl -plaintext -d '{{\"key\":{{\"name\":\"example.com.\",\"type\":\"A\"}}}}' unix://{} \
             heimdall.coordination.v1.MeshAgent/LocateKey",
            first.socket.display()
        );
        println!(
            "  grpcurl -cacert {ca} -cert {certificate} -key {key} -d \
             '{{\"key\":{{\"name\":\"example.com.\",\"type\":\"A\"}}}}' {} \
             heimdall.coordination.v1.ReplicaCoordination/GetCacheEntry",
            first.peer
        );
    }
    println!("\nLook: {}", metrics_pages(options, cluster).join("  "));
    println!("\nLogs: {}", first.dns_log.parent().unwrap_or(&first.dns_log).display());
    println!("\nCtrl-C ends it all.\n");
}

fn metrics_pages(options: &Options, cluster: &Cluster) -> Vec<String> {
    let dns = cluster.layouts.iter().map(|layout| layout.dns_http);
    let agents = cluster.layouts.iter().map(|layout| layout.agent_http).filter(|_| !options.standalone);
    dns.chain(agents).map(|address| format!("http://{address}/metrics")).collect()
}

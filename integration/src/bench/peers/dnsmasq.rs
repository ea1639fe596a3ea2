//! dnsmasq: it has one thread only. Its cache gets room for all names; of other types than addresses, too.

use super::{CACHED_MAX, Peer, Place};

pub(super) const PEER: Peer = Peer {
    name: "dnsmasq",
    program: "dnsmasq",
    // The program alone: the package dnsmasq would add a service.
    package: "dnsmasq-base",
    services: &[],
    file: "dnsmasq.conf",
    configuration,
    arguments: |_, file| vec!["--keep-in-foreground".to_owned(), format!("--conf-file={}", file.display())],
};

fn configuration(place: &Place) -> String {
    let Place { listen, upstream, .. } = place;
    format!(
        "port={}\nlisten-address={}\nbind-interfaces\nuser=\ngroup=\npid-file\nlog-facility=-\nno-hosts\nno-resolv\nno-poll\n\
         server={}#{}\ncache-size={CACHED_MAX}\ncache-rr=ANY\ndns-forward-max=1000\n",
        listen.port(),
        listen.ip(),
        upstream.ip(),
        upstream.port(),
    )
}

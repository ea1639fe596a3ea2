//! PowerDNS Recursor: one thread that takes its queries itself, and a packet cache that outlives the measurement.

use super::{CACHED_MAX, Peer, Place};

pub(super) const PEER: Peer = Peer {
    name: "pdns-recursor",
    program: "pdns_recursor",
    package: "pdns-recursor",
    services: &["pdns-recursor"],
    file: "recursor.conf",
    configuration,
    arguments: |place, _| vec![format!("--config-dir={}", place.folder.display())],
};

fn configuration(place: &Place) -> String {
    let Place { listen, upstream, folder } = place;
    format!(
        "local-address={}\nlocal-port={}\nallow-from=127.0.0.0/8\nforward-zones-recurse=.={upstream}\ndont-query=\n\
         threads=1\npdns-distributes-queries=no\nreuseport=yes\nmax-mthreads=4096\nmax-cache-entries={CACHED_MAX}\n\
         max-packetcache-entries={CACHED_MAX}\npacketcache-ttl=86400\nmax-cache-ttl=86400\n\
         dnssec=off\naggressive-nsec-cache-size=0\nqname-minimization=no\nserve-rfc1918=no\nsecurity-poll-suffix=\n\
         socket-dir={}\nwrite-pid=no\ndaemon=no\ndisable-syslog=yes\nquiet=yes\nloglevel=3\nstatistics-interval=0\n",
        listen.ip(),
        listen.port(),
        folder.display(),
    )
}

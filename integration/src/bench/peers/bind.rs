//! BIND: one thread, no validation, no control channel, and answers that hold what was asked for alone.

use super::{CACHE_MIB, Peer, Place, RECEIVE_BUFFER};

pub(super) const PEER: Peer = Peer {
    name: "bind",
    program: "named",
    package: "bind9",
    services: &["named"],
    file: "named.conf",
    configuration,
    arguments: |_, file| {
        ["-g", "-n", "1", "-X", "none", "-c"]
            .map(str::to_owned)
            .into_iter()
            .chain([file.display().to_string()])
            .collect()
    },
};

fn configuration(place: &Place) -> String {
    let Place { listen, upstream, folder } = place;
    format!(
        "options {{\n  directory \"{}\";\n  listen-on port {} {{ {}; }};\n  listen-on-v6 {{ none; }};\n  pid-file none;\n  \
         session-keyfile none;\n  recursion yes;\n  allow-query {{ any; }};\n  allow-recursion {{ any; }};\n  \
         dnssec-validation no;\n  minimal-responses yes;\n  empty-zones-enable no;\n  prefetch 0;\n  \
         qname-minimization off;\n  recursive-clients 10000;\n  max-cache-size {CACHE_MIB}m;\n  querylog no;\n  udp-receive-buffer {RECEIVE_BUFFER};\n  \
         forward only;\n  forwarders {{ {} port {}; }};\n}};\ncontrols {{ }};\n\
         logging {{ category default {{ null; }}; }};\n",
        folder.display(),
        listen.port(),
        listen.ip(),
        upstream.ip(),
        upstream.port(),
    )
}

//! Knot Resolver: one instance, nothing loaded that a forwarder without DNSSEC does not need.

use super::{CACHE_MIB, Peer, Place};

pub(super) const PEER: Peer = Peer {
    name: "knot-resolver",
    program: "kresd",
    package: "knot-resolver",
    services: &["kresd@1", "kres-cache-gc"],
    file: "kresd.conf",
    configuration,
    arguments: |place, file| {
        ["-n", "-c"]
            .map(str::to_owned)
            .into_iter()
            .chain([file, &place.folder].map(|path| path.display().to_string()))
            .collect()
    },
};

fn configuration(place: &Place) -> String {
    let Place { listen, upstream, folder } = place;
    format!(
        "net.ipv6 = false\nnet.listen('{}', {}, {{ kind = 'dns' }})\ntrust_anchors.remove('.')\n\
         for _, name in ipairs({{'ta_update', 'ta_signal_query', 'ta_sentinel', 'priming', 'detect_time_skew', \
         'detect_time_jump', 'edns_keepalive'}}) do modules.unload(name) end\n\
         cache.open({CACHE_MIB} * MB, 'lmdb://{}')\nlog_level('err')\n\
         policy.add(policy.all(policy.STUB('{}@{}')))\n",
        listen.ip(),
        listen.port(),
        folder.display(),
        upstream.ip(),
        upstream.port(),
    )
}

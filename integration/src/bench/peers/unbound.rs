//! Unbound: one thread, one slab, as its "howto optimise" says; no DNSSEC, no control port, no change of user.

use super::{CACHE_MIB, Peer, Place, words};

pub(super) const PEER: Peer = Peer {
    name: "unbound",
    program: "unbound",
    package: "unbound",
    services: &["unbound"],
    file: "unbound.conf",
    configuration,
    arguments: |_, file| words(["-d", "-c"], file),
};

fn configuration(place: &Place) -> String {
    let Place { listen, upstream, .. } = place;
    format!(
        "server:\n  interface: {host}@{port}\n  port: {port}\n  access-control: 127.0.0.0/8 allow\n  num-threads: 1\n  \
         so-reuseport: yes\n  so-rcvbuf: 4m\n  incoming-num-tcp: 64\n  do-daemonize: no\n  username: \"\"\n  chroot: \"\"\n  pidfile: \"\"\n  \
         directory: \"\"\n  use-syslog: no\n  module-config: \"iterator\"\n  msg-cache-size: {messages}m\n  \
         rrset-cache-size: {CACHE_MIB}m\n  msg-cache-slabs: 1\n  rrset-cache-slabs: 1\n  infra-cache-slabs: 1\n  \
         key-cache-slabs: 1\n  outgoing-range: 8192\n  num-queries-per-thread: 4096\n  do-not-query-localhost: no\n  \
         minimal-responses: yes\nremote-control:\n  control-enable: no\nforward-zone:\n  name: \".\"\n  \
         forward-addr: {}@{}\n",
        upstream.ip(),
        upstream.port(),
        host = listen.ip(),
        port = listen.port(),
        messages = CACHE_MIB / 2,
    )
}

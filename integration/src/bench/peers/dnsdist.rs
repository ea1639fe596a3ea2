//! dnsdist: a packet cache in front of the upstream, and 32 datagrams per system call.

use super::{CACHED_MAX, Peer, Place, RECEIVE_BUFFER, words};

pub(super) const PEER: Peer = Peer {
    name: "dnsdist",
    program: "dnsdist",
    package: "dnsdist",
    services: &["dnsdist"],
    file: "dnsdist.conf",
    configuration,
    arguments: |_, file| words(["--supervised", "--disable-syslog", "-C"], file),
};

fn configuration(place: &Place) -> String {
    let Place { listen, upstream, .. } = place;
    format!(
        "setLocal(\"{listen}\", {{reusePort=true}})\nsetACL(\"127.0.0.0/8\")\nsetUDPMultipleMessagesVectorSize(32)\n\
         setUDPSocketBufferSizes({RECEIVE_BUFFER}, {RECEIVE_BUFFER})\n\
         newServer({{address=\"{upstream}\", healthCheckMode=\"up\", sockets=4}})\n\
         cache = newPacketCache({CACHED_MAX}, {{maxTTL=86400, numberOfShards=1}})\ngetPool(\"\"):setCache(cache)\n\
         setMaxUDPOutstanding(65535)\nsetSecurityPollSuffix(\"\")\n"
    )
}

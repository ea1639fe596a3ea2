//! What `heimdall-dev` can be told.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;

use crate::replica::{Ports, STANDARD_PORTS};

/// Where everything listens.
pub(super) const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Distance between the ports of two replicas.
const STEP: u16 = 100;

/// Starts a Heimdall cluster on this machine: per replica a DNS server and an agent, with mTLS between the agents.
///
/// DNS is on 1053, 1153, 1253 (UDP and TCP), the agents' HTTP on 8080, 8180, 8280, the DNS servers' HTTP one above, and the
/// agents' peer ports on 8443, 8543, 8643. Ctrl-C or SIGTERM ends everything. Nothing that dies is started again, so that
/// faults can be tried by hand.
#[derive(Clone, Debug, Parser)]
#[command(name = "heimdall-dev", version)]
pub struct Options {
    /// How many replicas to start
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=20))]
    pub replicas: u16,
    /// An upstream to ask, as HEIMDALL_UPSTREAMS takes it (repeatable). Default: the system's resolvers if they answer, else
    /// an embedded one that knows every name
    #[arg(long, value_name = "ADDR")]
    pub upstream: Vec<String>,
    /// Folder to keep certificates, logs and sockets in; cluster.json appears there once all replicas are ready. Default: a
    /// temporary one that is removed
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Start DNS servers without agents
    #[arg(long)]
    pub standalone: bool,
    /// Send traces to this OTLP endpoint (gRPC), such as http://127.0.0.1:4317
    #[arg(long, value_name = "URL")]
    pub otlp: Option<String>,
    /// Number to add to every port
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub offset: u16,
}

impl Options {
    pub(super) fn ports(&self, index: u16) -> Result<Ports> {
        let shift = |port: u16| {
            index
                .checked_mul(STEP)
                .and_then(|step| port.checked_add(step)?.checked_add(self.offset))
                .with_context(|| format!("replica {index} with --offset {} has a port above 65535", self.offset))
        };
        let Ports { dns, agent_http, dns_http, peer } = STANDARD_PORTS;
        Ok(Ports { dns: shift(dns)?, agent_http: shift(agent_http)?, dns_http: shift(dns_http)?, peer: shift(peer)? })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ports_count_up_by_a_hundred_from_the_standard_ones() {
        let options = Options::parse_from(["heimdall-dev", "--offset", "7"]);
        let ports = options.ports(2).unwrap();
        assert_eq!((ports.dns, ports.agent_http, ports.dns_http, ports.peer), (1260, 8287, 8288, 8650));
        assert!(Options::parse_from(["heimdall-dev", "--offset", "65000"]).ports(0).is_err());
    }
}

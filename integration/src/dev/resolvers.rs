//! Which upstreams the cluster asks.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::UdpSocket;

use super::options::HOST;
use crate::upstream::Upstream;
use crate::wire::{Flags, Message, Question};

/// How long a resolver of the system may take to answer for the root: they are near, and the user waits.
const PROBE_LIMIT: Duration = Duration::from_millis(1500);

/// Where the system keeps its resolvers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The chosen upstreams.
pub(super) enum Upstreams {
    /// Given on the command line.
    Given(Vec<String>),
    /// The system's, those that answered.
    System(Vec<SocketAddr>),
    /// None answered: our own, which knows every name.
    Demo(Upstream),
}

impl Upstreams {
    pub(super) async fn choose(given: &[String]) -> Result<Self> {
        if !given.is_empty() {
            return Ok(Self::Given(given.to_vec()));
        }
        let mut answering = Vec::new();
        for resolver in system_resolvers(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default()) {
            if answers(resolver).await {
                answering.push(resolver);
            }
        }
        if answering.is_empty() {
            let demo = Upstream::start_at(HOST, 0).await.context("starting the embedded upstream")?;
            return Ok(Self::Demo(demo));
        }
        Ok(Self::System(answering))
    }

    pub(super) fn addresses(&self) -> Vec<String> {
        match self {
            Self::Given(given) => given.clone(),
            Self::System(resolvers) => resolvers.iter().map(ToString::to_string).collect(),
            Self::Demo(demo) => vec![demo.address().to_string()],
        }
    }
}

impl fmt::Display for Upstreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses = self.addresses().join(", ");
        match self {
            Self::Given(_) => write!(f, "{addresses}"),
            Self::System(_) => write!(f, "{addresses} (from {RESOLV_CONF})"),
            Self::Demo(_) => write!(
                f,
                "embedded demo upstream on {addresses} (no resolver of {RESOLV_CONF} answers); every name has an address, \
                 names with a label \"nxdomain\" do not exist, a label \"ttl-N\" sets the TTL"
            ),
        }
    }
}

fn system_resolvers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == "nameserver").then_some(())?;
            Some(SocketAddr::new(words.next()?.parse::<IpAddr>().ok()?, 53))
        })
        .collect()
}

async fn answers(resolver: SocketAddr) -> bool {
    let exchange = async {
        let local = if resolver.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(local).await.ok()?;
        socket.connect(resolver).await.ok()?;
        let query = Message::query(rand::random(), Question::parse(".", "NS").ok()?);
        socket.send(&query.encode()).await.ok()?;
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).await.ok()?;
        let reply = Message::parse(&buffer[..length]).ok()?;
        (reply.id == query.id && reply.flags.has(Flags::QR) && reply.rcode() == 0).then_some(())
    };
    matches!(tokio::time::timeout(PROBE_LIMIT, exchange).await, Ok(Some(())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn nameserver_lines_are_read_and_the_rest_is_not() {
        let text = "# nameserver 9.9.9.9\nsearch example\nnameserver 192.0.2.1\nnameserver 2001:db8::1\nnameserver fe80::1%x\n";
        let wanted: Vec<SocketAddr> = ["192.0.2.1:53", "[2001:db8::1]:53"].iter().map(|a| a.parse().unwrap()).collect();
        assert_eq!(system_resolvers(text), wanted);
    }

    #[tokio::test]
    async fn a_server_that_answers_for_the_root_is_found_to_answer() {
        let upstream = Upstream::start().await.unwrap();
        assert!(answers(upstream.address()).await);
    }
}

//! Where an upstream is: `1.1.1.1`, `10.0.0.2:5300`, `tcp://[2606:4700::1111]:53`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// The port of DNS (RFC 1035 4.2).
const DNS_PORT: u16 = 53;

/// How a query travels to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Datagrams; a truncated answer is fetched over TCP.
    Udp,
    /// One connection per query.
    Tcp,
}

impl Transport {
    /// The name in metrics and spans.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// An upstream's address as the configuration gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Address and port.
    pub socket: SocketAddr,
    /// The transport of its first query.
    pub transport: Transport,
}

/// Why a text is not an upstream's address. Always the configuration's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// A transport that is planned.
    #[error(
        "upstream \"{0}\": {1} is not supported yet; use an address such as 1.1.1.1, 10.0.0.2:5300 or tcp://1.1.1.1"
    )]
    NotYet(String, &'static str),
    /// A scheme that nobody knows.
    #[error("upstream \"{0}\": unknown scheme; known are udp:// (the default) and tcp://")]
    Scheme(String),
    /// Not an IP address with an optional port.
    #[error(
        "upstream \"{0}\": not an IP address with an optional port, such as 1.1.1.1, 10.0.0.2:5300 or [2606:4700::1111]:53"
    )]
    Address(String),
    /// Port 0 cannot be asked.
    #[error("upstream \"{0}\": port 0 cannot be asked")]
    PortZero(String),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (transport, rest) = match text.split_once("://") {
            None => (Transport::Udp, text),
            Some(("udp", rest)) => (Transport::Udp, rest),
            Some(("tcp", rest)) => (Transport::Tcp, rest),
            Some(("tls", _)) => return Err(AddressError::NotYet(text.to_owned(), "DNS over TLS")),
            Some(("https", _)) => return Err(AddressError::NotYet(text.to_owned(), "DNS over HTTPS")),
            Some(_) => return Err(AddressError::Scheme(text.to_owned())),
        };
        let bare = rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(rest);
        let socket = match (rest.parse::<SocketAddr>(), bare.parse::<IpAddr>()) {
            (Ok(socket), _) => socket,
            (_, Ok(ip)) => SocketAddr::new(ip, DNS_PORT),
            _ => return Err(AddressError::Address(text.to_owned())),
        };
        if socket.port() == 0 {
            return Err(AddressError::PortZero(text.to_owned()));
        }
        Ok(Self { socket, transport })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.transport {
            Transport::Udp => write!(f, "{}", self.socket),
            Transport::Tcp => write!(f, "tcp://{}", self.socket),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, AddressError> {
        text.parse::<Address>().map(|address| address.to_string())
    }

    #[test]
    fn an_address_may_leave_out_its_port_and_its_scheme() {
        assert_eq!(read("1.1.1.1").unwrap(), "1.1.1.1:53");
        assert_eq!(read("10.0.0.2:5300").unwrap(), "10.0.0.2:5300");
        assert_eq!(read("udp://10.0.0.2").unwrap(), "10.0.0.2:53");
        assert_eq!(read("tcp://10.0.0.2:54").unwrap(), "tcp://10.0.0.2:54");
        assert_eq!(read("2606:4700::1111").unwrap(), "[2606:4700::1111]:53");
        assert_eq!(read("[2606:4700::1111]").unwrap(), "[2606:4700::1111]:53");
        assert_eq!(read("tcp://[2606:4700::1111]:5353").unwrap(), "tcp://[2606:4700::1111]:5353");
    }

    #[test]
    fn what_cannot_be_asked_is_refused_with_its_reason() {
        let reason = |text: &str| read(text).unwrap_err().to_string();
        assert!(reason("tls://1.1.1.1#one.one.one.one").contains("DNS over TLS is not supported yet"));
        assert!(reason("https://dns.example/dns-query").contains("DNS over HTTPS is not supported yet"));
        assert!(reason("quic://1.1.1.1").contains("unknown scheme"));
        assert!(reason("dns.example").contains("not an IP address"));
        assert!(reason("").contains("not an IP address"));
        assert!(reason("1.1.1.1:0").contains("port 0"));
        assert!(reason("1.1.1.1:99999").contains("not an IP address"));
    }
}

//! Who exists: the members as configuration names them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest member name, bytes: it stands in certificates, tokens and every log line about the member.
const NAME_MAX: usize = 253;

/// A configured member: `name=host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// The member's name, which its certificate must prove.
    pub name: Arc<str>,
    /// Host name or address. A name is looked up again at each dial: a member may come back elsewhere.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// Why a text is not a configured member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not of the form name=host:port ({why})")]
pub struct BadPeer {
    why: &'static str,
}

impl FromStr for PeerAddress {
    type Err = BadPeer;

    fn from_str(text: &str) -> Result<Self, BadPeer> {
        let bad = |why| BadPeer { why };
        let (name, address) = text.split_once('=').ok_or_else(|| bad("there is no ="))?;
        let (host, port) = address.rsplit_once(':').ok_or_else(|| bad("there is no port"))?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port
            .parse()
            .ok()
            .filter(|&port| port != 0)
            .ok_or_else(|| bad("the port is not a number from 1 to 65535"))?;
        check_name(name).map_err(bad)?;
        if host.is_empty() {
            return Err(bad("the host is empty"));
        }
        Ok(Self { name: name.into(), host: host.to_owned(), port })
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Whether `name` can be a member's name: it becomes part of a URI in its certificate.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("the name is empty");
    }
    if name.len() > NAME_MAX {
        return Err("the name is longer than 253 bytes");
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err("a name has only letters, digits, '-', '_' and '.'");
    }
    Ok(())
}

/// Checks a list of members as a whole.
///
/// # Errors
/// The first name that appears twice.
pub fn check_distinct(peers: &[PeerAddress]) -> Result<(), String> {
    let mut names: Vec<_> = peers.iter().map(|peer| &peer.name).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("member {:?} is listed twice", pair[0])),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_a_name_and_where_to_find_it() {
        let peer: PeerAddress = "heimdall-1=10.0.0.2:8443".parse().unwrap();
        assert_eq!((&*peer.name, peer.host.as_str(), peer.port), ("heimdall-1", "10.0.0.2", 8443));
        let six: PeerAddress = "a=[::1]:8443".parse().unwrap();
        assert_eq!((six.host.as_str(), six.to_string().as_str()), ("::1", "[::1]:8443"));
    }

    #[test]
    fn what_is_not_a_member_says_why() {
        for text in ["", "a", "a=b", "a=b:0", "a=b:x", "=b:1", "a=:1", "a/b=c:1", "a=b:70000"] {
            let error = text.parse::<PeerAddress>().unwrap_err();
            assert!(error.to_string().contains("name=host:port"), "{error}");
        }
    }

    #[test]
    fn names_must_differ() {
        let peers = ["a=b:1".parse().unwrap(), "c=d:1".parse().unwrap(), "a=e:1".parse().unwrap()];
        assert!(check_distinct(&peers).unwrap_err().contains("\"a\""));
        assert!(check_distinct(&peers[..2]).is_ok());
    }
}

//! Identities as certificates carry them: one URI, `spiffe://<trust domain>/replica/<name>` or `…/operator/<name>`.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use thiserror::Error;

/// Longest SPIFFE ID, in bytes (SPIFFE ID 2.3: "implementations MUST NOT generate SPIFFE IDs longer than 2048 bytes").
const ID_BYTES_MAX: usize = 2_048;

/// Longest trust domain, in bytes (SPIFFE ID 2.1).
const TRUST_DOMAIN_BYTES_MAX: usize = 255;

/// Who a certificate says its holder is. The certificate's chain is somebody else's to check.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The domain whose authority vouches for the rest.
    pub trust_domain: Arc<str>,
    /// What the holder is in it.
    pub role: Role,
}

/// What the holder of a certificate is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The replica of this name: may use all peer RPCs.
    Replica(Arc<str>),
    /// The operator of this name: may look and not touch.
    Operator(Arc<str>),
    /// Something else of the same trust domain, by its path: has no business here.
    Other(Arc<str>),
}

/// Why a certificate or URI names nobody.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpiffeError {
    /// The certificate cannot be parsed.
    #[error("the certificate cannot be parsed")]
    Certificate,
    /// No URI, or several: which one would be meant?
    #[error("the certificate has {0} URI names and must have exactly one, its SPIFFE ID")]
    UriCount(usize),
    /// The URI is not a SPIFFE ID.
    #[error("{uri:?} is not a SPIFFE ID: {fault}")]
    Malformed {
        /// The URI, cut to its first 100 characters.
        uri: String,
        /// The rule that it breaks.
        fault: &'static str,
    },
}

impl Identity {
    /// The identity in a certificate.
    ///
    /// X509-SVID 2: "An X.509 SVID MUST contain exactly one URI SAN".
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Self, SpiffeError> {
        let certificate = webpki::EndEntityCert::try_from(certificate).map_err(|_| SpiffeError::Certificate)?;
        let mut uris = certificate.valid_uri_names();
        let (Some(uri), None) = (uris.next(), uris.next()) else {
            return Err(SpiffeError::UriCount(certificate.valid_uri_names().count()));
        };
        Self::parse(uri)
    }

    /// The identity that a SPIFFE ID names.
    pub fn parse(uri: &str) -> Result<Self, SpiffeError> {
        split(uri).map_err(|fault| SpiffeError::Malformed { uri: uri.chars().take(100).collect(), fault })
    }

    /// Whether this is the replica `name` of whatever trust domain.
    pub fn is_replica(&self, name: &str) -> bool {
        self.replica_name().is_some_and(|own| &**own == name)
    }

    /// The replica's name, if this is one.
    pub const fn replica_name(&self) -> Option<&Arc<str>> {
        match &self.role {
            Role::Replica(name) => Some(name),
            Role::Operator(_) | Role::Other(_) => None,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}", self.trust_domain)?;
        match &self.role {
            Role::Replica(name) => write!(f, "/replica/{name}"),
            Role::Operator(name) => write!(f, "/operator/{name}"),
            Role::Other(path) => f.write_str(path),
        }
    }
}

/// SPIFFE ID 2: scheme, trust domain and path, each from a small alphabet, and nothing else. Anything that two parsers
/// could read differently (percent signs, ports, empty or dotted segments, capitals in the domain) is refused.
fn split(uri: &str) -> Result<Identity, &'static str> {
    if uri.len() > ID_BYTES_MAX {
        return Err("it is longer than 2048 bytes");
    }
    let rest = uri.strip_prefix("spiffe://").ok_or("it must begin with spiffe://")?;
    let (trust_domain, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    if trust_domain.is_empty() || trust_domain.len() > TRUST_DOMAIN_BYTES_MAX {
        return Err("the trust domain must have 1 to 255 characters");
    }
    let in_domain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    if !trust_domain.bytes().all(in_domain) {
        return Err("the trust domain may hold lower-case letters, digits, dots, dashes and underscores only");
    }
    let in_segment = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let is_segment = |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(in_segment);
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    if !segments.iter().all(|segment| is_segment(segment)) {
        return Err("a path segment may hold letters, digits, dots, dashes and underscores only, and not only dots");
    }
    let role = match segments[..] {
        ["replica", name] => Role::Replica(name.into()),
        ["operator", name] => Role::Operator(name.into()),
        _ => Role::Other(path.into()),
    };
    Ok(Identity { trust_domain: trust_domain.into(), role })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn role(uri: &str) -> Role {
        Identity::parse(uri).unwrap().role
    }

    #[test]
    fn the_path_says_what_the_holder_is() {
        assert_eq!(role("spiffe://heimdall.local/replica/heimdall-0"), Role::Replica("heimdall-0".into()));
        assert_eq!(role("spiffe://heimdall.local/operator/alice"), Role::Operator("alice".into()));
        for path in ["", "/replica", "/replica/a/b", "/Replica/a", "/ns/x/sa/y"] {
            assert_eq!(role(&format!("spiffe://heimdall.local{path}")), Role::Other(path.into()));
        }
    }

    #[test]
    fn an_identity_is_shown_as_the_uri_that_it_came_from() {
        for uri in ["spiffe://a.b/replica/x", "spiffe://a.b/operator/y", "spiffe://a.b/z/z/z", "spiffe://a.b"] {
            assert_eq!(Identity::parse(uri).unwrap().to_string(), uri);
        }
    }

    #[test]
    fn a_uri_that_could_be_read_in_two_ways_names_nobody() {
        for uri in [
            "",
            "https://heimdall.local/replica/a",
            "SPIFFE://heimdall.local/replica/a",
            "spiffe:///replica/a",
            "spiffe://Heimdall.local/replica/a",
            "spiffe://heimdall.local:8443/replica/a",
            "spiffe://user@heimdall.local/replica/a",
            "spiffe://heimdall.local/replica/a/",
            "spiffe://heimdall.local//replica/a",
            "spiffe://heimdall.local/replica/..",
            "spiffe://heimdall.local/replica/a%2fb",
            "spiffe://heimdall.local/replica/a?x=y",
            "spiffe://heimdall.local/replica/a#b",
            "spiffe://heimdall.local/replica/\u{e4}",
            &format!("spiffe://heimdall.local/replica/{}", "x".repeat(2_048)),
            &format!("spiffe://{}/replica/a", "x".repeat(256)),
        ] {
            assert!(matches!(Identity::parse(uri), Err(SpiffeError::Malformed { .. })), "{uri:?}");
        }
    }

    #[test]
    fn only_the_replica_of_that_name_is_that_replica() {
        assert!(Identity::parse("spiffe://x/replica/a").unwrap().is_replica("a"));
        assert!(!Identity::parse("spiffe://x/replica/ab").unwrap().is_replica("a"));
        assert!(!Identity::parse("spiffe://x/operator/a").unwrap().is_replica("a"));
        assert!(!Identity::parse("spiffe://x/replica").unwrap().is_replica("replica"));
    }
}

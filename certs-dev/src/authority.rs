//! The authority and the certificates that it issues.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use thiserror::Error;
use time::OffsetDateTime;

use crate::validity::Validity;

/// Name that every replica's certificate carries besides its own, for tools that check a DNS name whatever the address.
const SHARED_DNS_NAME: &str = "heimdall-peer";

/// Longest replica or operator name, in characters: that of a Kubernetes object.
const NAME_CHARS_MAX: usize = 253;

/// Longest trust domain, in characters (SPIFFE ID 2.1).
const TRUST_DOMAIN_CHARS_MAX: usize = 255;

/// Why a certificate was not made or not written.
#[derive(Debug, Error)]
pub enum CertsError {
    /// The name cannot stand in an identity; nothing was made.
    #[error(
        "{name:?} cannot name a replica or operator: use 1 to {NAME_CHARS_MAX} letters, digits, dots, dashes or underscores, and not only dots"
    )]
    Name {
        /// The name as given.
        name: String,
    },
    /// The trust domain cannot stand in an identity; nothing was made.
    #[error(
        "{trust_domain:?} is not a trust domain: use 1 to {TRUST_DOMAIN_CHARS_MAX} lower-case letters, digits, dots, dashes or underscores"
    )]
    TrustDomain {
        /// The trust domain as given.
        trust_domain: String,
    },
    /// A time outside the years that a certificate can express; nothing was made.
    #[error("a certificate cannot hold until {not_after:?}: choose fewer days")]
    Validity {
        /// The end that was asked for.
        not_after: std::time::SystemTime,
    },
    /// The certificate could not be built or signed.
    #[error("making a certificate for {subject}: {source}")]
    Issue {
        /// Whose certificate it was to be.
        subject: String,
        /// What the certificate library says.
        source: rcgen::Error,
    },
    /// A file or folder could not be written; files before it were.
    #[error("writing {}: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

/// A certificate authority. Its key exists in this value only.
#[derive(Debug)]
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    trust_domain: String,
    validity: Validity,
}

/// A certificate, its key, and the authority that vouches for it, all in PEM.
#[derive(Clone)]
pub struct Leaf {
    /// The certificate.
    pub certificate: String,
    /// Its private key (PKCS #8).
    pub key: String,
    /// The authority's certificate.
    pub ca: String,
}

impl Ca {
    /// A new authority for `trust_domain`, valid for 30 days, as what it issues is.
    pub fn new(trust_domain: &str) -> Result<Self, CertsError> {
        Self::valid(trust_domain, Validity::default())
    }

    /// A new authority for `trust_domain` with the given validity, which is also that of [`Ca::replica`] and
    /// [`Ca::operator`].
    pub fn valid(trust_domain: &str, validity: Validity) -> Result<Self, CertsError> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
        if trust_domain.is_empty() || trust_domain.len() > TRUST_DOMAIN_CHARS_MAX || !trust_domain.chars().all(allowed)
        {
            return Err(CertsError::TrustDomain { trust_domain: trust_domain.to_owned() });
        }
        let subject = format!("the authority of {trust_domain}");
        let key = KeyPair::generate().map_err(issue(&subject))?;
        // Two authorities must differ in name, or a checker that picks the issuer by name tries the wrong key.
        let unique: String = key.public_key_raw().iter().rev().take(4).map(|byte| format!("{byte:02x}")).collect();
        let mut params = params(&format!("Heimdall development CA {unique}"), validity)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(issue(&subject))?;
        Ok(Self { issuer, trust_domain: trust_domain.to_owned(), validity })
    }

    /// The authority's own certificate in PEM: what goes into `ca.crt`.
    pub fn certificate(&self) -> String {
        self.issuer.pem()
    }

    /// The trust domain of the identities that this authority gives out.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// A certificate for the replica `name`.
    pub fn replica(&self, name: &str) -> Result<Leaf, CertsError> {
        self.replica_valid(name, self.validity)
    }

    /// A certificate for the replica `name` with a validity of its own.
    pub fn replica_valid(&self, name: &str, validity: Validity) -> Result<Leaf, CertsError> {
        check_name(name)?;
        // Replicas know each other by the URI alone. The DNS names and the address are for tools, which check those.
        let mut names = Vec::new();
        for dns in ["localhost", name, SHARED_DNS_NAME] {
            names.push(SanType::DnsName(dns.try_into().map_err(issue(name))?));
        }
        names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        self.issue(name, &[&format!("spiffe://{}/replica/{name}", self.trust_domain)], names, validity)
    }

    /// A certificate for the operator `name`.
    pub fn operator(&self, name: &str) -> Result<Leaf, CertsError> {
        check_name(name)?;
        self.issue(name, &[&format!("spiffe://{}/operator/{name}", self.trust_domain)], Vec::new(), self.validity)
    }

    /// A certificate with exactly these URIs, which nobody checks: for tests of what must be refused.
    pub fn with_uris(&self, uris: &[&str], validity: Validity) -> Result<Leaf, CertsError> {
        self.issue("a test", uris, Vec::new(), validity)
    }

    fn issue(
        &self,
        subject: &str,
        uris: &[&str],
        mut names: Vec<SanType>,
        validity: Validity,
    ) -> Result<Leaf, CertsError> {
        for &uri in uris {
            names.push(SanType::URI(uri.try_into().map_err(issue(subject))?));
        }
        let mut params = params(subject, validity)?;
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(issue(subject))?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(issue(subject))?;
        Ok(Leaf { certificate: certificate.pem(), key: key.serialize_pem(), ca: self.issuer.pem() })
    }
}

impl std::fmt::Debug for Leaf {
    /// Shows the certificate and never the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leaf").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

fn params(common_name: &str, validity: Validity) -> Result<CertificateParams, CertsError> {
    // RFC 5280 4.1.2.5: a time can be expressed up to the end of the year 9999.
    let time = |at: std::time::SystemTime| {
        let since_1970 = at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since_1970.as_secs())
            .ok()
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
            .ok_or(CertsError::Validity { not_after: validity.not_after })
    };
    let mut params = CertificateParams::default();
    params.not_before = time(validity.not_before)?;
    params.not_after = time(validity.not_after)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Heimdall");
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params)
}

/// A name becomes one segment of the identity's path and the name of a folder.
fn check_name(name: &str) -> Result<(), CertsError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let only_dots = name.chars().all(|c| c == '.');
    if only_dots || name.len() > NAME_CHARS_MAX || !name.chars().all(allowed) {
        return Err(CertsError::Name { name: name.to_owned() });
    }
    Ok(())
}

fn issue(subject: &str) -> impl Fn(rcgen::Error) -> CertsError {
    move |source| CertsError::Issue { subject: subject.to_owned(), source }
}

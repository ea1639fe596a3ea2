//! Why a handshake failed, in few enough words for a metric's label.

use std::io;

use rustls::{CertificateError, Error as TlsError};
use thiserror::Error;

use super::spiffe::{Identity, SpiffeError};

/// Why a connection to or from a peer came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The other side showed no certificate.
    NoCertificate,
    /// Its certificate comes from an authority that we do not trust.
    UnknownIssuer,
    /// Its certificate has expired.
    Expired,
    /// Its certificate holds from a later time on; look at both machines' clocks.
    NotYetValid,
    /// Its certificate names nobody: not exactly one SPIFFE ID.
    NoIdentity,
    /// It belongs to another trust domain.
    ForeignTrustDomain,
    /// It is neither replica nor operator; or, when dialling, not a replica.
    WrongRole,
    /// Dialling: it is another replica than the one that was to be reached.
    WrongReplica,
    /// Its certificate is not made for this end of a connection, is damaged or signed in an unknown way.
    BadCertificate,
    /// It refused us, with a TLS alert.
    RefusedByPeer,
    /// It does not speak TLS 1.3 and HTTP/2 as we do.
    Protocol,
    /// It was too slow.
    Timeout,
    /// The connection broke or could not be made.
    Connection,
    /// There are too many connections already.
    Full,
}

impl Refusal {
    /// All of them, so that every counter exists before its first event.
    pub const ALL: [Self; 14] = [
        Self::NoCertificate,
        Self::UnknownIssuer,
        Self::Expired,
        Self::NotYetValid,
        Self::NoIdentity,
        Self::ForeignTrustDomain,
        Self::WrongRole,
        Self::WrongReplica,
        Self::BadCertificate,
        Self::RefusedByPeer,
        Self::Protocol,
        Self::Timeout,
        Self::Connection,
        Self::Full,
    ];

    /// The label in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::UnknownIssuer => "unknown_issuer",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::NoIdentity => "no_identity",
            Self::ForeignTrustDomain => "foreign_trust_domain",
            Self::WrongRole => "wrong_role",
            Self::WrongReplica => "wrong_replica",
            Self::BadCertificate => "bad_certificate",
            Self::RefusedByPeer => "refused_by_peer",
            Self::Protocol => "protocol",
            Self::Timeout => "timeout",
            Self::Connection => "connection",
            Self::Full => "full",
        }
    }

    /// The reason behind a failed handshake, as the TLS stream reports it.
    pub fn of(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
            Some(error) => Self::of_tls(error),
            None if error.kind() == io::ErrorKind::TimedOut => Self::Timeout,
            None => Self::Connection,
        }
    }

    /// The reason behind a failed handshake in full, for the log.
    pub fn explain(error: &io::Error) -> String {
        let identity = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()).and_then(identity_error);
        identity.map_or_else(|| error.to_string(), ToString::to_string)
    }

    /// The reason behind a TLS error.
    pub fn of_tls(error: &TlsError) -> Self {
        match error {
            TlsError::NoCertificatesPresented => Self::NoCertificate,
            TlsError::InvalidCertificate(error) => Self::of_certificate(error),
            TlsError::AlertReceived(_) => Self::RefusedByPeer,
            _ => Self::Protocol,
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        match error {
            // A forged authority of the same name fails at its signature.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownIssuer,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYetValid,
            CertificateError::Other(other) => match other.0.downcast_ref() {
                Some(IdentityError::Nobody(_)) => Self::NoIdentity,
                Some(IdentityError::ForeignTrustDomain { .. }) => Self::ForeignTrustDomain,
                Some(IdentityError::WrongRole { .. }) => Self::WrongRole,
                Some(IdentityError::WrongReplica { .. }) => Self::WrongReplica,
                None => Self::BadCertificate,
            },
            _ => Self::BadCertificate,
        }
    }
}

/// Our own reason, if it is one, without the words that the TLS library puts around it.
fn identity_error(error: &TlsError) -> Option<&IdentityError> {
    match error {
        TlsError::InvalidCertificate(CertificateError::Other(other)) => other.0.downcast_ref(),
        _ => None,
    }
}

/// Why the holder of a certificate with a good chain is still refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// The certificate names nobody.
    #[error(transparent)]
    Nobody(#[from] SpiffeError),
    /// The certificate belongs to another trust domain.
    #[error("{presented} is not of the trust domain {expected}")]
    ForeignTrustDomain {
        /// Whom the certificate names.
        presented: Identity,
        /// Our own trust domain.
        expected: String,
    },
    /// The certificate names something that has no business here.
    #[error("{presented} is not {expected}")]
    WrongRole {
        /// Whom the certificate names.
        presented: Identity,
        /// What it would have to be.
        expected: &'static str,
    },
    /// The certificate names another replica than the one that was to be reached.
    #[error("{presented} answers where the replica {expected} was expected")]
    WrongReplica {
        /// Whom the certificate names.
        presented: Identity,
        /// The name of the replica that was to be reached.
        expected: String,
    },
}

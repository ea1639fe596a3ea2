//! What both ends of a connection demand in the handshake: TLS 1.3, HTTP/2, a certificate of our authority on both sides,
//! and an identity in it that has business here.
//!
//! Sessions are never resumed: a resumed session would carry an identity that nobody has checked against today's
//! authority, and links live long enough for a full handshake not to matter.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible,
    RootCertStore, ServerConfig, SignatureScheme,
};

use super::refusal::IdentityError;
use super::spiffe::{Identity, Role};

/// HTTP/2, the only protocol on a peer connection.
const ALPN: &[u8] = b"h2";

/// The one crypto provider of this process.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Server side: whoever connects must hold a certificate of `roots` that names a replica or operator of `trust_domain`.
pub fn server_config(
    key: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    trust_domain: Arc<str>,
) -> Result<ServerConfig, Error> {
    let verifier = PeerVerifier::new(roots, trust_domain)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Client side: who answers must hold a certificate of `roots` that names the replica `expected` of `trust_domain`.
pub fn client_config(
    key: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    trust_domain: Arc<str>,
    expected: &str,
) -> Result<ClientConfig, Error> {
    let provider = provider();
    let verifier = ReplicaVerifier { roots, trust_domain, expected: expected.into(), provider: Arc::clone(&provider) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    // The expected identity decides, not the name in the hello, which would only tell bystanders whom we look for.
    config.enable_sni = false;
    Ok(config)
}

/// Checks a client's certificate: chain, validity and purpose first, then the identity.
///
/// An operator passes: what it may do is decided call by call, where the answer can say why not.
#[derive(Debug)]
pub struct PeerVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domain: Arc<str>,
}

impl PeerVerifier {
    /// A verifier for clients of `trust_domain` with certificates of `roots`.
    pub fn new(roots: Arc<RootCertStore>, trust_domain: Arc<str>) -> Result<Self, Error> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Self { chain, trust_domain })
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let presented = member_of(end_entity, &self.trust_domain).map_err(refused)?;
        match presented.role {
            Role::Replica(_) | Role::Operator(_) => Ok(verified),
            Role::Other(_) => {
                Err(refused(IdentityError::WrongRole { presented, expected: "a replica or an operator" }))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Checks the certificate of a dialled server: chain, validity and purpose first, then that it is the replica we want.
///
/// Replicas are dialled by address, so no DNS name is looked at.
#[derive(Debug)]
struct ReplicaVerifier {
    roots: Arc<RootCertStore>,
    trust_domain: Arc<str>,
    expected: Box<str>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ReplicaVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        let presented = member_of(end_entity, &self.trust_domain).map_err(refused)?;
        match &presented.role {
            Role::Replica(name) if **name == *self.expected => Ok(ServerCertVerified::assertion()),
            Role::Replica(_) => {
                Err(refused(IdentityError::WrongReplica { presented, expected: self.expected.to_string() }))
            }
            Role::Operator(_) | Role::Other(_) => {
                Err(refused(IdentityError::WrongRole { presented, expected: "a replica" }))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn member_of(certificate: &CertificateDer<'_>, trust_domain: &str) -> Result<Identity, IdentityError> {
    let presented = Identity::from_certificate(certificate)?;
    if *presented.trust_domain != *trust_domain {
        return Err(IdentityError::ForeignTrustDomain { presented, expected: trust_domain.to_owned() });
    }
    Ok(presented)
}

/// Carries the reason through rustls, so that the log and the counter can name it.
fn refused(error: IdentityError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

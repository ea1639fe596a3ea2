//! The three files of a certificate folder: `tls.crt`, `tls.key`, `ca.crt`, read together and checked together.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use thiserror::Error;

use super::spiffe::{Identity, SpiffeError};
use super::tls::{PeerVerifier, provider};

/// The certificate, followed by intermediate authorities if there are any.
pub const CERTIFICATE_FILE: &str = "tls.crt";
/// Its private key.
pub const KEY_FILE: &str = "tls.key";
/// The authorities whose certificates are trusted; two of them while one replaces the other.
pub const CA_FILE: &str = "ca.crt";

/// Longest file that is read, in bytes: a bundle of a hundred authorities fits, a wrong mount does not fill the memory.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// What the files hold, byte for byte: two reads that are equal need no second look.
#[derive(Clone, PartialEq, Eq)]
pub struct Contents {
    dir: PathBuf,
    certificate: Vec<u8>,
    key: Vec<u8>,
    ca: Vec<u8>,
}

/// A certificate that works: its chain, key, authorities and identity have been checked against each other.
#[derive(Debug)]
pub struct Material {
    /// The certificate chain with its key.
    pub key: Arc<CertifiedKey>,
    /// The authorities that vouch for peers.
    pub roots: Arc<RootCertStore>,
    /// Who we are.
    pub own: Identity,
    /// When our certificate expires.
    pub not_after: SystemTime,
}

/// Why a certificate folder cannot be used. What was in use before still is.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A file could not be read.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file is larger than any set of certificates.
    #[error("{} is larger than {FILE_BYTES_MAX} bytes: is it the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A file holds no PEM section of the kind that belongs there, or a damaged one.
    #[error("{} holds no usable {expected} in PEM form", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What belongs there.
        expected: &'static str,
    },
    /// Key and certificate are not a pair. While the files are being replaced this passes by itself.
    #[error("{} holds no key for the certificate in {CERTIFICATE_FILE}: {source}", path.display())]
    Key {
        /// The key file.
        path: PathBuf,
        /// What the TLS library says.
        source: rustls::Error,
    },
    /// Peers would not accept the certificate: they trust what `ca.crt` holds, and it must hold now.
    #[error("peers would refuse the certificate in {}: {source}", path.display())]
    Untrusted {
        /// The certificate file.
        path: PathBuf,
        /// What they would say.
        source: rustls::Error,
    },
    /// The certificate names nobody.
    #[error("{}: {source}", path.display())]
    Identity {
        /// The certificate file.
        path: PathBuf,
        /// Why not.
        source: SpiffeError,
    },
    /// The certificate is somebody else's: peers look for this replica by its name and would find another one.
    #[error("{} is the certificate of {presented}, and this replica is called {expected}", path.display())]
    Stranger {
        /// The certificate file.
        path: PathBuf,
        /// Whom the certificate names.
        presented: Identity,
        /// What this replica is called.
        expected: String,
    },
}

impl fmt::Debug for Contents {
    /// Shows where the files are and never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contents").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Contents {
    /// Reads the three files in `dir`. They are small and local, so this may block for a moment.
    pub fn read(dir: &Path) -> Result<Self, LoadError> {
        Ok(Self {
            dir: dir.to_owned(),
            certificate: read(&dir.join(CERTIFICATE_FILE))?,
            key: read(&dir.join(KEY_FILE))?,
            ca: read(&dir.join(CA_FILE))?,
        })
    }

    /// Checks everything that a peer will check, and that the certificate is the replica `name`'s.
    pub fn validate(&self, name: &str, now: SystemTime) -> Result<Material, LoadError> {
        let certificate_path = || self.dir.join(CERTIFICATE_FILE);
        let chain = certificates(&certificate_path(), &self.certificate)?;
        let roots = self.roots()?;

        let key_path = self.dir.join(KEY_FILE);
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| LoadError::Pem { path: key_path.clone(), expected: "private key" })?;
        let key = CertifiedKey::from_der(chain.clone(), key, &provider())
            .map_err(|source| LoadError::Key { path: key_path, source })?;

        let (end_entity, intermediates) =
            chain.split_first().expect("a chain that was read must hold one certificate at least");
        let own = Identity::from_certificate(end_entity)
            .map_err(|source| LoadError::Identity { path: certificate_path(), source })?;
        check_as_peers_do(end_entity, intermediates, &roots, &own, now)
            .map_err(|source| LoadError::Untrusted { path: certificate_path(), source })?;
        if !own.is_replica(name) {
            return Err(LoadError::Stranger { path: certificate_path(), presented: own, expected: name.to_owned() });
        }
        let not_after = not_after(end_entity)
            .ok_or_else(|| LoadError::Identity { path: certificate_path(), source: SpiffeError::Certificate })?;
        Ok(Material { key: Arc::new(key), roots, own, not_after })
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, LoadError> {
        let path = self.dir.join(CA_FILE);
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&path, &self.ca)? {
            roots
                .add(certificate)
                .map_err(|_| LoadError::Pem { path: path.clone(), expected: "certificate of an authority" })?;
        }
        Ok(Arc::new(roots))
    }
}

/// When a certificate expires; `None` when it cannot be parsed.
pub fn not_after(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// Both ends of a connection will look at this certificate: each dials and is dialled.
fn check_as_peers_do(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &Arc<RootCertStore>,
    own: &Identity,
    now: SystemTime,
) -> Result<(), rustls::Error> {
    let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    let as_server = ParsedCertificate::try_from(end_entity)?;
    let algorithms = provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&as_server, roots, intermediates, now, algorithms)?;
    let as_client = PeerVerifier::new(Arc::clone(roots), Arc::clone(&own.trust_domain))?;
    as_client.verify_client_cert(end_entity, intermediates, now)?;
    Ok(())
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) | Err(_) => Err(LoadError::Pem { path: path.to_owned(), expected: "certificate" }),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let failed = |source| LoadError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(LoadError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

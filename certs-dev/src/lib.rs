//! A certificate authority for development and tests: certificates as replicas and operators present them to each other.
//!
//! A replica's identity is the one URI in its certificate, `spiffe://<trust domain>/replica/<name>`; an operator's is
//! `spiffe://<trust domain>/operator/<name>`. The authority lives in memory and its key is never written: who needs one
//! more certificate makes a new authority and new certificates for everybody. That is right for a laptop and wrong for
//! production, where a real issuer keeps its key elsewhere and renews before the end.

mod authority;
mod files;
mod validity;

pub use authority::{Ca, CertsError, Leaf};
pub use files::{CA_FILE, CERTIFICATE_FILE, KEY_FILE, write_ca};
pub use validity::Validity;

/// Trust domain of development certificates unless another is given.
pub const TRUST_DOMAIN: &str = "heimdall.local";

//! Who is at the other end: mutual TLS between replicas, with the identity in the certificate's one URI.
//!
//! ```text
//! tls.crt, tls.key, ca.crt ──► files::load ──┬─ bad: keep the old, count, warn
//!  (polled by Credentials)     (validates)   └─ good ──► watch<Arc<Snapshot>>
//!                                                         │            │
//!                        acceptor: one snapshot per handshake          connector: one snapshot per dial
//!                        ──► PeerStream (PeerInfo for the services)    ──► Channel to exactly the expected replica
//! ```
//!
//! * [`spiffe`]: identities, read from certificates (pure)
//! * [`files`]: reading and checking the three files; [`credentials`]: following their changes
//! * [`tls`]: what both ends demand in the handshake; [`refusal`]: why one failed, as a label
//! * [`acceptor`], [`connector`]: the two ends; [`expiring`]: no connection outlives the certificate behind it

pub mod acceptor;
pub mod connector;
pub mod credentials;
pub mod expiring;
pub mod files;
pub mod metrics;
pub mod refusal;
pub mod spiffe;
pub mod tls;

pub use acceptor::{Acceptor, PeerInfo, PeerStream};
pub use connector::{Connector, DialError};
pub use credentials::{Credentials, Snapshot};
pub use metrics::IdentityMetrics;
pub use spiffe::{Identity, Role};

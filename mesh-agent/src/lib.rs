//! The agent of one replica: the shared tier of the cache, the leases on misses, the links to the other replicas.
//!
//! ```text
//!  dns-server ─ session::local ─► lookup ─┬─► store            a live copy: answered
//!                     │                   ├─► granter ─ lease  this replica owns the key
//!                     ▼                   └─► links ─► session::peer of the owner: one hop
//!                  publish ─► granter ─► store, waiters, replicate
//! ```
//!
//! `ring`, `lease`, `levels`, `membership`, `replicate`, `permissions`, `store::admission` and the parts of `trust` are pure. One task owns the lease table
//! ([`granter`]), one owns membership ([`cluster`]); everybody else reads snapshots.

pub mod agent;
pub mod app;
pub mod ask_first;
pub mod cluster;
pub mod condition;
pub mod config;
pub mod dial;
pub mod discovery;
pub mod granter;
mod heap;
pub mod identity;
pub mod lease;
pub mod levels;
pub mod links;
pub mod local_socket;
pub mod log_limit;
pub mod lookup;
pub mod membership;
pub mod metrics;
pub mod network;
pub mod permissions;
pub mod publish;
pub mod purge;
pub mod repair;
pub mod replicate;
mod request;
pub mod ring;
pub mod seated;
pub mod service;
pub mod session;
pub mod store;
pub mod transfer;
pub mod trust;
pub mod updates;

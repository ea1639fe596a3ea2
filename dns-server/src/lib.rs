//! Heimdall's DNS server: listeners, first-level cache, upstreams, and the agent's side of a miss.
//!
//! ```text
//! client ─► listener ─► query ─► cache ──hit──► reply ─► client
//!                                  │ miss
//!                                  ▼
//!                               answer ─► agent │ upstream ─► cache, reply, publish
//! ```

pub mod agent;
pub mod answer;
mod app;
mod bind;
pub mod cache;
pub mod config;
pub mod descriptors;
pub mod failures;
pub mod listener;
pub mod metrics;
pub mod purge;
pub mod query;
pub mod refresh;
pub mod reply;
pub mod silence;
pub mod stats;
pub mod upstream;
mod worker;

pub use self::app::{App, Running};
pub use self::config::Config;

//! What both Heimdall processes use, and nothing else: an item lives here only when `heimdall-dns` and
//! `heimdall-agent` both need it.
//!
//! * time and identity of answers: [`clock`], [`key`], [`entry`], [`token`] (pure)
//! * DNS wire format: [`dns`] (pure), the one parser for upstream and peer packets alike
//! * the stream between processes: [`link`], with [`wire`] as the only place that knows protobuf types
//! * the shell of a process: [`config`], [`drain`], [`admin`], [`telemetry`] with [`trace`]
//! * [`purge`]: what is to be forgotten, and who has forgotten it
//! * [`breaker`]: when to stop asking somebody who does not answer (pure)
//! * [`patience`]: one timer for all who wait equally long
//! * [`watched`]: sockets that wake whoever waits for them, and nobody else

pub mod admin;
pub mod breaker;
pub mod clock;
pub mod config;
pub mod dns;
pub mod drain;
pub mod entry;
pub mod key;
pub mod link;
pub mod patience;
pub mod purge;
pub mod telemetry;
pub mod token;
pub mod trace;
pub mod watched;
pub mod wire;

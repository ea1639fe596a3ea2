//! The real agents, with their real services, TLS and HTTP/2, over a simulated network whose time is simulated too.
//!
//! What the cores decide is proved in `simulation`; what processes do to each other is shown in `matrix`. This is what lies
//! between: connections that stall, lose what was on its way, and come back, at the pace of the machine and not of the clock.
//! A lost segment is never sent again here, so a connection that was cut in the middle stays stuck for ever: agents must notice
//! that and dial anew. Only the connections between agents are simulated. An agent's local socket is a real one, behind it is all
//! of a dns-server but its listeners, and the upstream is a real server.
//!
//! ```sh
//! cargo test -p heimdall-integration --test turmoil
//! HEIMDALL_TURMOIL_SEED=5 cargo test -p heimdall-integration --test turmoil -- --nocapture
//! ```
//!
//! The seed draws the delays of the network, not the dice of the agents themselves.

#![allow(clippy::unwrap_used)]

mod network;
mod partitions;
mod replica;
mod stage;

//! Faults of networks, machines and clocks under load, with a history that is checked afterwards.
//!
//! Each replica has a network namespace of its own; what is cut is cut with nftables, what is stopped is stopped by a signal,
//! and clocks are changed by libfaketime. It needs `unshare` and `nsenter` (util-linux), `ip` (iproute2), `nft` (nftables) and
//! libfaketime (faketime), so it is run on demand:
//!
//! ```sh
//! cargo test -p heimdall-integration --features network-faults --test matrix -- --test-threads 1 --nocapture
//! ```

#![allow(clippy::unwrap_used)]

mod agreement;
mod clocks;
mod partitions;
mod processes;
mod purges;
mod rolling;
mod stage;

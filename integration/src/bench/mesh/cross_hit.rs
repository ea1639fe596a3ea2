//! A hit that crosses replicas: the owner has the entry, the replica that is asked has not.
//!
//! client → dns-server → its agent → mTLS → the owner's agent → and back.

use std::sync::Arc;

use anyhow::{Result, ensure};

use super::super::figures::{Figures, Target};
use super::names::Supply;
use super::system::System;
use super::{Build, Run, fill};
use crate::cluster::{Cluster, Part};
use crate::upstream::Upstream;

/// The replica that is asked, and the one that owns all names and has their entries.
const ASKED: usize = 0;
const OWNER: usize = 1;

/// Queries on their way where the cost is measured.
const OUTSTANDING: u16 = 64;

/// Names of a round that are asked for one after the other, for the time that one takes.
const UNLOADED: usize = 2_000;

/// Memory that holds the names of every round: no round measures how an earlier one's are thrown out.
const STORE_BYTES: &str = "1GiB";

/// Microseconds of CPU per answer, answers per second, microseconds from client to client.
const COST: Target = Target::AtMost(10.0);
const RATE: Target = Target::AtLeast(80_000.0);
const UNLOADED_TIME: Target = Target::AtMost(130.0);

/// Two replicas whose entries have one copy, the owner's.
pub(super) struct CrossHit {
    system: System,
    members: Vec<String>,
    supply: Supply,
}

impl CrossHit {
    /// Starts the replicas.
    ///
    /// # Errors
    /// They do not start.
    pub(super) async fn start(build: &Build, upstream: &Arc<Upstream>) -> Result<Self> {
        let builder = Cluster::builder()
            .replicas(2)
            .long_budgets()
            .replication_factor(1)
            .workers(1)
            .binaries(build.binaries.clone())
            .agent_option("--store-bytes", STORE_BYTES);
        let system = System::start(builder, upstream).await?;
        let members = system.members();
        Ok(Self { system, members, supply: Supply::default() })
    }

    /// One round.
    ///
    /// # Errors
    /// A wrong or lost answer; a query to the upstream.
    pub(super) async fn round(&mut self, id: &str, round: u32, run: &Run, figures: &mut Figures) -> Result<()> {
        let Self { system, members, supply } = self;
        let loaded = Arc::new(supply.owned_by(OWNER, members, run.names));
        let unloaded = Arc::new(supply.owned_by(OWNER, members, UNLOADED));
        let socket = &system.cluster.replica(OWNER).layout.socket;
        for names in [&loaded, &unloaded] {
            fill::fill(socket, names).await?;
        }
        let before = system.upstream.journal().total();

        let alone = system.asked(ASKED, &unloaded, 1).await?;
        let (dns, agents) = (system.cpu_of(Part::Dns)?, system.cpu_of(Part::Agent)?);
        let asked = system.asked(ASKED, &loaded, OUTSTANDING).await?;
        let dns = system.cpu_of(Part::Dns)?.saturating_sub(dns).as_secs_f64() * 1e6 / asked.answers as f64;
        let agents = system.cpu_of(Part::Agent)?.saturating_sub(agents).as_secs_f64() * 1e6 / asked.answers as f64;

        ensure!(system.upstream.journal().total() == before, "an entry that its owner has was asked for upstream");
        let cost = dns + agents;
        figures.round(
            id,
            round,
            &[
                ("CPU µs per answer", COST, cost),
                ("CPU µs of the dns-servers", Target::None, dns),
                ("CPU µs of the agents", Target::None, agents),
                ("answers per second beside the load", RATE, asked.rate()),
                ("answers per second that two CPUs pay for", RATE, 2e6 / cost),
                ("load's CPU µs per answer", Target::None, asked.cpu.as_secs_f64() * 1e6 / asked.answers as f64),
                ("p50 µs, 64 outstanding", Target::None, asked.percentile(0.5).as_secs_f64() * 1e6),
                ("p50 µs, 1 outstanding", UNLOADED_TIME, alone.percentile(0.5).as_secs_f64() * 1e6),
            ],
        );
        Ok(())
    }
}

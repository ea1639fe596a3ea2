//! What the mesh adds to a miss: the same misses at a replica of a cluster and at a dns-server without an agent.

use std::sync::Arc;

use anyhow::{Result, ensure};

use super::super::figures::{Figures, Target};
use super::names::Supply;
use super::system::System;
use super::{Build, Run};
use crate::cluster::{Cluster, Part};
use crate::replica::AgentSocket;
use crate::upstream::Upstream;

/// The replica that is asked, in both.
const ASKED: usize = 0;

/// Queries on their way where the cost is measured.
const OUTSTANDING: u16 = 64;

/// Misses one after the other, for the time that one takes.
const UNLOADED: usize = 2_000;

/// Microseconds of CPU, and of a client's time, that the mesh may add to a miss.
const MORE_CPU: Target = Target::AtMost(15.0);
const MORE_TIME: Target = Target::AtMost(200.0);

/// A cluster of three with the usual copies, and a server alone.
pub(super) struct Misses {
    meshed: System,
    alone: System,
    supply: Supply,
}

/// Microseconds of one miss.
struct Cost {
    dns: f64,
    agents: f64,
    time: f64,
}

impl Misses {
    /// Starts both.
    ///
    /// # Errors
    /// They do not start.
    pub(super) async fn start(build: &Build, upstream: &Arc<Upstream>) -> Result<Self> {
        let builder = || Cluster::builder().long_budgets().workers(1).binaries(build.binaries.clone());
        let meshed = System::start(builder().replicas(3), upstream).await?;
        let alone = System::start(builder().replicas(1).standalone(AgentSocket::Off), upstream).await?;
        Ok(Self { meshed, alone, supply: Supply::default() })
    }

    /// One round; which of the two goes first changes with it.
    ///
    /// # Errors
    /// A wrong or lost answer; more upstream queries than misses.
    pub(super) async fn round(&mut self, id: &str, round: u32, run: &Run, figures: &mut Figures) -> Result<()> {
        let Self { meshed, alone, supply } = self;
        let (with, without) = if round.is_multiple_of(2) {
            let with = cost(meshed, supply, run).await?;
            (with, cost(alone, supply, run).await?)
        } else {
            let without = cost(alone, supply, run).await?;
            (cost(meshed, supply, run).await?, without)
        };
        figures.round(
            id,
            round,
            &[
                ("CPU µs more per miss", MORE_CPU, with.dns + with.agents - without.dns),
                ("CPU µs of the dns-server alone", Target::None, without.dns),
                ("CPU µs of the dns-servers with agents", Target::None, with.dns),
                ("CPU µs of the agents", Target::None, with.agents),
                ("p50 µs more, 1 outstanding", MORE_TIME, with.time - without.time),
                ("p50 µs of the dns-server alone", Target::None, without.time),
            ],
        );
        Ok(())
    }
}

async fn cost(system: &System, supply: &mut Supply, run: &Run) -> Result<Cost> {
    let unloaded = Arc::new(supply.take(UNLOADED));
    let loaded = Arc::new(supply.take(run.names));
    let queries = system.upstream.journal().total().resolutions;
    let time = system.asked(ASKED, &unloaded, 1).await?.percentile(0.5).as_secs_f64() * 1e6;
    let (dns, agents) = (system.cpu_of(Part::Dns)?, system.cpu_of(Part::Agent)?);
    let asked = system.asked(ASKED, &loaded, OUTSTANDING).await?;
    let per_miss = 1e6 / asked.answers as f64;
    let dns = system.cpu_of(Part::Dns)?.saturating_sub(dns).as_secs_f64() * per_miss;
    let agents = system.cpu_of(Part::Agent)?.saturating_sub(agents).as_secs_f64() * per_miss;
    let queries = system.upstream.journal().total().resolutions - queries;
    let misses = unloaded.len() + loaded.len();
    ensure!(queries == misses, "{misses} misses were {queries} resolutions upstream");
    Ok(Cost { dns, agents, time })
}

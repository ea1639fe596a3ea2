//! What a cluster costs that has nothing to do.

use std::time::Duration;

use anyhow::Result;

use super::super::figures::{Figures, Target};
use super::system::System;
use super::{Build, upstream};
use crate::cluster::{Cluster, Part};

const REPLICAS: usize = 10;

/// Replicas of the cluster whose agents have fewer links. An agent's table of who owns what, which grows with the first four members and
/// then no more, is as large there as in the other one: it is no link's memory.
const FEW: usize = 4;

/// How long the processes are watched.
const WATCHED: Duration = Duration::from_secs(10);

/// Kilobytes of memory of an agent's own per link, and per cent of a CPU per agent.
const PER_LINK: Target = Target::AtMost(100.0);
const PER_AGENT: Target = Target::AtMost(0.2);

/// Ten replicas and four, with a link between each two.
pub(super) struct Idle {
    together: System,
    few: System,
}

impl Idle {
    /// Starts both.
    ///
    /// # Errors
    /// They do not start.
    pub(super) async fn start(build: &Build) -> Result<Self> {
        let upstream = upstream().await?;
        let builder = |replicas| Cluster::builder().replicas(replicas).workers(1).binaries(build.binaries.clone());
        let together = System::start(builder(REPLICAS), &upstream).await?;
        Ok(Self { together, few: System::start(builder(FEW), &upstream).await? })
    }

    /// One round.
    ///
    /// # Errors
    /// A process is gone.
    pub(super) async fn round(&mut self, id: &str, round: u32, figures: &mut Figures) -> Result<()> {
        let Self { together, few } = self;
        let before = (together.cpu_of(Part::Agent)?, together.cpu_of(Part::Dns)?);
        tokio::time::sleep(WATCHED).await;
        let agents = together.cpu_of(Part::Agent)?.saturating_sub(before.0);
        let servers = together.cpu_of(Part::Dns)?.saturating_sub(before.1);
        let share = |used: Duration| 100.0 * used.as_secs_f64() / WATCHED.as_secs_f64() / REPLICAS as f64;
        let (nine_links, three_links) = (together.memory_of(Part::Agent)?, few.memory_of(Part::Agent)?);
        figures.round(
            id,
            round,
            &[
                ("kB per link", PER_LINK, (nine_links - three_links) / 1e3 / (REPLICAS - FEW) as f64),
                ("% of a CPU per agent", PER_AGENT, share(agents)),
                ("% of a CPU per dns-server", Target::None, share(servers)),
                ("MB of an agent with nine links", Target::None, nine_links / 1e6),
                ("MB of an agent with three links", Target::None, three_links / 1e6),
            ],
        );
        Ok(())
    }
}

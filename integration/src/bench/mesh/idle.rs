//! What a cluster costs that has nothing to do.

use std::time::Duration;

use anyhow::Result;

use super::super::figures::{Figures, Target};
use super::system::System;
use super::{Build, upstream};
use crate::cluster::{Cluster, Part};

const REPLICAS: usize = 10;

/// How long the processes are watched.
const WATCHED: Duration = Duration::from_secs(10);

/// Kilobytes of memory of an agent's own per link, and per cent of a CPU per agent.
const PER_LINK: Target = Target::AtMost(100.0);
const PER_AGENT: Target = Target::AtMost(0.2);

/// Ten replicas with a link between each two, and two with the one between them. One without any would not do: it has not
/// even touched the code that links need.
pub(super) struct Idle {
    together: System,
    pair: System,
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
        Ok(Self { together, pair: System::start(builder(2), &upstream).await? })
    }

    /// One round.
    ///
    /// # Errors
    /// A process is gone.
    pub(super) async fn round(&mut self, id: &str, round: u32, figures: &mut Figures) -> Result<()> {
        let Self { together, pair } = self;
        let before = (together.cpu_of(Part::Agent)?, together.cpu_of(Part::Dns)?);
        tokio::time::sleep(WATCHED).await;
        let agents = together.cpu_of(Part::Agent)?.saturating_sub(before.0);
        let servers = together.cpu_of(Part::Dns)?.saturating_sub(before.1);
        let share = |used: Duration| 100.0 * used.as_secs_f64() / WATCHED.as_secs_f64() / REPLICAS as f64;
        let (nine_links, one_link) = (together.memory_of(Part::Agent)?, pair.memory_of(Part::Agent)?);
        figures.round(
            id,
            round,
            &[
                ("kB per link", PER_LINK, (nine_links - one_link) / 1e3 / (REPLICAS - 2) as f64),
                ("% of a CPU per agent", PER_AGENT, share(agents)),
                ("% of a CPU per dns-server", Target::None, share(servers)),
                ("MB of an agent with nine links", Target::None, nine_links / 1e6),
                ("MB of an agent with one link", Target::None, one_link / 1e6),
            ],
        );
        Ok(())
    }
}

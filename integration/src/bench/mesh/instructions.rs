//! How many instructions of our own code a miss and a cross-replica hit take, in all processes of a kind together: callgrind counts
//! them, whatever else the machine has to do. System calls, and waiting for memory, are not in it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::super::figures::{Figures, Target};
use super::names::{Owned, Supply};
use super::system::System;
use super::{Build, fill};
use crate::binaries::Binaries;
use crate::cluster::{Builder, Cluster, Part};
use crate::replica::AgentSocket;
use crate::upstream::Upstream;

/// Queries before anything is counted: tables have grown by then, and each code path was gone once.
const BEFORE: usize = 2_000;

/// Queries that are counted, and how many of them are on their way.
const COUNTED: usize = 10_000;
const OUTSTANDING: u16 = 64;

/// The replica that is asked, and the one that owns all names of the cross-replica hits.
const ASKED: usize = 0;
const OWNER: usize = 1;

/// Counts once for each build: the figures hardly differ from run to run.
///
/// # Errors
/// valgrind is not installed; a cluster does not start; a wrong or lost answer.
pub(super) async fn count(builds: &[Build], upstream: &Arc<Upstream>, figures: &mut Figures) -> Result<()> {
    for build in builds {
        let alone = misses(build, Cluster::builder().replicas(1).standalone(AgentSocket::Off), upstream).await?;
        let meshed = misses(build, Cluster::builder().replicas(3), upstream).await?;
        let hit = cross_hit(build, upstream).await?;
        let row = |what, figure| (what, Target::None, figure);
        figures.round(
            &format!("instructions{}", build.label),
            0,
            &[
                row("miss, dns-server alone", alone.dns),
                row("miss, dns-servers with agents", meshed.dns),
                row("miss, agents", meshed.agents),
                row("miss, more with the mesh", meshed.dns + meshed.agents - alone.dns),
                row("cross-replica hit, dns-servers", hit.dns),
                row("cross-replica hit, agents", hit.agents),
                row("cross-replica hit", hit.dns + hit.agents),
            ],
        );
    }
    Ok(())
}

/// Instructions per query.
struct Count {
    dns: f64,
    agents: f64,
}

async fn misses(build: &Build, builder: Builder, upstream: &Arc<Upstream>) -> Result<Count> {
    let counted = Counted::start(build, builder, upstream).await?;
    let mut supply = Supply::default();
    let (before, names) = (Arc::new(supply.take(BEFORE)), Arc::new(supply.take(COUNTED)));
    counted.count(&before, &names).await
}

async fn cross_hit(build: &Build, upstream: &Arc<Upstream>) -> Result<Count> {
    let counted = Counted::start(build, Cluster::builder().replicas(2).replication_factor(1), upstream).await?;
    let (mut supply, members) = (Supply::default(), counted.system.members());
    let mut owned = |count| Arc::new(supply.owned_by(OWNER, &members, count));
    let (before, names) = (owned(BEFORE), owned(COUNTED));
    let socket = &counted.system.cluster.replica(OWNER).layout.socket;
    for names in [&before, &names] {
        fill::fill(socket, names).await?;
    }
    counted.count(&before, &names).await
}

/// A cluster whose servers run under callgrind.
struct Counted {
    system: System,
    folder: TempDir,
}

impl Counted {
    async fn start(build: &Build, builder: Builder, upstream: &Arc<Upstream>) -> Result<Self> {
        let folder = tempfile::tempdir().context("making a folder")?;
        let under = |program| under_callgrind(program, folder.path());
        let binaries = Binaries { dns: under(&build.binaries.dns)?, agent: under(&build.binaries.agent)? };
        let system = System::start(builder.long_budgets().workers(1).binaries(binaries), upstream).await?;
        Ok(Self { system, folder })
    }

    async fn count(&self, before: &Arc<Vec<Owned>>, names: &Arc<Vec<Owned>>) -> Result<Count> {
        self.system.asked(ASKED, before, OUTSTANDING).await?;
        self.taken(1)?;
        self.system.asked(ASKED, names, OUTSTANDING).await?;
        let (dns, agents) = self.taken(2)?;
        let per_query = |instructions: u64| instructions as f64 / names.len() as f64;
        Ok(Count { dns: per_query(dns), agents: per_query(agents) })
    }

    /// Instructions since the last time, of all servers and of all agents; `nth` counts the times.
    fn taken(&self, nth: u32) -> Result<(u64, u64)> {
        let of = |part| {
            let processes = self.system.cluster.replicas().iter().filter_map(|replica| replica.process(part));
            processes.map(|process| taken(process.pid(), nth, self.folder.path())).sum::<Result<u64>>()
        };
        Ok((of(Part::Dns)?, of(Part::Agent)?))
    }
}

/// A script in `folder` that runs `program` under callgrind, as the process that the caller starts.
fn under_callgrind(program: &Path, folder: &Path) -> Result<PathBuf> {
    let name = program.file_name().context("a program must have a name")?;
    let script = folder.join(name);
    let (out, program) = (folder.join("counts.%p"), program.display());
    let text = format!(
        "#!/bin/sh\nexec valgrind --tool=callgrind --callgrind-out-file='{}' '{program}' \"$@\"\n",
        out.display()
    );
    fs::write(&script, text).with_context(|| format!("writing {}", script.display()))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("making {} a program", script.display()))?;
    Ok(script)
}

/// Has callgrind write what process `pid` did since it last did so.
fn taken(pid: i32, nth: u32, folder: &Path) -> Result<u64> {
    let dumped = Command::new("callgrind_control").args(["-d", &pid.to_string()]).output();
    let dumped = dumped.context("running callgrind_control; install valgrind")?;
    ensure!(dumped.status.success(), "callgrind_control -d {pid}: {}", String::from_utf8_lossy(&dumped.stderr));
    let file = folder.join(format!("counts.{pid}.{nth}"));
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let count = |line: &str| line.strip_prefix("summary: ").or_else(|| line.strip_prefix("totals: "))?.parse().ok();
    match text.lines().find_map(count) {
        Some(instructions) => Ok(instructions),
        None => bail!("{} has no sum", file.display()),
    }
}

//! The cluster's processes.

use anyhow::{Result, bail};
use tokio::time::Instant;

use crate::binaries::Binaries;
use crate::cluster::{Part, wait_until_ready};
use crate::process::{DRAIN_PATIENCE, Process, Signal};
use crate::replica::{Layout, Settings, start_agent, start_dns};

struct Child {
    replica: usize,
    part: Part,
    name: String,
    process: Process,
    running: bool,
}

#[derive(Default)]
pub(super) struct Processes(Vec<Child>);

impl Processes {
    /// Starts everything and waits until all of it is ready.
    pub(super) async fn start(
        &mut self,
        binaries: &Binaries,
        layouts: &[Layout],
        settings: &Settings,
        standalone: bool,
    ) -> Result<()> {
        for (replica, layout) in layouts.iter().enumerate() {
            let mut add = |part, process| {
                let program = if part == Part::Dns { "heimdall-dns" } else { "heimdall-agent" };
                let name = format!("{program} of {}", layout.name);
                self.0.push(Child { replica, part, name, process, running: true });
            };
            if !standalone {
                add(Part::Agent, start_agent(binaries, layout, settings)?);
            }
            add(Part::Dns, start_dns(binaries, layout, settings)?);
        }
        for child in &mut self.0 {
            let layout = &layouts[child.replica];
            let address = if child.part == Part::Dns { layout.dns_http } else { layout.agent_http };
            wait_until_ready(&mut child.process, address).await?;
        }
        Ok(())
    }

    /// The id of a process that was started.
    pub(super) fn pid(&self, replica: usize, part: Part) -> Option<i32> {
        self.0.iter().find(|child| child.replica == replica && child.part == part).map(|child| child.process.pid())
    }

    /// What ended since the last look.
    pub(super) fn ended(&mut self) -> Vec<String> {
        let running = self.0.iter_mut().filter(|child| child.running);
        running
            .filter_map(|child| {
                let status = child.process.has_ended()?;
                child.running = false;
                Some(format!("{} (pid {}) ended: {status}", child.name, child.process.pid()))
            })
            .collect()
    }

    /// Ends the DNS servers and then the agents, as a pod does: nobody loses the mesh with a query in flight.
    pub(super) async fn drain(&mut self) -> Result<()> {
        // What ended before was reported when it did.
        self.ended();
        let mut troubles = Vec::new();
        for part in [Part::Dns, Part::Agent] {
            for child in self.0.iter().filter(|child| child.running && child.part == part) {
                child.process.signal(Signal::SIGTERM);
            }
            // All drain at the same time, so that they have one time between them.
            let deadline = Instant::now() + DRAIN_PATIENCE;
            for child in self.0.iter_mut().filter(|child| child.running && child.part == part) {
                // A second SIGTERM means "at once": only those that are late get one more signal, and that is SIGKILL.
                let Ok(status) = tokio::time::timeout_at(deadline, child.process.ended()).await else {
                    troubles.push(format!("{} did not drain within {DRAIN_PATIENCE:?} and is killed", child.name));
                    continue;
                };
                child.running = false;
                let status = status?;
                if !status.success() {
                    troubles.push(format!("{} ended with {status}", child.name));
                }
            }
        }
        if troubles.is_empty() { Ok(()) } else { bail!("{}", troubles.join("\n")) }
    }

    /// Kills what is left and waits until it is gone.
    pub(super) async fn kill(&mut self) {
        for child in &self.0 {
            child.process.signal(Signal::SIGKILL);
        }
        for child in &mut self.0 {
            if let Err(error) = child.process.ended().await {
                eprintln!("{}: {error:#}", child.name);
            }
        }
    }
}

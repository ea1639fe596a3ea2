//! A cluster of real processes on loopback, for tests.

mod asks;
mod builder;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use heimdall_certs::Ca;
use heimdall_shared::clock::Moment;
use tempfile::TempDir;

use crate::binaries::Binaries;
use crate::client::Client;
use crate::http::{self, Metrics};
use crate::process::{DRAIN_PATIENCE, Process, Signal};
use crate::replica::{Layout, Settings, start_agent, start_dns, write_peers};
use crate::upstream::Door;

pub use builder::Builder;

/// How long a process may take until it is ready: far more than it needs, so that only a broken one fails.
const READY_PATIENCE: Duration = Duration::from_secs(40);

/// Worker threads of every dns-server in a test: more than one, so that they must agree, and as many on every machine.
const WORKERS: usize = 2;

/// Pause between two looks at something that has no event to wait for.
pub const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// One of a replica's two processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `heimdall-dns`.
    Dns,
    /// `heimdall-agent`.
    Agent,
}

/// A replica of a cluster.
pub struct Replica {
    /// Where it listens.
    pub layout: Layout,
    /// How it is started.
    pub settings: Settings,
    /// Its own way to the upstream.
    pub door: Door,
    dns: Option<Process>,
    agent: Option<Process>,
}

/// A running cluster. Dropping it kills every process and removes every file.
pub struct Cluster {
    binaries: Binaries,
    workers: usize,
    replicas: Vec<Replica>,
    ca: Ca,
    folder: TempDir,
}

impl Cluster {
    /// Describes a cluster; `start` starts it.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// All replicas.
    pub fn replicas(&self) -> &[Replica] {
        &self.replicas
    }

    /// One replica.
    pub fn replica(&self, index: usize) -> &Replica {
        &self.replicas[index]
    }

    /// One replica, to change its settings before a restart.
    pub fn replica_mut(&mut self, index: usize) -> &mut Replica {
        &mut self.replicas[index]
    }

    /// The authority of the cluster's certificates.
    pub fn ca(&self) -> &Ca {
        &self.ca
    }

    /// A folder of the cluster's own.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// A DNS client of one replica.
    pub fn client(&self, index: usize) -> Client {
        Client::new(self.replicas[index].layout.dns)
    }

    /// Sends a signal to one process.
    pub fn signal(&self, index: usize, part: Part, signal: Signal) {
        if let Some(process) = self.replicas[index].process(part) {
            process.signal(signal);
        }
    }

    /// Kills one process and waits until it is gone.
    ///
    /// # Errors
    /// It was not running.
    pub async fn kill(&mut self, index: usize, part: Part) -> Result<ExitStatus> {
        let mut process = self.replicas[index].take(part)?;
        process.kill().await
    }

    /// Tells one process to end and waits until it has.
    ///
    /// # Errors
    /// It was not running.
    pub async fn stop(&mut self, index: usize, part: Part) -> Result<ExitStatus> {
        let mut process = self.replicas[index].take(part)?;
        process.stop(DRAIN_PATIENCE).await
    }

    /// Waits until one process that was told to end has.
    ///
    /// # Errors
    /// It was not running, or does not end.
    pub async fn ended(&mut self, index: usize, part: Part) -> Result<ExitStatus> {
        let mut process = self.replicas[index].take(part)?;
        process.ended_within(DRAIN_PATIENCE).await
    }

    /// Starts both processes of a replica, and waits until they are ready and know each other.
    ///
    /// # Errors
    /// One of them does not start, or does not become ready.
    pub async fn start_replica(&mut self, index: usize) -> Result<()> {
        for part in [Part::Agent, Part::Dns] {
            self.start(index, part)?;
        }
        for part in [Part::Agent, Part::Dns] {
            self.ready(index, part).await?;
        }
        self.linked(index).await
    }

    /// Starts a process that was stopped or killed, with the replica's present layout and settings.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(&mut self, index: usize, part: Part) -> Result<()> {
        let replica = &mut self.replicas[index];
        match part {
            Part::Dns => replica.dns = Some(start_dns(&self.binaries, &replica.layout, &replica.settings)?),
            Part::Agent => replica.agent = Some(start_agent(&self.binaries, &replica.layout, &replica.settings)?),
        }
        Ok(())
    }

    /// Makes `members` the members of the cluster: those of them that run are told so.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn set_members(&mut self, members: &[usize]) -> Result<()> {
        self.tell_members(members, members)
    }

    /// Makes `members` the members of the cluster, as far as the replicas `told` know: those of them that run hear it at
    /// once, the others when they start.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn tell_members(&mut self, told: &[usize], members: &[usize]) -> Result<()> {
        let peers: Vec<_> =
            members.iter().map(|&index| &self.replicas[index].layout).map(|of| (of.name.clone(), of.peer)).collect();
        for &index in told {
            let replica = &mut self.replicas[index];
            replica.settings.peers.clone_from(&peers);
            write_peers(&replica.layout, &replica.settings)?;
            self.signal(index, Part::Agent, Signal::SIGHUP);
        }
        Ok(())
    }

    /// Waits until one process says that it is ready.
    ///
    /// # Errors
    /// It ended, or did not become ready in time.
    pub async fn ready(&mut self, index: usize, part: Part) -> Result<()> {
        let replica = &mut self.replicas[index];
        let address = replica.http(part);
        let process = replica.process_mut(part).context("the process must have been started")?;
        wait_until_ready(process, address).await
    }

    /// Waits until every agent that runs has a link with every other one that runs.
    ///
    /// # Errors
    /// They did not find each other in time.
    pub async fn whole(&self) -> Result<()> {
        let running: Vec<usize> =
            (0..self.replicas.len()).filter(|&index| self.replicas[index].agent.is_some()).collect();
        let begun = Moment::now();
        for &index in &running {
            let wanted: Vec<&str> = running
                .iter()
                .filter(|&&other| other != index)
                .map(|&other| self.replicas[other].layout.name.as_str())
                .collect();
            loop {
                let seen = self.members_alive(index).await;
                if seen.as_ref().is_ok_and(|alive| wanted.iter().all(|name| alive.iter().any(|seen| seen == name))) {
                    break;
                }
                if Moment::now().since(begun) > READY_PATIENCE {
                    bail!("{} sees {seen:?} in place of {wanted:?}", self.replicas[index].layout.name);
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }

    /// Waits until every worker of a dns-server has a link to its agent.
    ///
    /// # Errors
    /// They did not find it in time.
    pub async fn linked(&self, index: usize) -> Result<()> {
        self.until(&format!("replica {index} is linked with its agent"), async || {
            let metrics = self.metrics(index, Part::Dns).await.unwrap_or_default();
            metrics.sum("heimdall_agent_links", &[]) as usize == self.workers
        })
        .await
    }

    /// Waits until replica `index` sees member `other` as alive, or not.
    ///
    /// # Errors
    /// It did not come to see it so in time.
    pub async fn sees(&self, index: usize, other: usize, alive: bool) -> Result<()> {
        let name = &self.replicas[other].layout.name;
        self.until(&format!("{index} sees {name} alive: {alive}"), async || {
            self.members_alive(index).await.is_ok_and(|seen| seen.contains(name) == alive)
        })
        .await
    }

    /// Looks again and again until `condition` holds.
    ///
    /// # Errors
    /// It did not hold in time.
    pub async fn until(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) -> Result<()> {
        let begun = Moment::now();
        while !condition().await {
            if Moment::now().since(begun) > READY_PATIENCE {
                bail!("waited {READY_PATIENCE:?} for: {what}");
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// The metrics of one process.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn metrics(&self, index: usize, part: Part) -> Result<Metrics> {
        Metrics::of(self.replicas[index].http(part)).await
    }

    /// One of the figures of a dns-server's `/stats`.
    ///
    /// # Errors
    /// It does not answer, or has no such figure.
    pub async fn figure(&self, index: usize, name: &str) -> Result<u64> {
        let (_, body) = http::get(self.replicas[index].layout.dns_http, "/stats").await?;
        let stats: serde_json::Value = serde_json::from_str(&body)?;
        stats[name].as_u64().with_context(|| format!("/stats has no figure {name:?}: {body}"))
    }

    /// A figure's sum over the dns-servers that run.
    ///
    /// # Errors
    /// One of them does not answer.
    pub async fn figures(&self, name: &str) -> Result<u64> {
        let mut sum = 0;
        for index in 0..self.replicas.len() {
            if self.replicas[index].dns.is_some() {
                sum += self.figure(index, name).await?;
            }
        }
        Ok(sum)
    }

    /// Waits until the dns-server of replica `index` has had so many queries that its own cache could not answer.
    ///
    /// # Errors
    /// They did not arrive in time.
    pub async fn misses(&self, index: usize, misses: u64) -> Result<()> {
        self.until(&format!("{misses} misses at replica {index}"), async || {
            self.figure(index, "l1_misses").await.is_ok_and(|had| had >= misses)
        })
        .await
    }

    /// A metric's sum over the processes of one kind that answer.
    pub async fn total(&self, part: Part, name: &str, labels: &[&str]) -> f64 {
        let mut sum = 0.0;
        for index in 0..self.replicas.len() {
            if self.replicas[index].process(part).is_some()
                && let Ok(metrics) = self.metrics(index, part).await
            {
                sum += metrics.sum(name, labels);
            }
        }
        sum
    }

    /// Tells every process to end and waits until all have.
    ///
    /// # Errors
    /// One of them had to be killed or did not exit with 0.
    pub async fn shut_down(mut self) -> Result<()> {
        let mut processes: Vec<Process> =
            self.replicas.iter_mut().flat_map(|replica| [replica.dns.take(), replica.agent.take()]).flatten().collect();
        for process in &processes {
            process.signal(Signal::SIGTERM);
        }
        for process in &mut processes {
            let status = process.ended_within(DRAIN_PATIENCE).await?;
            if !status.success() {
                bail!("a process ended with {status}:\n{}", process.shown_output());
            }
        }
        Ok(())
    }
}

impl Replica {
    /// The HTTP address of one of its processes.
    pub fn http(&self, part: Part) -> SocketAddr {
        match part {
            Part::Dns => self.layout.dns_http,
            Part::Agent => self.layout.agent_http,
        }
    }

    /// One of its processes, if it runs.
    pub fn process(&self, part: Part) -> Option<&Process> {
        match part {
            Part::Dns => self.dns.as_ref(),
            Part::Agent => self.agent.as_ref(),
        }
    }

    /// One of its processes, if it runs.
    pub fn process_mut(&mut self, part: Part) -> Option<&mut Process> {
        match part {
            Part::Dns => self.dns.as_mut(),
            Part::Agent => self.agent.as_mut(),
        }
    }

    fn take(&mut self, part: Part) -> Result<Process> {
        match part {
            Part::Dns => self.dns.take(),
            Part::Agent => self.agent.take(),
        }
        .with_context(|| format!("{:?} of {} does not run", part, self.layout.name))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for replica in &self.replicas {
                for process in [&replica.agent, &replica.dns].into_iter().flatten() {
                    eprint!("{}", process.shown_output());
                }
            }
        }
    }
}

/// Waits until `/readyz` says yes.
///
/// # Errors
/// The process ended, or did not become ready in time; its output is in the error.
pub async fn wait_until_ready(process: &mut Process, address: SocketAddr) -> Result<()> {
    let begun = Moment::now();
    loop {
        if let Ok((200, _)) = http::get(address, "/readyz").await {
            return Ok(());
        }
        if let Some(status) = process.has_ended() {
            bail!("a process ended with {status} before it was ready\n{}", process.shown_output());
        }
        if Moment::now().since(begun) > READY_PATIENCE {
            bail!("http://{address}/readyz did not say 200 within {READY_PATIENCE:?}\n{}", process.shown_output());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

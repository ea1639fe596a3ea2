//! Servers with settings that a kind of run needs.

use std::fs;
use std::net::SocketAddrV4;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::super::candidate::{Candidate, Ground, HOST};
use super::super::load::{Load, Tally};
use super::super::mix::Mix;
use super::super::paced::{self, Loss, Seen};
use super::super::peers::{PEERS, Place};
use super::super::workload::Workload;
use super::super::{WARM_UP_OUTSTANDING, WARM_UPS, loaded};
use super::{Bench, Cost};
use crate::net::free_ports;
use crate::process::Process;
use crate::replica::{AgentSocket, Layout, Ports, Settings, start_dns};

/// A server of one process.
pub(super) struct Served {
    pub(super) candidate: Candidate,
    pub(super) pid: i32,
}

impl Served {
    /// `heimdall-dns` without an agent, bound to the server's CPU, with these options.
    pub(super) async fn heimdall(bench: &Bench<'_>, name: &str, options: &[(&str, String)]) -> Result<Self> {
        let [dns, http] = free_ports(HOST);
        let ports = Ports { dns, dns_http: http, agent_http: 0, peer: 0 };
        let layout = Layout::new(name, HOST, ports, bench.folder.path())?;
        let settings = Settings {
            upstreams: vec![bench.upstream.address().to_string()],
            agent_socket: AgentSocket::Off,
            dns_options: options.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
            ..Settings::default()
        };
        let process = start_dns(bench.binaries, &layout, &settings)?;
        Self::of(bench, name, SocketAddrV4::new(HOST, dns), process).await
    }

    /// A known peer with one thread, bound to the server's CPU; nothing when it is not installed.
    pub(super) async fn peer(bench: &Bench<'_>, name: &str) -> Result<Option<Self>> {
        let Some(peer) = PEERS.iter().find(|peer| peer.name == name) else { return Ok(None) };
        let [port] = free_ports(HOST);
        let (listen, folder) = (SocketAddrV4::new(HOST, port), bench.folder.path().join(name));
        fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        match peer.start(&Place { listen, upstream: bench.upstream_address()?, folder })? {
            Some(process) => Self::of(bench, name, listen, process).await.map(Some),
            None => Ok(None),
        }
    }

    async fn of(bench: &Bench<'_>, name: &str, address: SocketAddrV4, process: Process) -> Result<Self> {
        let pid = process.pid();
        let ground = Ground {
            binaries: bench.binaries,
            upstream: &bench.upstream,
            folder: bench.folder.path(),
            workload: &bench.workload,
            cpus: bench.cpus,
        };
        let started = Candidate::of(name, address, process, &ground).await;
        Ok(Self { candidate: started.with_context(|| format!("starting {name}"))?, pid })
    }

    /// Has all questions of the workload cached.
    pub(super) async fn warm(&self, bench: &Bench<'_>) -> Result<()> {
        for _ in 0..WARM_UPS {
            loaded(&self.candidate, &bench.workload, WARM_UP_OUTSTANDING, |load| load.ask_all()).await?;
        }
        Ok(())
    }

    /// Has a load without pauses do `work` with a workload, and says what that cost.
    pub(super) async fn cost(
        &self,
        workload: &Arc<Workload>,
        outstanding: u32,
        work: impl FnOnce(&mut Load<'_>) -> Result<Tally> + Send + 'static,
    ) -> Result<Cost> {
        let before = self.candidate.usage()?;
        let tally = loaded(&self.candidate, workload, outstanding, work).await?;
        Ok(Cost { tally, server: self.candidate.usage()?.since(&before) })
    }

    /// Has a load of its own thread do `work` with the server's address.
    pub(super) async fn load<T: Send + 'static>(
        &self,
        work: impl FnOnce(SocketAddrV4) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let address = self.candidate.address;
        let done = tokio::task::spawn_blocking(move || work(address)).await.context("the load must not panic")?;
        done.with_context(|| format!("loading {}\n{}", self.candidate.name, self.candidate.shown_output()))
    }

    /// Has a paced load ask a mix.
    pub(super) async fn ask(&self, mix: Mix, loss: Loss) -> Result<Seen> {
        self.load(move |address| paced::ask(&mix, address, loss)).await
    }
}

//! A storm: many clients of every replica ask for one cold name at the same moment.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heimdall_shared::clock::Moment;

use super::super::figures::{Figures, Target};
use super::super::verify::Expected;
use super::super::workload::rule;
use super::names::{Owned, Supply};
use super::system::System;
use super::{Build, upstream};
use crate::cluster::Cluster;

const REPLICAS: usize = 3;

/// Clients per replica, each with a socket of its own.
const CLIENTS: usize = 200;

/// What the upstream takes for an answer.
const UPSTREAM_TAKES: Duration = Duration::from_millis(100);

/// How long an answer may take before it is lost.
const PATIENCE: Duration = Duration::from_secs(6);

/// The last client's time, as a multiple of what the upstream takes.
const LAST: Target = Target::AtMost(1.10);

/// Upstream queries of one storm.
const QUERIES: usize = 1;

/// A cluster and its slow upstream.
pub(super) struct Storms {
    system: System,
    supply: Supply,
}

impl Storms {
    /// Starts the cluster.
    ///
    /// # Errors
    /// It does not start.
    pub(super) async fn start(build: &Build) -> Result<Self> {
        let upstream = upstream().await?;
        upstream.otherwise(rule().after(UPSTREAM_TAKES));
        // Neither attempts nor silence may end while a machine that is busy lets the upstream wait: the count is what counts.
        let builder = Cluster::builder().replicas(REPLICAS).long_budgets().binaries(build.binaries.clone());
        Ok(Self { system: System::start(builder, &upstream).await?, supply: Supply::default() })
    }

    /// One storm.
    ///
    /// # Errors
    /// A wrong or lost answer; more than one upstream query.
    pub(super) async fn round(&mut self, id: &str, round: u32, figures: &mut Figures) -> Result<()> {
        let Self { system, supply } = self;
        let replicas = system.cluster.replicas();
        // What the upstream takes right now, on this machine: for a client of its own.
        let direct = storm(vec![replicas[0].door.address()], 1, supply.next()).await?;
        let before = system.upstream.journal().total().resolutions;
        let servers = replicas.iter().map(|replica| replica.layout.dns).collect();
        let last = storm(servers, CLIENTS, supply.next()).await.with_context(|| system.shown_output())?;
        let queries = system.upstream.journal().total().resolutions - before;
        figures.round(
            id,
            round,
            &[
                ("upstream queries", Target::AtMost(QUERIES as f64), queries as f64),
                ("last answer ÷ the upstream's time", LAST, last.as_secs_f64() / direct.as_secs_f64()),
                ("last answer, ms", Target::None, last.as_secs_f64() * 1e3),
                ("the upstream's time, ms", Target::None, direct.as_secs_f64() * 1e3),
            ],
        );
        ensure!(queries == QUERIES, "a storm on one name was {queries} queries upstream");
        Ok(())
    }
}

/// Has `clients` clients of each server ask for `name`; gives the time from the first query to the last answer.
async fn storm(servers: Vec<SocketAddr>, clients: usize, name: Owned) -> Result<Duration> {
    let (name, together) = (Arc::new(name), Arc::new(Barrier::new(servers.len())));
    let crowds = servers.into_iter().map(|server| {
        let (name, together) = (Arc::clone(&name), Arc::clone(&together));
        tokio::task::spawn_blocking(move || crowd(server, clients, &name, &together))
    });
    let (mut first, mut last) = (None, Moment::default());
    for crowd in crowds.collect::<Vec<_>>() {
        let (begun, ended) = crowd.await.context("a client must not panic")??;
        first = Some(first.map_or(begun, |first: Moment| first.min(begun)));
        last = last.max(ended);
    }
    Ok(last.since(first.context("somebody must have asked")?))
}

/// The clients of one server: all ask, then all hear.
fn crowd(server: SocketAddr, clients: usize, name: &Owned, together: &Barrier) -> Result<(Moment, Moment)> {
    let sockets = (0..clients).map(|_| {
        let socket = UdpSocket::bind((server.ip(), 0))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    });
    let sockets = sockets.collect::<std::io::Result<Vec<_>>>().context("opening sockets");
    together.wait();
    let sockets = sockets?;
    let begun = Moment::now();
    for socket in &sockets {
        socket.send(&name.asked.query).with_context(|| format!("asking {server}"))?;
    }
    let mut packet = [0; 512];
    for socket in &sockets {
        let length = socket.recv(&mut packet).with_context(|| format!("an answer of {server} is lost"))?;
        Expected::Answer.check(&name.asked, &packet[..length]).with_context(|| format!("{server} answered wrongly"))?;
    }
    Ok((begun, Moment::now()))
}

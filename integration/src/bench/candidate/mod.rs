//! What is measured: servers that answer over UDP, each with one worker on the server's CPU.

mod choice;
mod command;

pub(super) use choice::{Choice, ECHO, Kind, choose};
pub(super) use command::Custom;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use heimdall_shared::clock::Moment;
use tokio::net::UdpSocket;

use super::accounting::{self, Usage};
use super::machine::Cpus;
use super::peers::Place;
use super::verify::Expected;
use super::workload::Workload;
use crate::binaries::Binaries;
use crate::cluster::{Cluster, Part};
use crate::net::free_ports;
use crate::process::{Process, Signal};
use crate::replica::{AgentSocket, Layout, Ports, Settings, start_dns};
use crate::upstream::Upstream;

/// How long a candidate may take to answer its first query: far more than any needs, so that only a broken one fails.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Time between two first queries: short beside a start, long enough not to keep the CPU from the one that starts.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Replicas of the candidate that is a cluster.
const REPLICAS: usize = 3;

/// Where everything listens, but for the cluster, whose replicas have addresses of their own.
pub(super) const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// What every candidate is started with.
pub(super) struct Ground<'g> {
    pub(super) binaries: &'g Binaries,
    pub(super) upstream: &'g Upstream,
    /// Holds a folder for each candidate.
    pub(super) folder: &'g Path,
    pub(super) workload: &'g Workload,
    pub(super) cpus: Cpus,
}

/// A running candidate. Dropping it kills all its processes.
pub(super) struct Candidate {
    pub(super) name: String,
    pub(super) address: SocketAddrV4,
    pub(super) expected: Expected,
    server: Server,
    /// Bytes resident before the names were asked for.
    pub(super) resident_at_first: u64,
}

/// The processes of a candidate.
enum Server {
    /// One, with those that it starts itself.
    Alone(Box<Process>),
    /// A cluster, the first replica of which is asked.
    Pods(Box<Cluster>),
}

impl Candidate {
    /// Starts a candidate, has it answer once, and binds it to its CPU. `None` when the program is not installed.
    ///
    /// # Errors
    /// It does not answer.
    pub(super) async fn start(choice: &Choice, ground: &Ground<'_>) -> Result<Option<Self>> {
        let started = Self::try_start(choice, ground).await;
        started.with_context(|| format!("starting the candidate {}", choice.name))
    }

    async fn try_start(choice: &Choice, ground: &Ground<'_>) -> Result<Option<Self>> {
        let name = choice.name.as_str();
        if matches!(choice.kind, Kind::Pods) {
            return Self::start_pods(name, ground).await.map(Some);
        }
        let [port] = free_ports(HOST);
        let place = Place {
            listen: SocketAddrV4::new(HOST, port),
            upstream: upstream_address(ground.upstream)?,
            folder: own_folder(ground.folder, name)?,
        };
        let process = match &choice.kind {
            Kind::Echo => start_echo(&place)?,
            Kind::Dns | Kind::Pods => start_heimdall(name, ground.binaries, &place)?,
            Kind::Peer(peer) => match peer.start(&place)? {
                Some(process) => process,
                None => return Ok(None),
            },
            Kind::Custom(custom) => custom.start(&place)?,
        };
        let mut candidate = Self::of(name, place.listen, process, ground).await?;
        if matches!(choice.kind, Kind::Echo) {
            candidate.expected = Expected::Echo;
        }
        Ok(Some(candidate))
    }

    /// A candidate that a process was started for.
    ///
    /// # Errors
    /// It does not answer.
    pub(super) async fn of(name: &str, address: SocketAddrV4, process: Process, ground: &Ground<'_>) -> Result<Self> {
        Self::first(name, address, Server::Alone(Box::new(process)), ground).await
    }

    /// Three replicas with their agents. All six processes share the server's CPU, and what all of them use is counted.
    async fn start_pods(name: &str, ground: &Ground<'_>) -> Result<Self> {
        let cluster =
            Cluster::builder().replicas(REPLICAS).workers(1).binaries(ground.binaries.clone()).start(ground.upstream);
        let cluster = cluster.await?;
        let SocketAddr::V4(address) = cluster.replica(0).layout.dns else {
            bail!("a replica must have an IPv4 address")
        };
        Self::first(name, address, Server::Pods(Box::new(cluster)), ground).await
    }

    async fn first(name: &str, address: SocketAddrV4, mut server: Server, ground: &Ground<'_>) -> Result<Self> {
        first_answer(&mut server, address, ground.workload).await?;
        for pid in server.pids()? {
            ground.cpus.bind_server(pid)?;
        }
        let resident_at_first = server.resident()?;
        Ok(Self { name: name.to_owned(), address, expected: Expected::Answer, server, resident_at_first })
    }

    /// The CPU time of all its processes so far.
    ///
    /// # Errors
    /// It is gone.
    pub(super) fn usage(&self) -> Result<Usage> {
        Usage::of(&self.server.pids()?)
    }

    /// Bytes of memory that all its processes have resident together.
    ///
    /// # Errors
    /// It is gone.
    pub(super) fn resident(&self) -> Result<u64> {
        self.server.resident()
    }

    /// The last part of its output.
    pub(super) fn shown_output(&self) -> String {
        self.server.shown_output()
    }
}

impl Server {
    fn pids(&self) -> Result<Vec<i32>> {
        match self {
            Self::Alone(process) => accounting::family(process.pid()),
            Self::Pods(cluster) => Ok(pods(cluster).map(Process::pid).collect()),
        }
    }

    fn resident(&self) -> Result<u64> {
        self.pids()?.into_iter().map(accounting::resident).sum()
    }

    fn has_ended(&mut self) -> Option<std::process::ExitStatus> {
        match self {
            Self::Alone(process) => process.has_ended(),
            Self::Pods(_) => None,
        }
    }

    fn shown_output(&self) -> String {
        match self {
            Self::Alone(process) => process.shown_output(),
            Self::Pods(cluster) => pods(cluster).map(Process::shown_output).collect(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // What a candidate started itself goes with it; the process alone would leave them behind.
        if let Self::Alone(process) = self {
            process.signal_group(Signal::SIGKILL);
        }
    }
}

fn pods(cluster: &Cluster) -> impl Iterator<Item = &Process> {
    cluster.replicas().iter().flat_map(|replica| [replica.process(Part::Dns), replica.process(Part::Agent)]).flatten()
}

fn upstream_address(upstream: &Upstream) -> Result<SocketAddrV4> {
    match upstream.address() {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(address) => bail!("the upstream must have an IPv4 address and has {address}"),
    }
}

fn own_folder(all: &Path, name: &str) -> Result<PathBuf> {
    let folder = all.join(name);
    fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}

fn start_echo(place: &Place) -> Result<Process> {
    let program = std::env::current_exe().context("finding the running program")?;
    let arguments = ["--echo".to_owned(), place.listen.to_string()];
    Process::start(ECHO, &program, &arguments, &[], &place.folder.join("output"))
}

fn start_heimdall(name: &str, binaries: &Binaries, place: &Place) -> Result<Process> {
    let [dns_http] = free_ports(HOST);
    let ports = Ports { dns: place.listen.port(), dns_http, agent_http: 0, peer: 0 };
    let layout = Layout::new(name, HOST, ports, &place.folder)?;
    let settings = Settings {
        upstreams: vec![place.upstream.to_string()],
        agent_socket: AgentSocket::Off,
        dns_options: vec![("--workers".to_owned(), "1".to_owned())],
        ..Settings::default()
    };
    start_dns(binaries, &layout, &settings)
}

/// Asks until something comes back. Whether it is right is seen when all names are asked for.
async fn first_answer(server: &mut Server, address: SocketAddrV4, workload: &Workload) -> Result<()> {
    let socket = UdpSocket::bind((*address.ip(), 0)).await.context("binding a client socket")?;
    socket.connect(address).await.with_context(|| format!("connecting to {address}"))?;
    let begun = Moment::now();
    let mut buffer = [0; 512];
    while Moment::now().since(begun) < START_PATIENCE {
        // An error is that of a port where nobody listens yet.
        let asked = socket.send(&workload.name(0).query).await;
        let answered = async {
            match asked {
                Ok(_) if socket.recv(&mut buffer).await.is_ok() => {}
                _ => std::future::pending().await,
            }
        };
        let answered = tokio::time::timeout(ASK_AGAIN, answered).await.is_ok();
        if let Some(status) = server.has_ended() {
            bail!("it ended with {status}; a candidate must stay in the foreground\n{}", server.shown_output());
        }
        if answered {
            return Ok(());
        }
    }
    bail!("no answer from {address} within {START_PATIENCE:?}\n{}", server.shown_output())
}

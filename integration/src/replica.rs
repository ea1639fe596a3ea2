//! One replica: where its two processes listen, and how they are started.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::binaries::Binaries;
use crate::network;
use crate::process::Process;

/// Longest path that a Unix socket address holds, without the closing zero.
const SOCKET_PATH_MAX: usize = 107;

/// Addresses and files of one replica.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The member's name.
    pub name: String,
    /// DNS, UDP and TCP.
    pub dns: SocketAddr,
    /// The dns-server's HTTP.
    pub dns_http: SocketAddr,
    /// The agent's HTTP.
    pub agent_http: SocketAddr,
    /// The agent's mTLS port.
    pub peer: SocketAddr,
    /// The agent's local socket.
    pub socket: PathBuf,
    /// Folder with `tls.crt`, `tls.key` and `ca.crt`.
    pub tls: PathBuf,
    /// The agent's configuration file, where there is one.
    pub agent_config: PathBuf,
    /// Output of the dns-server.
    pub dns_log: PathBuf,
    /// Output of the agent.
    pub agent_log: PathBuf,
}

/// The usual ports, from which the local cluster counts.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// DNS.
    pub dns: u16,
    /// The agent's HTTP.
    pub agent_http: u16,
    /// The dns-server's HTTP.
    pub dns_http: u16,
    /// Peers.
    pub peer: u16,
}

/// What a deployment uses.
pub const STANDARD_PORTS: Ports = Ports { dns: 1053, agent_http: 8080, dns_http: 8081, peer: 8443 };

impl Layout {
    /// A replica of this name on `host` with its files in `folder`.
    ///
    /// # Errors
    /// The folder's path is too long for a socket in it.
    pub fn new(name: &str, host: Ipv4Addr, ports: Ports, folder: &Path) -> Result<Self> {
        let socket = folder.join(format!("{name}.sock"));
        let length = socket.as_os_str().len();
        ensure!(
            length <= SOCKET_PATH_MAX,
            "{} has {length} bytes and a Unix socket's path at most {SOCKET_PATH_MAX}: choose a shorter folder",
            socket.display()
        );
        Ok(Self {
            name: name.to_owned(),
            dns: (host, ports.dns).into(),
            dns_http: (host, ports.dns_http).into(),
            agent_http: (host, ports.agent_http).into(),
            peer: (host, ports.peer).into(),
            socket,
            tls: folder.join("tls").join(name),
            agent_config: folder.join(format!("{name}-agent.toml")),
            dns_log: folder.join(format!("{name}-dns.log")),
            agent_log: folder.join(format!("{name}-agent.log")),
        })
    }
}

/// Which agent a dns-server is told to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentSocket {
    /// That of its replica, whether anybody listens there or not.
    Own,
    /// None.
    Off,
}

/// Options and environment that both processes get on top of their layout.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Upstreams as the option takes them.
    pub upstreams: Vec<String>,
    /// All members as `name=host:port`.
    pub peers: Vec<(String, SocketAddr)>,
    /// The agent reads the members from a file, which can be changed while it runs.
    pub peers_in_file: bool,
    /// Which agent the dns-server uses.
    pub agent_socket: AgentSocket,
    /// More options of the dns-server, `--name` and value.
    pub dns_options: Vec<(String, String)>,
    /// More options of the agent.
    pub agent_options: Vec<(String, String)>,
    /// More environment of both.
    pub environment: Vec<(String, String)>,
    /// The network namespace in which both run, when it is not the harness's own.
    pub namespace: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            upstreams: Vec::new(),
            peers: Vec::new(),
            peers_in_file: false,
            agent_socket: AgentSocket::Own,
            dns_options: Vec::new(),
            agent_options: Vec::new(),
            environment: Vec::new(),
            namespace: None,
        }
    }
}

fn arguments(own: &[(&str, String)], more: &[(String, String)]) -> Vec<String> {
    // A later option replaces an earlier one of the same name: the programs refuse to be told twice.
    let own = own.iter().filter(|(name, _)| more.iter().all(|(other, _)| other != name));
    own.map(|(name, value)| ((*name).to_owned(), value.clone()))
        .chain(more.iter().cloned())
        .flat_map(|(name, value)| [name, value])
        .collect()
}

/// Starts the dns-server of a replica.
///
/// # Errors
/// The program cannot be started.
pub fn start_dns(binaries: &Binaries, layout: &Layout, settings: &Settings) -> Result<Process> {
    let socket = match settings.agent_socket {
        AgentSocket::Own => layout.socket.display().to_string(),
        AgentSocket::Off => "off".to_owned(),
    };
    let own = [
        ("--node", layout.name.clone()),
        ("--listen", layout.dns.to_string()),
        ("--http-listen", layout.dns_http.to_string()),
        ("--upstreams", settings.upstreams.join(",")),
        ("--agent-socket", socket),
        // Nobody in between has to learn that it leaves.
        ("--grace", "0s".to_owned()),
    ];
    let arguments = arguments(&own, &settings.dns_options);
    let name = format!("{} heimdall-dns", layout.name);
    run(&name, &binaries.dns, arguments, settings, &layout.dns_log)
}

/// Starts the agent of a replica.
///
/// # Errors
/// The program cannot be started.
pub fn start_agent(binaries: &Binaries, layout: &Layout, settings: &Settings) -> Result<Process> {
    let peers: Vec<String> = settings.peers.iter().map(|(name, address)| format!("{name}={address}")).collect();
    let peers = if settings.peers_in_file {
        write_peers(layout, settings)?;
        ("--config", layout.agent_config.display().to_string())
    } else {
        ("--peers", peers.join(","))
    };
    let own = [
        ("--node", layout.name.clone()),
        ("--socket", layout.socket.display().to_string()),
        ("--http-listen", layout.agent_http.to_string()),
        ("--peer-listen", layout.peer.to_string()),
        ("--advertise", layout.peer.to_string()),
        ("--discovery", "static".to_owned()),
        peers,
        ("--tls-dir", layout.tls.display().to_string()),
    ];
    let arguments = arguments(&own, &settings.agent_options);
    let name = format!("{} heimdall-agent", layout.name);
    run(&name, &binaries.agent, arguments, settings, &layout.agent_log)
}

fn run(name: &str, program: &Path, arguments: Vec<String>, settings: &Settings, log: &Path) -> Result<Process> {
    let Some(namespace) = &settings.namespace else {
        return Process::start(name, program, &arguments, &settings.environment, log);
    };
    let (enter, mut whole) = network::entering(namespace);
    whole.push(program.display().to_string());
    whole.extend(arguments);
    Process::start(name, Path::new(enter), &whole, &settings.environment, log)
}

/// Writes the file from which the agent reads the members.
///
/// # Errors
/// It cannot be written.
pub fn write_peers(layout: &Layout, settings: &Settings) -> Result<()> {
    let peers: Vec<String> = settings.peers.iter().map(|(name, address)| format!("{name}={address}")).collect();
    std::fs::write(&layout.agent_config, format!("peers = {:?}\n", peers.join(",")))
        .with_context(|| format!("writing {}", layout.agent_config.display()))
}

/// A new authority, and a certificate for each replica in its `tls` folder.
///
/// # Errors
/// The files cannot be written.
pub fn write_certificates(layouts: &[Layout]) -> Result<heimdall_certs::Ca> {
    let ca = heimdall_certs::Ca::new(heimdall_certs::TRUST_DOMAIN).context("making a certificate authority")?;
    for layout in layouts {
        let leaf = ca.replica(&layout.name).with_context(|| format!("making a certificate for {}", layout.name))?;
        leaf.write_to(&layout.tls).with_context(|| format!("writing to {}", layout.tls.display()))?;
    }
    Ok(ca)
}

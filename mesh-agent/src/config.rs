//! What can be set, read once from flags, environment, file and defaults.

use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::config::{EXIT_USAGE, Mode, Opt, Reader, parse_bytes, parse_duration};
use heimdall_shared::link::WriteLevel;
use heimdall_shared::telemetry::parse_filter;

use crate::discovery::{self, PeerAddress};
use crate::levels::Promise;

/// The configuration of the process.
#[derive(Clone, Debug)]
pub struct Config {
    /// This member's name.
    pub node: Arc<str>,
    /// Where peers are listened for.
    pub peer_listen: SocketAddr,
    /// Where peers are told to dial this agent, `host:port`; the listening address if nothing.
    pub advertise: Option<Arc<str>>,
    /// The other members.
    pub peers: Vec<PeerAddress>,
    /// The folder with `tls.crt`, `tls.key` and `ca.crt`.
    pub tls_dir: PathBuf,
    /// The local socket.
    pub socket: PathBuf,
    /// Where probes and metrics are served.
    pub http_listen: SocketAddr,
    /// Copies of an entry, the owner's included.
    pub replication_factor: usize,
    /// What publishers are promised.
    pub promise: Promise,
    /// Size of the store.
    pub store_bytes: u64,
    /// How long entries are kept after their end.
    pub stale_limit: Duration,
    /// Threads.
    pub workers: usize,
    /// The least that a peer's first word is waited for.
    pub peer_budget: Duration,
    /// How often holders tick.
    pub tick: Duration,
    /// Longest lease.
    pub lease: Duration,
    /// Bytes per second of bulk copies that this agent fetches.
    pub transfer_rate: u64,
    /// How long a stop waits for what is under way.
    pub drain: Duration,
    /// One in so many answers of peers is compared with an upstream's; none with 0.
    pub peer_sample: u32,
    /// What is logged.
    pub log: String,
}

const OPTIONS: &[Opt] = &[
    Opt {
        name: "node",
        env: "HEIMDALL_NODE",
        value: "NAME",
        default: "",
        help: "This member's name, as in its certificate; else POD_NAME, else the host's name",
    },
    Opt {
        name: "peer-listen",
        env: "HEIMDALL_PEER_LISTEN",
        value: "ADDR:PORT",
        default: "0.0.0.0:8443",
        help: "Address for the other replicas and for operators, with mTLS",
    },
    Opt {
        name: "advertise",
        env: "HEIMDALL_ADVERTISE",
        value: "HOST[:PORT]",
        default: "",
        help: "Where the others can dial this agent; else POD_IP, else the listening address",
    },
    Opt {
        name: "discovery",
        env: "HEIMDALL_DISCOVERY",
        value: "KIND",
        default: "static",
        help: "How members are found: static (the list of --peers)",
    },
    Opt {
        name: "peers",
        env: "HEIMDALL_PEERS",
        value: "NAME=HOST:PORT,…",
        default: "",
        help: "The other members; this one may be among them. Host names are looked up at each dial",
    },
    Opt {
        name: "tls-dir",
        env: "HEIMDALL_TLS_DIR",
        value: "DIR",
        default: "/etc/tls",
        help: "Folder with tls.crt, tls.key and ca.crt; changed files are taken within 10 s",
    },
    Opt {
        name: "socket",
        env: "HEIMDALL_SOCKET",
        value: "PATH",
        default: "/run/heimdall/agent.sock",
        help: "Unix socket for this replica's dns-server, mode 0660",
    },
    Opt {
        name: "http-listen",
        env: "HEIMDALL_AGENT_HTTP_LISTEN",
        value: "ADDR:PORT",
        default: "0.0.0.0:8080",
        help: "Address that serves /metrics, /livez and /readyz",
    },
    Opt {
        name: "replication-factor",
        env: "HEIMDALL_REPLICATION_FACTOR",
        value: "COUNT",
        // One copy may be lost by a fault and one by a restart.
        default: "3",
        help: "Copies of an entry in the cluster, the owner's included; the same on all members",
    },
    Opt {
        name: "write-consistency",
        env: "HEIMDALL_WRITE_CONSISTENCY",
        value: "LEVEL",
        default: "eventual",
        help: "Copies that exist before a publisher is told: eventual (one), quorum (more than half), strong (all)",
    },
    Opt {
        name: "write-timeout",
        env: "HEIMDALL_WRITE_TIMEOUT",
        value: "TIME",
        // Many round trips, and less than the 500 ms after which people call a call stuck.
        default: "400ms",
        help: "Longest that a publisher waits for the copies of its level",
    },
    Opt {
        name: "store-bytes",
        env: "HEIMDALL_STORE_BYTES",
        value: "SIZE",
        // Some 250,000 usual answers with their overhead.
        default: "128MiB",
        help: "Size of the shared tier's store on this replica",
    },
    Opt {
        name: "stale-limit",
        env: "HEIMDALL_STALE_LIMIT",
        value: "TIME",
        // RFC 8767 5: the maximum stale timer "is suggested to be between 1 and 3 days".
        default: "24h",
        help: "How long answers are kept after their end, to be given out when no upstream answers; 0s for not at all",
    },
    Opt {
        name: "workers",
        env: "HEIMDALL_WORKERS",
        value: "COUNT",
        // A message costs a third less when no thread hands it to another, and one thread serves 100,000 lookups a second.
        default: "1",
        help: "Threads; cores for as many as there are processors",
    },
    Opt {
        name: "peer-budget",
        env: "HEIMDALL_PEER_BUDGET",
        value: "TIME",
        // Many round trips inside a site; three smoothed ones are waited for where they take longer.
        default: "10ms",
        help: "The least that a peer's first word is waited for before the next member is asked",
    },
    Opt {
        name: "tick",
        env: "HEIMDALL_TICK",
        value: "TIME",
        default: "25ms",
        help: "Time between two signs of work on an answer that others wait for",
    },
    Opt {
        name: "lease",
        env: "HEIMDALL_LEASE",
        value: "TIME",
        // Longer than the dns-server's budget of 4 s for a query.
        default: "5s",
        help: "Longest time for which one replica alone may fetch a key",
    },
    Opt {
        name: "transfer-rate",
        env: "HEIMDALL_TRANSFER_RATE",
        value: "SIZE",
        // A full store of the default size within half a minute, a twentieth of a gigabit link.
        default: "5MB",
        help: "Bytes per second at which this agent fetches entries in bulk when it starts or stands in for another",
    },
    Opt {
        name: "peer-sample",
        env: "HEIMDALL_PEER_SAMPLE",
        value: "COUNT",
        // A thousandth more upstream queries than the mesh saves, and a member that lies is known after some thousand answers.
        default: "1000",
        help: "One in so many answers of other replicas is compared with an upstream's; 0 for none",
    },
    Opt {
        name: "drain",
        env: "HEIMDALL_DRAIN",
        value: "TIME",
        // A lease, and a second for what follows it.
        default: "6s",
        help: "Time that a stop waits for the dns-server to leave and for leases to end",
    },
    Opt {
        name: "log",
        env: "HEIMDALL_LOG",
        value: "FILTER",
        default: "info",
        help: "What is logged: error, warn, info, debug, or a list like info,heimdall_agent=debug",
    },
];

/// Variables of the other process of a pod, and those that are read besides the options.
const SIBLINGS: &[&str] = &[
    "HEIMDALL_LISTEN",
    "HEIMDALL_UPSTREAMS",
    "HEIMDALL_AGENT_SOCKET",
    "HEIMDALL_HTTP_LISTEN",
    "HEIMDALL_CACHE_BYTES",
    "HEIMDALL_MIX_CASE",
    "HEIMDALL_QUERY_BUDGET",
    "HEIMDALL_ATTEMPT_TIMEOUT",
    "HEIMDALL_SILENCE",
    "HEIMDALL_GRACE",
    "HEIMDALL_STALE_AFTER",
    "HEIMDALL_STALE_RECHECK",
    "HEIMDALL_REFRESH_AHEAD",
];

/// Threads at most: more than any machine that runs one agent has processors.
const WORKERS_MAX: usize = 1_024;

/// Copies at most: every further one only costs memory.
const REPLICATION_MAX: usize = 16;

/// Sizes below this hold nothing worth asking a peer for.
const STORE_BYTES_MIN: u64 = 1 << 20;

/// Slower than this, one chunk would take longer than the giver waits for the next request.
const TRANSFER_RATE_MIN: u64 = 64 << 10;

impl Default for Config {
    /// The defaults of the options, of a member without a name that knows no other.
    fn default() -> Self {
        let text = |name| OPTIONS.iter().find(|option| option.name == name).map_or("", |option| option.default);
        let time = |name| parse_duration(text(name)).expect("the default must be a time");
        let bytes = |name| parse_bytes(text(name)).expect("the default must be a size");
        let number = |name, max| count(text(name), max).expect("the default must be a number");
        Self {
            node: Arc::default(),
            peer_listen: address(text("peer-listen")).expect("the default must be an address"),
            advertise: None,
            peers: Vec::new(),
            tls_dir: PathBuf::from(text("tls-dir")),
            socket: PathBuf::from(text("socket")),
            http_listen: address(text("http-listen")).expect("the default must be an address"),
            replication_factor: number("replication-factor", REPLICATION_MAX),
            promise: Promise {
                level: WriteLevel::from_name(text("write-consistency")).expect("the default must be a level"),
                within: time("write-timeout"),
            },
            store_bytes: bytes("store-bytes"),
            stale_limit: time("stale-limit"),
            workers: number("workers", WORKERS_MAX),
            peer_budget: time("peer-budget"),
            tick: time("tick"),
            lease: time("lease"),
            transfer_rate: bytes("transfer-rate"),
            drain: time("drain"),
            peer_sample: text("peer-sample").parse().expect("the default must be a number"),
            log: text("log").to_owned(),
        }
    }
}

impl Config {
    /// Reads this process's options.
    ///
    /// # Errors
    /// The exit code, when there is nothing to run; what there is to say was printed.
    pub fn from_process() -> Result<(Self, Mode, Vec<String>), ExitCode> {
        let about = "Heimdall's agent: one replica's part of the shared cache, its leases and its links";
        let (mut reader, mode) = Reader::from_process("heimdall-agent", about, OPTIONS, SIBLINGS)?;
        let config = Self::read(&mut reader);
        let warnings = reader.warnings().to_vec();
        match reader.finish(config) {
            Ok(config) => Ok((config, mode, warnings)),
            Err(mistakes) => {
                eprintln!("{mistakes}");
                Err(ExitCode::from(EXIT_USAGE))
            }
        }
    }

    /// Reads every option before giving up, so that every mistake is found.
    fn read(reader: &mut Reader) -> Option<Self> {
        let node = reader.text("node").or_else(|| variable("POD_NAME")).or_else(host_name);
        if node.is_none() {
            reader.reject("node", "this machine has no usable name; give one");
        }
        if let Some(why) = node.as_deref().and_then(|node| discovery::check_name(node).err()) {
            reader.reject("node", &format!("{:?}: {why}", node.as_deref().unwrap_or_default()));
        }
        let peer_listen = reader.with("peer-listen", address);
        let advertise = reader.text("advertise").or_else(|| variable("POD_IP"));
        let advertise = advertise.zip(peer_listen).map(|(host, listen)| with_port(&host, listen.port()));
        reader.with("discovery", |kind| match kind {
            "static" => Ok(()),
            "kubernetes" | "gossip" => Err("is not supported yet; use \"static\" and --peers".to_owned()),
            _ => Err("is not \"static\"".to_owned()),
        });
        let mut peers: Vec<PeerAddress> =
            reader.list("peers", |part| part.parse().map_err(|error: discovery::BadPeer| error.to_string()));
        if let Err(why) = discovery::check_distinct(&peers) {
            reader.reject("peers", &why);
        }
        peers.retain(|peer| Some(&*peer.name) != node.as_deref());
        let tls_dir = reader.text("tls-dir").map(PathBuf::from);
        let socket = reader.text("socket").map(PathBuf::from);
        let http_listen = reader.with("http-listen", address);
        let replication_factor = reader.with("replication-factor", |text| count(text, REPLICATION_MAX));
        let level = reader.with("write-consistency", |name| {
            WriteLevel::from_name(name).ok_or_else(|| "is not eventual, quorum or strong".to_owned())
        });
        let store_bytes = reader.bytes("store-bytes");
        let stale_limit = reader.duration("stale-limit");
        if store_bytes < STORE_BYTES_MIN {
            reader.reject("store-bytes", "is less than 1MiB");
        }
        let transfer_rate = reader.bytes("transfer-rate");
        if transfer_rate < TRANSFER_RATE_MIN {
            reader.reject("transfer-rate", "is less than 64KiB");
        }
        let workers = reader.with("workers", |text| match text {
            "cores" => Ok(std::thread::available_parallelism().map_or(1, NonZero::get)),
            text => count(text, WORKERS_MAX),
        });
        let mut positive = |name| reader.with(name, positive_duration).unwrap_or_default();
        let within = positive("write-timeout");
        let (peer_budget, tick, lease) = (positive("peer-budget"), positive("tick"), positive("lease"));
        let peer_sample = reader.with("peer-sample", |text| {
            text.parse().map_err(|_| "is not a number of answers, such as 1000".to_owned())
        });
        let drain = reader.duration("drain");
        let log = reader.with("log", parse_filter);
        Some(Self {
            node: node?.into(),
            peer_listen: peer_listen?,
            advertise,
            peers,
            tls_dir: tls_dir?,
            socket: socket?,
            http_listen: http_listen?,
            replication_factor: replication_factor?,
            promise: Promise { level: level?, within },
            store_bytes,
            stale_limit,
            workers: workers?,
            peer_budget,
            tick,
            lease,
            transfer_rate,
            drain,
            peer_sample: peer_sample?,
            log: log?,
        })
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "is not an IP address with a port, such as 0.0.0.0:8443 or [::]:8443".to_owned())
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("must be more than nothing".to_owned()),
        time => Ok(time),
    }
}

fn count(text: &str, max: usize) -> Result<usize, String> {
    let counted = text.parse().ok().filter(|count| (1..=max).contains(count));
    counted.ok_or_else(|| format!("is not a number from 1 to {max}"))
}

/// A variable that is read under another's name; Kubernetes' downward API sets it.
#[allow(clippy::disallowed_methods)] // the second names of two options are read here, beside the options
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty() && name != "(none)")
}

fn with_port(host: &str, port: u16) -> Arc<str> {
    if host.parse::<SocketAddr>().is_ok() {
        return host.into();
    }
    match host.parse::<std::net::IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, port).to_string().into(),
        Err(_) if host.contains(':') => host.into(),
        Err(_) => format!("{host}:{port}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertised_host_gets_the_listening_port_if_it_has_none() {
        for (host, expected) in [
            ("10.0.0.1", "10.0.0.1:8443"),
            ("10.0.0.1:9000", "10.0.0.1:9000"),
            ("::1", "[::1]:8443"),
            ("[::1]:9", "[::1]:9"),
            ("pod.svc", "pod.svc:8443"),
            ("pod.svc:9", "pod.svc:9"),
        ] {
            assert_eq!(&*with_port(host, 8_443), expected);
        }
    }

    #[test]
    fn counts_are_bounded() {
        assert_eq!(count("3", 16), Ok(3));
        for text in ["0", "17", "x", ""] {
            assert!(count(text, 16).is_err(), "{text:?}");
        }
    }
}

//! What can be set, read once from flags, environment, file and defaults.

use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use heimdall_shared::config::{Mistakes, Mode, Opt, Reader, parse_bytes, parse_duration};
use heimdall_shared::telemetry::parse_filter;

use crate::answer::Stale;
use crate::refresh::Ahead;
use crate::upstream::Address;

/// The configuration of the process.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where DNS is served, over UDP and TCP alike.
    pub listen: Vec<SocketAddr>,
    /// Whom to ask.
    pub upstreams: Vec<Address>,
    /// The agent's socket; nothing for a server without one.
    pub agent_socket: Option<PathBuf>,
    /// Where metrics and health are served.
    pub http_listen: SocketAddr,
    /// Threads that serve DNS.
    pub workers: usize,
    /// Size of the first-level cache in bytes.
    pub cache_bytes: u64,
    /// How long a query may take in all.
    pub query_budget: Duration,
    /// After how long without an answer the next upstream is asked.
    pub attempt_timeout: Duration,
    /// Whether letters of a query get a random case that the answer must repeat.
    pub mix_case: bool,
    /// Time between two signs of work on an answer that other replicas wait for.
    pub tick: Duration,
    /// Silence of the mesh that one miss bears in all.
    pub silence: Duration,
    /// When answers that are over are given out.
    pub stale: Stale,
    /// Which answers are fetched anew before they end.
    pub refresh_ahead: Ahead,
    /// How long SIGTERM waits for queries under way.
    pub drain: Duration,
    /// How long queries are taken after the first signal, while others learn that this server leaves.
    pub grace: Duration,
    /// Name of this replica in traces.
    pub node: String,
    /// What is logged.
    pub log: String,
}

const OPTIONS: &[Opt] = &[
    Opt {
        name: "listen",
        env: "HEIMDALL_LISTEN",
        value: "ADDR:PORT,…",
        // An unprivileged port, to which a Service maps port 53.
        default: "0.0.0.0:1053",
        help: "Addresses that serve DNS over UDP and TCP",
    },
    Opt {
        name: "upstreams",
        env: "HEIMDALL_UPSTREAMS",
        value: "ADDR,…",
        default: "",
        help: "Servers to ask, such as 1.1.1.1, 10.0.0.2:5300 or tcp://10.0.0.2; at least one is needed",
    },
    Opt {
        name: "agent-socket",
        env: "HEIMDALL_AGENT_SOCKET",
        value: "PATH",
        default: "/run/heimdall/agent.sock",
        help: "Unix socket of this replica's agent; off for a server of its own",
    },
    Opt {
        name: "http-listen",
        env: "HEIMDALL_HTTP_LISTEN",
        value: "ADDR:PORT",
        default: "0.0.0.0:8081",
        help: "Address that serves /metrics, /livez, /readyz and /stats",
    },
    Opt {
        name: "workers",
        env: "HEIMDALL_WORKERS",
        value: "COUNT",
        default: "cores",
        help: "Threads that serve DNS; cores for as many as there are processors",
    },
    Opt {
        name: "cache-bytes",
        env: "HEIMDALL_CACHE_BYTES",
        value: "SIZE",
        // Some 350,000 usual answers.
        default: "64MiB",
        help: "Size of the first-level cache",
    },
    Opt {
        name: "query-budget",
        env: "HEIMDALL_QUERY_BUDGET",
        value: "TIME",
        // A stub resolver gives up after 5 s.
        default: "4s",
        help: "Time that a query may take in all",
    },
    Opt {
        name: "attempt-timeout",
        env: "HEIMDALL_ATTEMPT_TIMEOUT",
        value: "TIME",
        // Three attempts fit into the budget.
        default: "1.2s",
        help: "Time after which an upstream that has not answered is joined by the next",
    },
    Opt {
        name: "mix-case",
        env: "HEIMDALL_MIX_CASE",
        value: "on|off",
        default: "on",
        help: "Give the letters of each query a random case that the answer must repeat, against forgery",
    },
    Opt {
        name: "tick",
        env: "HEIMDALL_TICK",
        value: "TIME",
        // Four fit into the silence that a miss bears, so that one or two may be lost.
        default: "25ms",
        help: "Time between two signs of work on an answer that other replicas wait for",
    },
    Opt {
        name: "silence",
        env: "HEIMDALL_SILENCE",
        value: "TIME",
        // What a sick mesh may cost a miss: about as much as an upstream far away.
        default: "100ms",
        help: "Silence of the mesh after which a query goes upstream by itself",
    },
    Opt {
        name: "grace",
        env: "HEIMDALL_GRACE",
        value: "TIME",
        // A Service's rules take about a second to follow; with the longest query of 4 s it stays within the agent's drain.
        default: "1.5s",
        help: "Time after SIGTERM for which queries are still taken: others need it to learn that this server leaves",
    },
    Opt {
        name: "stale-limit",
        env: "HEIMDALL_STALE_LIMIT",
        value: "TIME",
        // RFC 8767 5: the maximum stale timer "is suggested to be between 1 and 3 days".
        default: "24h",
        help: "How long after its end an answer is given out when no upstream answers; 0s for never",
    },
    Opt {
        name: "stale-after",
        env: "HEIMDALL_STALE_AFTER",
        value: "TIME",
        // RFC 8767 5: "a value of 1.8 seconds" for the client response timer.
        default: "1.8s",
        help: "How long a client waits for a new answer before it gets one that is over",
    },
    Opt {
        name: "stale-recheck",
        env: "HEIMDALL_STALE_RECHECK",
        value: "TIME",
        // RFC 8767 5: "no more frequently than every 30 seconds".
        default: "30s",
        help: "How long after a failure an answer that is over is given at once; less when upstreams answer other questions",
    },
    Opt {
        name: "refresh-ahead",
        env: "HEIMDALL_REFRESH_AHEAD",
        value: "PERCENT|off",
        // So much more a popular name costs: 2 % of its upstream queries, and less where two seconds are less than that.
        default: "2",
        help: "Part of a life before its end, two seconds at most, in which a popular answer is fetched anew",
    },
    Opt {
        name: "drain",
        env: "HEIMDALL_DRAIN",
        value: "TIME",
        // The query budget, and what the cluster needs after it.
        default: "6s",
        help: "Time that SIGTERM gives to queries under way",
    },
    Opt {
        name: "node",
        env: "HEIMDALL_NODE",
        value: "NAME",
        default: "",
        help: "Name of this replica in traces; without one the pod's, else where it listens",
    },
    Opt {
        name: "pod-name",
        env: "POD_NAME",
        value: "NAME",
        default: "",
        help: "Name of the pod, for a replica without a name of its own",
    },
    Opt {
        name: "log",
        env: "HEIMDALL_LOG",
        value: "FILTER",
        default: "info",
        help: "What is logged: a level, or levels by module",
    },
];

/// Variables of the agent, which shares this process's pod and perhaps its environment.
const SIBLINGS: &[&str] = &[
    "HEIMDALL_AGENT_HTTP_LISTEN",
    "HEIMDALL_PEER_LISTEN",
    "HEIMDALL_ADVERTISE",
    "HEIMDALL_DISCOVERY",
    "HEIMDALL_PEERS",
    "HEIMDALL_TLS_DIR",
    "HEIMDALL_SOCKET",
    "HEIMDALL_REPLICATION_FACTOR",
    "HEIMDALL_WRITE_CONSISTENCY",
    "HEIMDALL_WRITE_TIMEOUT",
    "HEIMDALL_STORE_BYTES",
    "HEIMDALL_PEER_BUDGET",
    "HEIMDALL_LEASE",
    "HEIMDALL_TRANSFER_RATE",
    "HEIMDALL_PEER_SAMPLE",
];

/// Most workers: beyond some dozens the shared first-level cache, not the threads, is the limit.
const WORKERS_MAX: usize = 1_024;

/// Largest part of a life before its end, in percent, in which an answer is fetched anew: beyond it upstreams are asked twice
/// as often as they allow for.
const AHEAD_MAX: u8 = 50;

/// Smallest first-level cache in bytes: a few thousand answers, below which its shards have no room.
/// Smallest first-level cache in bytes: some 5,000 answers; in less an answer of usual size over TCP has no room.
const CACHE_BYTES_MIN: u64 = 1 << 20;

impl Config {
    /// Reads the command line, the environment and the file that they name.
    ///
    /// # Errors
    /// The exit code when there is nothing to run: after `--help`, or when something is wrong, which is then printed.
    pub fn from_process() -> Result<(Self, Mode, Vec<String>), ExitCode> {
        let about = "Caching, forwarding DNS server whose replicas behave as one cache";
        let (mut reader, mode) = Reader::from_process("heimdall-dns", about, OPTIONS, SIBLINGS)?;
        let config = Self::read(&mut reader);
        let warnings = reader.warnings().to_vec();
        match reader.finish(config) {
            Ok(config) => Ok((config, mode, warnings)),
            Err(mistakes) => Err(report(&mistakes)),
        }
    }

    fn read(reader: &mut Reader) -> Option<Self> {
        // Everything is read before anything is missed, so that every mistake is found.
        let listen = reader.list("listen", address);
        let upstreams: Vec<Address> = reader.list("upstreams", |text| text.parse().map_err(|error| format!("{error}")));
        let agent_socket = reader.text("agent-socket").filter(|path| path != "off").map(PathBuf::from);
        let http_listen = reader.with("http-listen", address);
        let workers = reader.with("workers", workers);
        let cache_bytes = reader.bytes("cache-bytes");
        let query_budget = reader.duration("query-budget");
        let attempt_timeout = reader.duration("attempt-timeout");
        let mix_case = reader.with("mix-case", switch);
        let (tick, silence) = (reader.duration("tick"), reader.duration("silence"));
        let stale = Stale {
            limit: reader.duration("stale-limit"),
            after: reader.duration("stale-after"),
            recheck: reader.duration("stale-recheck"),
        };
        let refresh_ahead = reader.with("refresh-ahead", ahead);
        let drain = reader.duration("drain");
        let grace = reader.duration("grace");
        let node = reader.text("node").or_else(|| reader.text("pod-name"));
        let node = node.unwrap_or_else(|| listen.first().map(ToString::to_string).unwrap_or_default());
        let log = reader.with("log", parse_filter).unwrap_or_default();
        if reader.text("listen").is_some_and(|text| text.split(',').all(|part| part.trim().is_empty())) {
            reader.reject("listen", "names no address");
        }
        if reader.text("upstreams").is_none_or(|text| text.split(',').all(|part| part.trim().is_empty())) {
            reader.reject("upstreams", "at least one server to ask is needed, such as 1.1.1.1");
        }
        if reader.with("cache-bytes", parse_bytes).is_some_and(|bytes| bytes < CACHE_BYTES_MIN) {
            reader.reject("cache-bytes", "must be at least 1MiB");
        }
        for name in ["query-budget", "attempt-timeout", "tick", "silence"] {
            if reader.text(name).is_some_and(|text| parse_duration(&text).is_ok_and(|time| time.is_zero())) {
                reader.reject(name, "must be longer than 0");
            }
        }
        Some(Self {
            listen,
            upstreams,
            agent_socket,
            http_listen: http_listen?,
            workers: workers?,
            cache_bytes,
            query_budget,
            attempt_timeout,
            mix_case: mix_case?,
            tick,
            silence,
            stale,
            refresh_ahead: refresh_ahead?,
            drain,
            grace,
            node,
            log,
        })
    }
}

impl Default for Config {
    /// The defaults of the options. Without an upstream and without an agent, which have none that could be used anywhere.
    fn default() -> Self {
        let text = |name| OPTIONS.iter().find(|option| option.name == name).map_or("", |option| option.default);
        let time = |name| parse_duration(text(name)).expect("the default must be a time");
        Self {
            listen: vec![text("listen").parse().expect("the default must be an address")],
            upstreams: Vec::new(),
            agent_socket: None,
            http_listen: text("http-listen").parse().expect("the default must be an address"),
            workers: workers(text("workers")).expect("the default must be a number of workers"),
            cache_bytes: parse_bytes(text("cache-bytes")).expect("the default must be a size"),
            query_budget: time("query-budget"),
            attempt_timeout: time("attempt-timeout"),
            mix_case: switch(text("mix-case")).expect("the default must be on or off"),
            tick: time("tick"),
            silence: time("silence"),
            stale: Stale { limit: time("stale-limit"), after: time("stale-after"), recheck: time("stale-recheck") },
            refresh_ahead: ahead(text("refresh-ahead")).expect("the default must be a part"),
            drain: time("drain"),
            grace: time("grace"),
            node: String::new(),
            log: text("log").to_owned(),
        }
    }
}

fn report(mistakes: &Mistakes) -> ExitCode {
    eprintln!("{mistakes}");
    ExitCode::from(heimdall_shared::config::EXIT_USAGE)
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "is not an IP address with a port, such as 0.0.0.0:1053 or [::]:1053".to_owned())
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("is neither \"on\" nor \"off\"".to_owned()),
    }
}

fn ahead(text: &str) -> Result<Ahead, String> {
    if text == "off" {
        return Ok(Ahead::OFF);
    }
    match text.trim_end_matches('%').parse() {
        Ok(percent) if percent <= AHEAD_MAX => Ok(Ahead::percent(percent)),
        _ => Err(format!("is neither \"off\" nor a number of percent up to {AHEAD_MAX}")),
    }
}

fn workers(text: &str) -> Result<usize, String> {
    if text == "cores" {
        return Ok(std::thread::available_parallelism().map_or(1, NonZero::get));
    }
    match text.parse() {
        Ok(count) if (1..=WORKERS_MAX).contains(&count) => Ok(count),
        _ => Err(format!("is neither \"cores\" nor a number from 1 to {WORKERS_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_design() {
        let config = Config::default();
        assert_eq!(config.listen, ["0.0.0.0:1053".parse().unwrap()]);
        assert_eq!(config.http_listen, "0.0.0.0:8081".parse().unwrap());
        let millis = [config.query_budget, config.attempt_timeout, config.tick, config.silence, config.drain];
        assert_eq!(millis.map(|time| time.as_millis()), [4_000, 1_200, 25, 100, 6_000]);
        assert!(config.workers >= 1);
    }

    #[test]
    fn a_switch_is_on_or_off() {
        assert_eq!((switch("on"), switch("off")), (Ok(true), Ok(false)));
        assert!(switch("yes").is_err());
    }

    #[test]
    fn a_refresh_comes_in_the_last_part_of_a_life_or_never() {
        assert_eq!(
            (ahead("5"), ahead("5%"), ahead("off")),
            (Ok(Ahead::percent(5)), Ok(Ahead::percent(5)), Ok(Ahead::OFF))
        );
        assert!(ahead("51").is_err() && ahead("2s").is_err());
    }

    #[test]
    fn the_number_of_workers_is_bounded() {
        assert_eq!(workers("3"), Ok(3));
        for text in ["0", "-1", "1025", "many", ""] {
            assert!(workers(text).is_err(), "{text:?}");
        }
    }
}

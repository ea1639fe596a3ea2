//! A network of a test's own: a namespace for each replica, a bridge between them, and cuts in one direction or both.
//!
//! The test itself moves into a namespace first ([`in_own_network`]), so that nothing of it is seen outside, and everything
//! of it is gone when the test is.

use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use heimdall_shared::clock::Moment;

/// Says that the process is inside already.
const INSIDE: &str = "HEIMDALL_TEST_NETWORK";

/// The bridge's end, where upstreams and clients are.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);

/// How long a new namespace may take to exist.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a test in a network namespace of its own: starts this test's program anew in one, with this one test, and there
/// runs `body`. Without root's rights the namespace comes with a user namespace.
///
/// # Panics
/// The test failed there, or no namespace could be had.
#[allow(clippy::disallowed_methods, reason = "a mark between two runs of one test, not an option of a server")]
pub fn in_own_network(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        body();
        return;
    }
    let program = std::env::current_exe().expect("a running program must have a path");
    let mut command = Command::new("unshare");
    if !is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let status = command
        .args(["--net", "--"])
        .arg(program)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare of util-linux must be installed");
    assert!(status.success(), "{test} in a network of its own: {status}");
}

fn is_root() -> bool {
    // The folder of a process belongs to the user that it acts as.
    std::fs::metadata("/proc/self").is_ok_and(|folder| folder.uid() == 0)
}

/// Some hosts, each in a namespace, with a bridge between them. They end with it.
pub struct Network {
    hosts: Vec<Host>,
}

/// One host.
struct Host {
    address: Ipv4Addr,
    /// Lives in the namespace for as long as its standard input is open, and so no longer than the test.
    keeper: Child,
}

impl Network {
    /// Makes `hosts` hosts that reach each other and [`OUTSIDE`].
    ///
    /// # Errors
    /// `ip`, `nft` or the right to use them is missing.
    pub fn new(hosts: usize) -> Result<Self> {
        run("ip", &["link", "set", "lo", "up"])?;
        run("ip", &["link", "add", "bridge", "type", "bridge", "forward_delay", "0"])?;
        run("ip", &["addr", "add", &format!("{OUTSIDE}/24"), "dev", "bridge"])?;
        run("ip", &["link", "set", "bridge", "up"])?;
        let mut network = Self { hosts: Vec::new() };
        for index in 0..hosts {
            network.add_host(index)?;
        }
        Ok(network)
    }

    fn add_host(&mut self, index: usize) -> Result<()> {
        let number = u8::try_from(index + 1).context("a network has at most 253 hosts")?;
        let keeper = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("starting unshare")?;
        let host = Host { address: Ipv4Addr::new(10, 77, 0, number), keeper };
        let namespace = host.namespace();
        self.hosts.push(host);
        let own = std::fs::read_link("/proc/self/ns/net").context("reading this process's namespace")?;
        let begun = Moment::now();
        while std::fs::read_link(&namespace).is_ok_and(|theirs| theirs == own) {
            ensure!(
                Moment::now().since(begun) < PATIENCE,
                "no namespace of its own for host {index} within {PATIENCE:?}"
            );
            std::thread::yield_now();
        }
        let (host, end) = (&self.hosts[index], format!("host-{index}"));
        let pid = host.keeper.id().to_string();
        run("ip", &["link", "add", &end, "type", "veth", "peer", "name", "eth0", "netns", &pid])?;
        run("ip", &["link", "set", &end, "master", "bridge", "up"])?;
        host.run("ip", &["addr", "add", &format!("{}/24", host.address), "dev", "eth0"])?;
        host.run("ip", &["link", "set", "eth0", "up"])?;
        host.run("ip", &["link", "set", "lo", "up"])?;
        host.run("nft", &["add", "table", "inet", "faults"])?;
        host.run("nft", &["add", "chain", "inet", "faults", "out", "{ type filter hook output priority 0; }"])?;
        Ok(())
    }

    /// How many hosts.
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// A host's address.
    pub fn address(&self, host: usize) -> Ipv4Addr {
        self.hosts[host].address
    }

    /// The file that names a host's namespace.
    pub fn namespace(&self, host: usize) -> PathBuf {
        self.hosts[host].namespace()
    }

    /// Nothing that leaves `from` reaches `to` any more.
    ///
    /// # Errors
    /// `nft` refuses.
    pub fn cut(&self, from: usize, to: usize) -> Result<()> {
        let to = self.hosts[to].address.to_string();
        self.hosts[from].run("nft", &["add", "rule", "inet", "faults", "out", "ip", "daddr", &to, "counter", "drop"])
    }

    /// Nothing passes between `a` and `b` any more.
    ///
    /// # Errors
    /// `nft` refuses.
    pub fn part(&self, a: usize, b: usize) -> Result<()> {
        self.cut(a, b)?;
        self.cut(b, a)
    }

    /// Everything passes again.
    ///
    /// # Errors
    /// `nft` refuses.
    pub fn heal(&self) -> Result<()> {
        self.hosts.iter().try_for_each(|host| host.run("nft", &["flush", "chain", "inet", "faults", "out"]))
    }
}

impl Host {
    fn namespace(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.keeper.id()))
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let (enter, prefix) = entering(&self.namespace());
        let whole: Vec<&str> =
            prefix.iter().map(String::as_str).chain([program]).chain(arguments.iter().copied()).collect();
        run(enter, &whole)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// The command that runs another one in a namespace, in its own process.
pub fn entering(namespace: &Path) -> (&'static str, Vec<String>) {
    ("nsenter", vec![format!("--net={}", namespace.display()), "--".to_owned()])
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {program}: is it installed?"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

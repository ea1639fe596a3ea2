//! How the process ends: the first signal finishes what is under way, the second ends it at once.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longest wait for anything that must come.
const PATIENCE: Duration = Duration::from_secs(10);

struct Process {
    child: Child,
    dns: SocketAddr,
    log: BufReader<std::process::ChildStderr>,
    /// The upstream, which this test plays: it hears a query and answers when it likes.
    upstream: UdpSocket,
}

impl Process {
    fn start() -> Self {
        let upstream = UdpSocket::bind("127.0.0.1:0").unwrap();
        upstream.set_read_timeout(Some(PATIENCE)).unwrap();
        let asked = upstream.local_addr().unwrap().to_string();
        let mut child = Command::new(env!("CARGO_BIN_EXE_heimdall-dns"))
            .args(["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--workers", "2"])
            .args(["--upstreams", &asked, "--agent-socket", "off"])
            .env_clear()
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let line = wait_for(&mut log, "listening");
        let dns = line.split_once("dns=[").unwrap().1.split_once(']').unwrap().0.parse().unwrap();
        Self { child, dns, log, upstream }
    }

    /// Asks for a name that is not cached, and gives what the upstream heard.
    fn ask(&self) -> (UdpSocket, Vec<u8>, SocketAddr) {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.send_to(b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x04slow\0\0\x01\0\x01", self.dns).unwrap();
        let mut buffer = [0; 512];
        let (length, server) = self.upstream.recv_from(&mut buffer).unwrap();
        (client, buffer[..length].to_vec(), server)
    }

    fn signal(&self) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Has ended already, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for(log: &mut impl BufRead, words: &str) -> String {
    let mut line = String::new();
    while log.read_line(&mut line).unwrap() > 0 {
        if line.contains(words) {
            return line;
        }
        line.clear();
    }
    panic!("the process ended without saying {words:?}");
}

#[test]
fn a_query_under_way_is_answered_before_the_process_ends_with_0() {
    let mut process = Process::start();
    let (client, query, server) = process.ask();
    process.signal();
    wait_for(&mut process.log, "stopping");
    // NXDOMAIN without records, to the query as it came: our OPT record is cut off.
    let mut reply = query[..12 + 6 + 4].to_vec();
    reply[2] |= 0x80;
    reply[3] = 3;
    reply[10..12].fill(0);
    process.upstream.send_to(&reply, server).unwrap();
    let mut buffer = [0; 512];
    let length = client.recv(&mut buffer).unwrap();
    assert_eq!((&buffer[..2], buffer[3] & 0x0F, length), (&b"\x12\x34"[..], 3, 22));
    assert_eq!(process.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let mut process = Process::start();
    let (_client, _query, _server) = process.ask();
    process.signal();
    wait_for(&mut process.log, "stopping");
    process.signal();
    wait_for(&mut process.log, "second signal");
    assert_eq!(process.child.wait().unwrap().code(), Some(143));
}

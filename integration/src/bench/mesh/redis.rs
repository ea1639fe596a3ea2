//! Redis beside the mesh: what one GET and one SET of an answer cost over loopback TCP, without TLS and without a DNS server.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use heimdall_shared::clock::Moment;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::accounting;
use super::super::figures::{Figures, Target};
use crate::net::free_ports;
use crate::process::Process;

/// Where Debian puts it.
const PROGRAM: &str = "/usr/bin/redis-server";

/// Where it listens.
const HOST: std::net::Ipv4Addr = std::net::Ipv4Addr::LOCALHOST;

/// Octets of a value: a usual answer.
const VALUE: [u8; 90] = [0x5a; 90];

/// Connections with one command on its way each, where the cost is measured.
const CONNECTIONS: usize = 64;

/// Commands one after the other, for the time that one takes.
const UNLOADED: usize = 2_000;

/// How long it may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running Redis that writes nothing to disk.
pub(super) struct Redis {
    process: Process,
    address: SocketAddr,
}

/// What is asked of it.
#[derive(Clone, Copy, Debug)]
enum Command {
    Get,
    Set,
}

/// What one run saw.
struct Ran {
    wall: Duration,
    /// Shortest first.
    latencies: Vec<Duration>,
}

impl Redis {
    /// Starts it. `None` when it is not installed.
    ///
    /// # Errors
    /// It does not start.
    pub(super) async fn start(folder: &Path) -> Result<Option<Self>> {
        if !Path::new(PROGRAM).is_file() {
            return Ok(None);
        }
        let [port] = free_ports(HOST);
        let address = SocketAddr::from((HOST, port));
        let host = HOST.to_string();
        let port = port.to_string();
        let arguments = ["--bind", &host, "--port", &port, "--save", "", "--appendonly", "no", "--daemonize", "no"];
        let arguments = arguments.map(str::to_owned);
        let mut process = Process::start("redis", Path::new(PROGRAM), &arguments, &[], &folder.join("redis.log"))?;
        let begun = Moment::now();
        while TcpStream::connect(address).await.is_err() {
            if process.has_ended().is_some() || Moment::now().since(begun) > PATIENCE {
                bail!("redis-server does not listen\n{}", process.shown_output());
            }
            tokio::time::sleep(crate::cluster::LOOK_AGAIN).await;
        }
        Ok(Some(Self { process, address }))
    }

    /// One round: SETs, then GETs of the same keys.
    ///
    /// # Errors
    /// A reply that is not what was set.
    pub(super) async fn round(&self, round: u32, keys: usize, figures: &mut Figures) -> Result<()> {
        for (command, word) in [(Command::Set, "SET"), (Command::Get, "GET")] {
            let alone = self.run(command, round, UNLOADED.min(keys), 1).await?;
            let before = accounting::process(self.process.pid())?;
            let ran = self.run(command, round, keys, CONNECTIONS).await?;
            let cost =
                accounting::process(self.process.pid())?.saturating_sub(before).as_secs_f64() * 1e6 / keys as f64;
            figures.round(
                &format!("redis {word}"),
                round,
                &[
                    ("CPU µs of the server", Target::None, cost),
                    ("per second, 64 outstanding", Target::None, keys as f64 / ran.wall.as_secs_f64()),
                    ("p50 µs, 64 outstanding", Target::None, middle(&ran.latencies)),
                    ("p50 µs, 1 outstanding", Target::None, middle(&alone.latencies)),
                ],
            );
        }
        Ok(())
    }

    /// Runs one command for each key over `connections` connections, in a thread of its own.
    async fn run(&self, command: Command, round: u32, keys: usize, connections: usize) -> Result<Ran> {
        let address = self.address;
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let begun = Moment::now();
                let clients = (0..connections).map(|nth| {
                    tokio::spawn(async move {
                        let mut client = Client::connect(address).await?;
                        let mut latencies = Vec::new();
                        for key in (nth..keys).step_by(connections) {
                            let asked = Moment::now();
                            client.round_trip(command, &format!("k{round}.{key}")).await?;
                            latencies.push(Moment::now().since(asked));
                        }
                        anyhow::Ok(latencies)
                    })
                });
                let mut latencies = Vec::with_capacity(keys);
                for client in clients.collect::<Vec<_>>() {
                    latencies.extend(client.await.context("a client must not panic")??);
                }
                latencies.sort_unstable();
                anyhow::Ok(Ran { wall: Moment::now().since(begun), latencies })
            })
        };
        tokio::task::spawn_blocking(work).await.context("the load must not panic")?
    }
}

/// One connection.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    async fn round_trip(&mut self, command: Command, key: &str) -> Result<()> {
        self.stream.write_all(&request(command, key)).await.context("asking redis")?;
        let expected = reply(command);
        self.buffer.resize(expected.len(), 0);
        self.stream.read_exact(&mut self.buffer).await.context("hearing redis")?;
        ensure!(self.buffer == expected, "redis answers {key} with {:?}", String::from_utf8_lossy(&self.buffer));
        Ok(())
    }
}

/// A command in the serialization protocol of Redis.
fn request(command: Command, key: &str) -> Vec<u8> {
    let mut out = match command {
        Command::Get => format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len()).into_bytes(),
        Command::Set => format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), VALUE.len()).into_bytes(),
    };
    if let Command::Set = command {
        out.extend(VALUE);
        out.extend(b"\r\n");
    }
    out
}

fn reply(command: Command) -> Vec<u8> {
    match command {
        Command::Get => [format!("${}\r\n", VALUE.len()).as_bytes(), &VALUE, b"\r\n"].concat(),
        Command::Set => b"+OK\r\n".to_vec(),
    }
}

fn middle(latencies: &[Duration]) -> f64 {
    latencies.get(latencies.len() / 2).copied().unwrap_or_default().as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_say_the_length_of_each_part() {
        assert_eq!(request(Command::Get, "ab"), b"*2\r\n$3\r\nGET\r\n$2\r\nab\r\n");
        let set = request(Command::Set, "ab");
        assert!(set.starts_with(b"*3\r\n$3\r\nSET\r\n$2\r\nab\r\n$90\r\nZ") && set.ends_with(b"Z\r\n"));
        assert!(reply(Command::Get).starts_with(b"$90\r\nZ"));
    }
}

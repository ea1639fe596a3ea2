//! A load over TCP: connections with several queries on their way each, and a look at every answer.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use heimdall_shared::clock::Moment;

use super::accounting;
use super::load::{PATIENCE, Tally, until};
use super::slots::Slots;
use super::verify::Expected;
use super::workload::Workload;

/// Connections: as many as a server that spreads them over workers must see.
pub(super) const CONNECTIONS: u32 = 16;

/// Octets read at once.
const READ: usize = 16 << 10;

/// Octets of the length in front of a message.
const LENGTH: usize = 2;

/// Connections to one server.
pub(super) struct Streams<'w> {
    workload: &'w Workload,
    connections: Vec<Connection>,
    server: SocketAddrV4,
}

struct Connection {
    stream: TcpStream,
    slots: Slots,
    /// What was read and is no whole message yet.
    read: Vec<u8>,
    write: Vec<u8>,
}

impl<'w> Streams<'w> {
    /// Connections for `outstanding` queries.
    ///
    /// # Errors
    /// They cannot be had.
    pub(super) fn open(workload: &'w Workload, server: SocketAddrV4, outstanding: u32) -> Result<Self> {
        let each = (outstanding / CONNECTIONS).max(1);
        let connection = |_| {
            let stream = TcpStream::connect(server)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(Connection { stream, slots: Slots::new(each), read: Vec::new(), write: Vec::new() })
        };
        let connections = (0..CONNECTIONS).map(connection).collect::<std::io::Result<_>>();
        let connections = connections.with_context(|| format!("connecting to {server}"))?;
        Ok(Self { workload, connections, server })
    }

    /// Asks for names by their frequency as long as `span`, until nothing is on its way.
    ///
    /// # Errors
    /// A wrong or lost answer, a connection that the server closes.
    pub(super) fn ask_for(&mut self, span: Duration, round: u32) -> Result<Tally> {
        let (begun, cpu) = (Moment::now(), accounting::own_thread()?);
        let Self { workload, connections, server } = self;
        let mut draws = workload.draws(round);
        let mut next = until(begun + span, move || draws.next());
        let (mut answers, mut waiting) = (0, 0);
        let mut fresh = Vec::new();
        for connection in &mut *connections {
            waiting += connection.ask(workload, &mut fresh, &mut next).with_context(|| format!("asking {server}"))?;
        }
        while waiting > 0 {
            for connection in connections.iter_mut().filter(|connection| connection.slots.any_waits()) {
                let count = connection
                    .take(workload)
                    .with_context(|| format!("from {server} after {answers} answers, {waiting} on their way"))?;
                answers += count as u64;
                waiting -= count;
                waiting +=
                    connection.ask(workload, &mut fresh, &mut next).with_context(|| format!("asking {server}"))?;
            }
        }
        let cpu = accounting::own_thread()?.saturating_sub(cpu);
        Ok(Tally { answers, wall: Moment::now().since(begun), cpu })
    }
}

impl Connection {
    /// Fills every free slot with a query, sends them together, and gives their number.
    fn ask(
        &mut self,
        workload: &Workload,
        fresh: &mut Vec<usize>,
        next: &mut impl FnMut() -> Option<u32>,
    ) -> Result<usize> {
        self.slots.fill(workload.asked(), next, fresh);
        self.write.clear();
        for &number in &*fresh {
            let packet = self.slots.packet(number);
            self.write.extend((packet.len() as u16).to_be_bytes());
            self.write.extend(packet);
        }
        self.stream.write_all(&self.write)?;
        Ok(fresh.len())
    }

    /// Waits for something, and takes the answers that are whole.
    fn take(&mut self, workload: &Workload) -> Result<usize> {
        let had = self.read.len();
        self.read.resize(had + READ, 0);
        let count = self.stream.read(&mut self.read[had..]).context("reading")?;
        if count == 0 {
            bail!("the connection was closed");
        }
        self.read.truncate(had + count);
        let (mut at, mut answers) = (0, 0);
        while let Some(length) = self.read[at..].first_chunk::<LENGTH>() {
            let start = at + LENGTH;
            let Some(packet) = self.read.get(start..start + usize::from(u16::from_be_bytes(*length))) else { break };
            self.slots
                .take(workload.asked(), Expected::Answer, packet)
                .with_context(|| format!("a wrong answer: {packet:02x?}"))?;
            at = start + packet.len();
            answers += 1;
        }
        self.read.drain(..at);
        Ok(answers)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::SocketAddr;

    use super::super::workload::{Kind, rule};
    use super::*;
    use crate::upstream::{Rule, Upstream};

    async fn asked(upstream: &Upstream) -> Result<Tally> {
        let SocketAddr::V4(address) = upstream.address() else { unreachable!("it was bound to IPv4") };
        let ask = move || {
            let workload = Workload::cached(Kind::Edge, 100, 1.0, 1).unwrap();
            Streams::open(&workload, address, 64)?.ask_for(Duration::from_millis(1), 0)
        };
        tokio::task::spawn_blocking(ask).await.unwrap()
    }

    #[tokio::test]
    async fn answers_of_pipelined_queries_are_found_and_checked() {
        let upstream = Upstream::start().await.unwrap();
        upstream.otherwise(rule());
        let tally = asked(&upstream).await.unwrap();
        assert!(tally.answers >= 64, "{}", tally.answers);
        upstream.otherwise(Rule::nxdomain());
        assert!(asked(&upstream).await.is_err());
    }
}

//! A client that keeps a number of queries on their way, asks each name once, and looks at every answer.

use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use heimdall_shared::clock::Moment;
use nix::errno::Errno;

use super::super::accounting;
use super::super::datagrams::{BATCH, Inbox, Outbox, client};
use super::super::verify::{Expected, Wrong};
use super::names::Owned;

/// How long an answer may take before it is lost: more than a query's budget.
const PATIENCE: Duration = Duration::from_secs(6);

/// What one run saw.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// Answers, all of them verified.
    pub(super) answers: usize,
    /// From the first query to the last answer.
    pub(super) wall: Duration,
    /// CPU time of this client.
    pub(super) cpu: Duration,
    /// From each query to its answer, shortest first.
    latencies: Vec<Duration>,
}

impl Seen {
    /// The time that a share of the answers did not exceed.
    pub(super) fn percentile(&self, share: f64) -> Duration {
        let at = (self.latencies.len() as f64 * share) as usize;
        self.latencies.get(at.min(self.latencies.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    /// Answers per second.
    pub(super) fn rate(&self) -> f64 {
        self.answers as f64 / self.wall.as_secs_f64()
    }
}

/// One socket towards one server.
pub(super) struct Asker {
    socket: UdpSocket,
    server: SocketAddrV4,
    inbox: Inbox,
    outbox: Outbox,
}

/// Room for one query on its way.
struct Slot {
    packet: Vec<u8>,
    asked: Option<(usize, Moment)>,
}

impl Asker {
    /// A client of `server`.
    ///
    /// # Errors
    /// The socket cannot be had.
    pub(super) fn new(server: SocketAddr) -> Result<Self> {
        let SocketAddr::V4(server) = server else { bail!("{server} is no IPv4 address") };
        let socket = client(server).with_context(|| format!("opening a socket towards {server}"))?;
        socket.set_read_timeout(Some(PATIENCE)).context("setting a time limit")?;
        Ok(Self { socket, server, inbox: Inbox::new(), outbox: Outbox::new() })
    }

    /// Asks for each name once, `outstanding` at a time.
    ///
    /// # Errors
    /// A wrong or lost answer.
    pub(super) fn ask(&mut self, names: &[Owned], outstanding: u16) -> Result<Seen> {
        let (begun, cpu) = (Moment::now(), accounting::own_thread()?);
        let mut slots: Vec<Slot> = (0..outstanding).map(|_| Slot { packet: Vec::new(), asked: None }).collect();
        let mut free: Vec<u16> = (0..outstanding).rev().collect();
        let mut latencies = Vec::with_capacity(names.len());
        let mut next = 0;
        while latencies.len() < names.len() {
            while next < names.len() && !free.is_empty() {
                next = self.send(names, next, &mut slots, &mut free, outstanding)?;
            }
            match self.inbox.receive(&self.socket) {
                Ok(()) => {}
                Err(Errno::EAGAIN | Errno::EINTR) => {
                    let waiting = next - latencies.len();
                    bail!("{waiting} answers of {} are lost: none came within {PATIENCE:?}", self.server)
                }
                Err(error) => return Err(error).with_context(|| format!("receiving from {}", self.server)),
            }
            let now = Moment::now();
            for packet in self.inbox.packets() {
                let (number, asked) = take(&mut slots, names, packet).with_context(|| {
                    format!("{} answered after {} answers with {packet:02x?}", self.server, latencies.len())
                })?;
                latencies.push(now.since(asked));
                free.push(number);
            }
        }
        let (wall, cpu) = (Moment::now().since(begun), accounting::own_thread()?.saturating_sub(cpu));
        latencies.sort_unstable();
        Ok(Seen { answers: latencies.len(), wall, cpu, latencies })
    }

    /// Sends as many of the next names as are free and one call takes; gives the first that is still to be sent.
    fn send(
        &mut self,
        names: &[Owned],
        first: usize,
        slots: &mut [Slot],
        free: &mut Vec<u16>,
        outstanding: u16,
    ) -> Result<usize> {
        let count = free.len().min(names.len() - first).min(BATCH);
        ensure!(count > 0, "a call must send something");
        let taken = free.split_off(free.len() - count);
        let now = Moment::now();
        for (offset, &number) in taken.iter().enumerate() {
            let slot = &mut slots[usize::from(number)];
            let index = first + offset;
            // The lower part of an ID names its slot, the upper part how often that was used.
            let used = (index / usize::from(outstanding)) as u16;
            let id = used.wrapping_mul(outstanding).wrapping_add(number);
            slot.packet.clone_from(&names[index].asked.query);
            slot.packet[..2].copy_from_slice(&id.to_be_bytes());
            slot.asked = Some((index, now));
        }
        let packets = taken.iter().map(|&number| slots[usize::from(number)].packet.as_slice());
        self.outbox
            .send(&self.socket, packets, &[None; BATCH][..count])
            .with_context(|| format!("asking {}", self.server))?;
        Ok(first + count)
    }
}

/// Checks an answer and frees its slot.
fn take(slots: &mut [Slot], names: &[Owned], packet: &[u8]) -> Result<(u16, Moment), Wrong> {
    let id = packet.first_chunk::<2>().ok_or(Wrong::Length)?;
    // An answer that comes twice finds its slot empty or with another ID.
    let mut found = slots.iter_mut().enumerate().filter(|(_, slot)| slot.asked.is_some());
    let (number, slot) = found.find(|(_, slot)| slot.packet.starts_with(id)).ok_or(Wrong::Id)?;
    let (index, asked) = slot.asked.take().ok_or(Wrong::Id)?;
    Expected::Answer.check(&names[index].asked, packet)?;
    Ok((number as u16, asked))
}

//! The load: a fixed number of queries on their way from many ports, and a look at every answer.

use std::net::{SocketAddrV4, UdpSocket};
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use heimdall_shared::clock::Moment;
use nix::errno::Errno;

use super::accounting;
use super::datagrams::{BATCH, Inbox, Outbox, client};
use super::slots::Slots;
use super::verify::Expected;
use super::workload::{Asked, Workload};

/// Source ports: a server that spreads clients over sockets by their ports must see many.
pub(super) const PORTS: u32 = 16;

/// How long an answer may take before it is lost: a miss included, and far more than a machine under load needs.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Answers between two looks at the clock.
const CLOCK_EVERY: u32 = 256;

/// What one run of the load saw.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tally {
    /// Answers, all of them verified.
    pub(super) answers: u64,
    /// Time from the first query to the last answer.
    pub(super) wall: Duration,
    /// CPU time of the load itself.
    pub(super) cpu: Duration,
}

/// A generator, for one server at a time.
pub(super) struct Load<'w> {
    workload: &'w Workload,
    ports: Vec<Port>,
    inbox: Inbox,
    outbox: Outbox,
    expected: Expected,
    server: SocketAddrV4,
}

/// A socket and the queries that wait on it.
struct Port {
    socket: UdpSocket,
    slots: Slots,
}

impl<'w> Load<'w> {
    /// Sockets for `outstanding` queries to `server`.
    ///
    /// # Errors
    /// The sockets cannot be had.
    pub(super) fn new(
        workload: &'w Workload,
        server: SocketAddrV4,
        expected: Expected,
        outstanding: u32,
    ) -> Result<Self> {
        let slots = (outstanding / PORTS).clamp(1, BATCH as u32);
        let port = |_| {
            let socket = client(server)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(Port { socket, slots: Slots::new(slots) })
        };
        let ports = (0..PORTS).map(port).collect::<std::io::Result<_>>();
        let ports = ports.with_context(|| format!("opening sockets towards {server}"))?;
        Ok(Self { workload, ports, inbox: Inbox::new(), outbox: Outbox::new(), expected, server })
    }

    /// Asks for every name once.
    ///
    /// # Errors
    /// A wrong or lost answer.
    pub(super) fn ask_all(&mut self) -> Result<Tally> {
        let mut names = self.workload.all();
        self.run(|| names.next())
    }

    /// Asks for the names of these numbers once.
    ///
    /// # Errors
    /// A wrong or lost answer.
    pub(super) fn ask_these(&mut self, mut numbers: Range<u32>) -> Result<Tally> {
        self.run(|| numbers.next())
    }

    /// Asks for names by their frequency as long as `span`, until nothing is on its way. Each round asks in another order.
    ///
    /// # Errors
    /// A wrong or lost answer.
    pub(super) fn ask_for(&mut self, span: Duration, round: u32) -> Result<Tally> {
        let end = Moment::now() + span;
        let mut draws = self.workload.draws(round);
        self.run(until(end, move || draws.next()))
    }

    /// Asks the workload's questions in their order, each once.
    ///
    /// # Errors
    /// A wrong or lost answer.
    pub(super) fn ask_in_order(&mut self) -> Result<Tally> {
        let mut order = self.workload.order().iter().copied();
        self.run(move || order.next())
    }

    fn run(&mut self, mut next: impl FnMut() -> Option<u32>) -> Result<Tally> {
        let (begun, cpu) = (Moment::now(), accounting::own_thread()?);
        let Self { workload, ports, inbox, outbox, expected, server } = self;
        let asked = workload.asked();
        let mut fresh = Vec::with_capacity(BATCH);
        let mut answers = 0;
        let mut waiting = 0;
        for port in &mut *ports {
            waiting += port.ask(asked, outbox, &mut fresh, &mut next).with_context(|| format!("asking {server}"))?;
        }
        while waiting > 0 {
            for port in ports.iter_mut().filter(|port| port.slots.any_waits()) {
                match inbox.receive(&port.socket) {
                    Ok(()) => {}
                    Err(Errno::EAGAIN | Errno::EINTR) => {
                        bail!("{waiting} answers of {server} are lost: none came within {PATIENCE:?}")
                    }
                    Err(error) => return Err(error).with_context(|| format!("receiving from {server}")),
                }
                for packet in inbox.packets() {
                    port.slots
                        .take(asked, *expected, packet)
                        .with_context(|| format!("{server} answered after {answers} answers with {packet:02x?}"))?;
                    answers += 1;
                    waiting -= 1;
                }
                waiting +=
                    port.ask(asked, outbox, &mut fresh, &mut next).with_context(|| format!("asking {server}"))?;
            }
        }
        let cpu = accounting::own_thread()?.saturating_sub(cpu);
        Ok(Tally { answers, wall: Moment::now().since(begun), cpu })
    }
}

/// What `next` gives, until `end`.
pub(super) fn until(end: Moment, mut next: impl FnMut() -> Option<u32>) -> impl FnMut() -> Option<u32> {
    let mut until_look = CLOCK_EVERY;
    move || {
        until_look -= 1;
        if until_look == 0 {
            if Moment::now() >= end {
                // The next call ends it too.
                until_look = 1;
                return None;
            }
            until_look = CLOCK_EVERY;
        }
        next()
    }
}

impl Port {
    /// Fills every free slot with a query, sends them, and gives their number.
    fn ask(
        &mut self,
        asked: &[Asked],
        outbox: &mut Outbox,
        fresh: &mut Vec<usize>,
        next: &mut impl FnMut() -> Option<u32>,
    ) -> Result<usize, Errno> {
        self.slots.fill(asked, next, fresh);
        if !fresh.is_empty() {
            let packets = fresh.iter().map(|&number| self.slots.packet(number));
            outbox.send(&self.socket, packets, &[None; BATCH][..fresh.len()])?;
        }
        Ok(fresh.len())
    }
}

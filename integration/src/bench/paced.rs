//! A load that asks at given times, whether answers come or not, and says how long each took.
//!
//! A latency is from the moment before the send call to the moment at which the kernel had the answer in the load's socket: what
//! the load itself is late by is not in it.

use std::net::{SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use heimdall_shared::clock::Moment;
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_nanosleep};

use super::accounting;
use super::datagrams::{BATCH, Inbox, Outbox, client, stamp_arrivals, stamp_clock};
use super::mix::Mix;
use super::verify::{Expected, Wrong};
use crate::net::enlarge_receive_buffer;

/// Source ports. All IDs of all of them are two million: an answer may be seconds late before its ID is used again.
const PORTS: usize = 32;

/// IDs of a port.
const IDS: usize = 1 << 16;

/// Receive buffer in bytes: what comes while the load does something else.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Longest pause between two looks at what came; about as long as the kernel may be late to end a pause.
const PAUSE_MAX: Duration = Duration::from_micros(200);

/// Pauses shorter than this are none.
const PAUSE_MIN: Duration = Duration::from_micros(50);

/// Batches sent between two looks at what came, when the load is late.
const BATCHES_AT_ONCE: usize = 4;

/// How long nothing may come before the rest is lost: more than one attempt at an upstream (1.2 s) takes. Where nothing may be
/// lost, longer than the 4 s that a query may take.
const QUIET: Duration = Duration::from_millis(1_500);
const QUIET_WHERE_NONE_IS_LOST: Duration = Duration::from_secs(5);

/// The return code of a server that cannot answer.
const SERVFAIL: u8 = 2;

/// What became of queries of one sort.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// Queries.
    pub(super) sent: u64,
    /// Right answers.
    pub(super) answered: u64,
    /// Answers that say that there is none (SERVFAIL).
    pub(super) refused: u64,
    /// Nanoseconds that each right answer took.
    latencies: Vec<u64>,
}

impl Counts {
    /// Queries without any answer.
    pub(super) const fn lost(&self) -> u64 {
        self.sent - self.answered - self.refused
    }

    /// Share of the queries with a right answer.
    pub(super) fn share(&self) -> f64 {
        self.answered as f64 / self.sent as f64
    }

    /// The microseconds within which this share of the right answers came.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        let at = ((sorted.len() as f64 * share) as usize).min(last);
        sorted.get(at).map_or(f64::NAN, |&nanos| nanos as f64 / 1e3)
    }
}

/// What a paced load saw.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Of questions that were cached.
    pub(super) hits: Counts,
    /// Of questions that were new.
    pub(super) misses: Counts,
    /// From the first query to the last.
    pub(super) wall: Duration,
    /// CPU time of the load itself, until the last query.
    pub(super) cpu: Duration,
}

impl Seen {
    /// Right answers to both.
    pub(super) const fn answered(&self) -> u64 {
        self.hits.answered + self.misses.answered
    }

    /// Queries of both.
    pub(super) const fn sent(&self) -> u64 {
        self.hits.sent + self.misses.sent
    }
}

/// Whether a query may stay without its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// Lost and refused queries are counted.
    Counted,
    /// One makes the run fail.
    Fails,
}

struct Port {
    socket: UdpSocket,
    last_id: u16,
    waiting: Vec<Waiting>,
    count: u64,
}

/// A query on its way: its question's number and one, so that nothing is 0; and the nanoseconds
/// at which it was sent, by the clock of the stamps.
#[derive(Clone, Copy, Debug, Default)]
struct Waiting {
    asked: u32,
    sent: u64,
}

/// Sends a mix to `server` and takes what comes back.
///
/// # Errors
/// A wrong answer; a lost one where none may be.
pub(super) fn ask(mix: &Mix, server: SocketAddrV4, loss: Loss) -> Result<Seen> {
    let ports = (0..PORTS).map(|_| Port::open(server)).collect::<Result<Vec<_>>>();
    let mut ports = ports.with_context(|| format!("opening sockets towards {server}"))?;
    let (mut inbox, mut outbox) = (Inbox::stamped(), Outbox::new());
    let mut seen = Seen::default();
    let (begun, cpu) = (Moment::now(), accounting::own_thread()?);
    let order = mix.workload.order();
    let (mut next, mut turn) = (0, 0);
    let mut heard = begun;
    let quiet = if loss == Loss::Counted { QUIET } else { QUIET_WHERE_NONE_IS_LOST };
    loop {
        let now = Moment::now();
        for _ in 0..BATCHES_AT_ONCE {
            let due = mix.times[next..].iter().take(BATCH).take_while(|&&time| time <= now.since(begun)).count();
            if due == 0 {
                break;
            }
            ports[turn].send(mix, &order[next..next + due], &mut outbox, &mut seen).context("sending")?;
            turn = (turn + 1) % PORTS;
            next += due;
            heard = now;
            if next == order.len() {
                seen.wall = Moment::now().since(begun);
                seen.cpu = accounting::own_thread()?.saturating_sub(cpu);
            }
        }
        for port in ports.iter_mut().filter(|port| port.count > 0) {
            if port.receive(mix, &mut inbox, loss, &mut seen)? {
                heard = now;
            }
        }
        let waits: u64 = ports.iter().map(|port| port.count).sum();
        if next == order.len() && (waits == 0 || now.since(heard) > quiet) {
            break;
        }
        let until = mix.times.get(next).map_or(PAUSE_MAX, |time| time.saturating_sub(Moment::now().since(begun)));
        pause(until.min(PAUSE_MAX))?;
    }
    let unanswered = seen.hits.lost() + seen.misses.lost();
    if loss == Loss::Fails && unanswered > 0 {
        bail!("{unanswered} of {} answers of {server} are lost: none came within {quiet:?}", seen.sent());
    }
    Ok(seen)
}

fn pause(span: Duration) -> Result<()> {
    if span < PAUSE_MIN {
        return Ok(());
    }
    match clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::empty(), &TimeSpec::from_duration(span)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error).context("pausing"),
    }
}

impl Port {
    fn open(server: SocketAddrV4) -> Result<Self> {
        let socket = client(server)?;
        enlarge_receive_buffer(&socket, RECEIVE_BUFFER)?;
        stamp_arrivals(&socket)?;
        Ok(Self { socket, last_id: 0, waiting: vec![Waiting::default(); IDS], count: 0 })
    }

    fn send(&mut self, mix: &Mix, numbers: &[u32], outbox: &mut Outbox, seen: &mut Seen) -> Result<()> {
        let sent = stamp_clock()?.as_nanos() as u64;
        let mut packets = Vec::with_capacity(numbers.len());
        for &number in numbers {
            self.last_id = self.last_id.wrapping_add(1);
            let mut packet = mix.workload.name(number).query.clone();
            packet[..2].copy_from_slice(&self.last_id.to_be_bytes());
            packets.push(packet);
            let waiting = &mut self.waiting[usize::from(self.last_id)];
            // What waited under this ID is lost.
            self.count += u64::from(waiting.asked == 0);
            *waiting = Waiting { asked: number + 1, sent };
            counts(seen, mix, number).sent += 1;
        }
        match outbox.send(&self.socket, packets.iter().map(Vec::as_slice), &[None; BATCH][..packets.len()]) {
            // What the kernel did not take is lost too.
            Ok(()) | Err(Errno::ENOBUFS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes what is there, and says whether anything was.
    fn receive(&mut self, mix: &Mix, inbox: &mut Inbox, loss: Loss, seen: &mut Seen) -> Result<bool> {
        let mut any = false;
        loop {
            match inbox.receive(&self.socket) {
                Ok(()) => {}
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(any),
                Err(error) => return Err(error).context("receiving"),
            }
            any = true;
            let mut count = 0;
            for (packet, stamp) in inbox.packets().zip(inbox.stamps()) {
                let arrived = stamp.map_or_else(stamp_clock, Ok)?;
                self.take(mix, packet, arrived, loss, seen)
                    .with_context(|| format!("after {} answers came {packet:02x?}", seen.answered()))?;
                count += 1;
            }
            if count < BATCH {
                return Ok(any);
            }
        }
    }

    fn take(&mut self, mix: &Mix, packet: &[u8], arrived: Duration, loss: Loss, seen: &mut Seen) -> Result<(), Wrong> {
        let id = packet.first_chunk().map(|id| u16::from_be_bytes(*id)).ok_or(Wrong::Length)?;
        let waiting = std::mem::take(&mut self.waiting[usize::from(id)]);
        let number = waiting.asked.checked_sub(1).ok_or(Wrong::Id)?;
        self.count -= 1;
        let asked = mix.workload.name(number);
        let counts = counts(seen, mix, number);
        match Expected::Answer.check(asked, packet) {
            Ok(()) => {
                counts.answered += 1;
                counts.latencies.push((arrived.as_nanos() as u64).saturating_sub(waiting.sent));
                Ok(())
            }
            Err(Wrong::Rcode) if loss == Loss::Counted && packet[3] & 0x0F == SERVFAIL => {
                // It must still be an answer to the question that was asked.
                if packet.get(12..asked.query.len()) != asked.query.get(12..) {
                    return Err(Wrong::Question);
                }
                counts.refused += 1;
                Ok(())
            }
            Err(wrong) => Err(wrong),
        }
    }
}

const fn counts<'s>(seen: &'s mut Seen, mix: &Mix, number: u32) -> &'s mut Counts {
    if mix.is_new(number) { &mut seen.misses } else { &mut seen.hits }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::SocketAddr;

    use super::super::mix::Shape;
    use super::super::workload::{Kind, Workload, rule};
    use super::*;
    use crate::upstream::{Rule, Upstream};

    fn mix() -> Mix {
        let workload = Workload::cached(Kind::Storm, 20, 1.0, 1).unwrap();
        Mix::new(&workload, 0, Shape { count: 300, rate: 3_000.0, new: 0.5, seed: 1, first_new: 0 })
    }

    async fn seen(upstream: &Upstream, loss: Loss) -> Result<Seen> {
        let SocketAddr::V4(address) = upstream.address() else { unreachable!("it was bound to IPv4") };
        tokio::task::spawn_blocking(move || ask(&mix(), address, loss)).await.unwrap()
    }

    #[tokio::test]
    async fn every_answer_is_counted_once_under_what_it_answers() {
        let upstream = Upstream::start().await.unwrap();
        upstream.otherwise(rule());
        let seen = seen(&upstream, Loss::Fails).await.unwrap();
        assert_eq!((seen.sent(), seen.answered()), (300, 300));
        assert_eq!(seen.misses.sent, mix().count_new());
        assert!(seen.hits.quantile(0.5) > 0.0 && seen.hits.quantile(0.5) <= seen.hits.quantile(0.99));
    }

    #[tokio::test]
    async fn what_is_lost_or_refused_is_counted_where_it_may_be_and_an_error_elsewhere() {
        let upstream = Upstream::start().await.unwrap();
        upstream.otherwise(Rule::rcode(2));
        let refused = seen(&upstream, Loss::Counted).await.unwrap();
        assert_eq!((refused.hits.refused + refused.misses.refused, refused.answered()), (300, 0));
        upstream.otherwise(Rule::silence());
        let lost = seen(&upstream, Loss::Counted).await.unwrap();
        assert_eq!(lost.hits.lost() + lost.misses.lost(), 300);
        upstream.otherwise(Rule::rcode(2));
        assert!(format!("{:#}", seen(&upstream, Loss::Fails).await.unwrap_err()).contains("return code"));
        upstream.otherwise(Rule::addresses());
        let wrong = seen(&upstream, Loss::Counted).await;
        assert!(wrong.is_ok(), "addresses are right for these questions: {wrong:?}");
        upstream.otherwise(Rule::nxdomain());
        assert!(seen(&upstream, Loss::Counted).await.is_err(), "a wrong answer is never only counted");
    }

    #[test]
    fn a_quantile_is_the_time_within_which_that_share_came() {
        let counts = Counts { latencies: (1..=100).rev().map(|micros| micros * 1_000).collect(), ..Counts::default() };
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|share| counts.quantile(share)), [1.0, 51.0, 100.0, 100.0]);
        assert!(Counts::default().quantile(0.5).is_nan());
    }
}

//! Asking upstreams: one *resolution* of a key, whatever packets it takes.
//!
//! ```text
//! resolve(key) ─► ranking: in which order ─► plan: whom next ─► dialogue (udp | tcp) ─► query.judge(packet)
//!                      ▲                        ▲  ▲                    │
//!                      └── response times       │  └── hints, ends ─────┤
//!                                               └── attempt's time      └─► answer in normal form
//! ```
//!
//! A dialogue listens until the resolution ends, also while another upstream is being asked: a late answer is an answer.

mod address;
mod dialogues;
mod exchange;
mod metrics;
mod plan;
mod ports;
mod query;
mod select;
mod tcp;
mod udp;

use std::pin::pin;
use std::sync::atomic::AtomicU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::dns::answer::{Answer, TtlLimits};
use heimdall_shared::key::Key;
use heimdall_shared::telemetry::{Span, Tracer};
use heimdall_shared::trace::TraceContext;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};

pub use self::address::{Address, AddressError, Transport};
use self::dialogues::{Dialogues, Told};
use self::exchange::{Exchange, Finish};
pub use self::metrics::Metrics;
use self::metrics::{FailureReason, ServerMetrics};
use self::plan::{Failure, Plan, Step};
use self::ports::Ports;
use self::select::Ranking;

/// Resolutions under way in this process. Each holds a socket or a few and some 4 KiB; beyond it a query fails at once
/// instead of queueing behind upstreams that are already too slow. A machine with few descriptors lowers it.
pub const RESOLUTIONS_MAX: usize = 4_096;

/// How upstreams are asked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whom to ask; the order counts until response times are known.
    pub servers: Vec<Address>,
    /// After this long without an answer the next attempt begins.
    pub attempt_timeout: Duration,
    /// Whether letters of the name get a random case that the answer must repeat.
    pub mix_case: bool,
    /// Whether one resolution in 32 asks another upstream than the best one first, to notice when it became better.
    pub explore: bool,
    /// Resolutions that may be under way, at most [`RESOLUTIONS_MAX`].
    pub resolutions_max: usize,
    /// Ports that no query may leave from: those of our own listeners.
    pub avoided_ports: Vec<u16>,
    /// The longest that answers may live.
    pub limits: TtlLimits,
}

/// What a resolution brought.
#[derive(Debug)]
pub struct Resolution {
    /// Its result.
    pub outcome: Outcome,
    /// Packets that were sent for it.
    pub packets: u32,
}

/// The result of a resolution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer, and when the exchange that brought it began.
    Answer {
        /// The answer in normal form.
        answer: Answer,
        /// From when its life counts.
        born: Moment,
    },
    /// Every upstream answered with a return code such as this; it is relayed.
    Rcode(u8),
    /// Every attempt ended in an upstream's own SERVFAIL: true for everybody.
    ServFail,
    /// Not every upstream was heard: it may be this machine's network.
    NoAnswer,
    /// As many as may be are under way: nobody was asked.
    Overload,
}

/// The configured upstreams and what is known of them. Shared by all workers.
#[derive(Debug)]
pub struct Upstreams {
    servers: Vec<(Address, ServerMetrics)>,
    attempt_timeout: Duration,
    mix_case: bool,
    explore: bool,
    limits: TtlLimits,
    ports: Ports,
    ranking: Mutex<Ranking>,
    room: Semaphore,
    metrics: Metrics,
    tracer: Tracer,
}

impl Upstreams {
    /// Opens nothing yet.
    pub fn new(settings: Settings, metrics: &Metrics, tracer: &Tracer) -> Self {
        let servers: Vec<_> = settings.servers.iter().map(|&address| (address, metrics.server(&address))).collect();
        Self {
            ranking: Mutex::new(Ranking::new(servers.len())),
            servers,
            attempt_timeout: settings.attempt_timeout,
            mix_case: settings.mix_case,
            explore: settings.explore,
            limits: settings.limits,
            ports: Ports::new(settings.avoided_ports),
            room: Semaphore::new(settings.resolutions_max.min(RESOLUTIONS_MAX)),
            metrics: metrics.clone(),
            tracer: tracer.clone(),
        }
    }

    /// The time of one attempt.
    pub const fn attempt_timeout(&self) -> Duration {
        self.attempt_timeout
    }

    /// The longest that answers may live.
    pub const fn limits(&self) -> &TtlLimits {
        &self.limits
    }

    /// Asks for `key` until `deadline`; each exchange gets a span under `trace` when that is recorded. Calls `struggling` once, as soon as a first attempt ended without a word of an
    /// upstream; the resolution then goes on.
    pub async fn resolve(
        &self,
        key: &Key,
        deadline: Instant,
        trace: Option<TraceContext>,
        struggling: impl FnOnce(),
    ) -> Resolution {
        let Ok(_room) = self.room.try_acquire() else {
            self.metrics.failed(FailureReason::Overload);
            return Resolution { outcome: Outcome::Overload, packets: 0 };
        };
        self.metrics.resolution();
        let packets = AtomicU32::new(0);
        let outcome = self.run(key, deadline, trace, &packets, struggling).await;
        match outcome {
            Outcome::ServFail => self.metrics.failed(FailureReason::ServFail),
            Outcome::Rcode(_) => self.metrics.failed(FailureReason::Rcode),
            Outcome::NoAnswer => self.metrics.failed(FailureReason::Timeout),
            Outcome::Answer { .. } | Outcome::Overload => {}
        }
        Resolution { outcome, packets: packets.into_inner() }
    }

    async fn run(
        &self,
        key: &Key,
        deadline: Instant,
        trace: Option<TraceContext>,
        packets: &AtomicU32,
        struggling: impl FnOnce(),
    ) -> Outcome {
        let dice = if self.explore { rand::random() } else { select::NO_EXPLORATION };
        let order = self.ranking().order(Moment::now(), dice);
        let mut plan = Plan::new(order.into_iter().map(|server| (server, self.servers[server].0.transport)).collect());
        let mut struggling = Some(struggling);
        let mut struggle = move || {
            if let Some(struggling) = struggling.take() {
                struggling();
            }
        };
        let told = Told::default();
        let mut dialogues = Dialogues::new();
        let mut attempt_over = Instant::now() + self.attempt_timeout;
        let mut alarm = pin!(sleep_until(attempt_over.min(deadline)));
        let mut step = plan.next();
        loop {
            match step {
                Step::Open(number) => {
                    let plan::Dialogue { server, transport, .. } = *plan.dialogue(number);
                    let surroundings = Exchange {
                        number,
                        key,
                        server: self.servers[server].0,
                        mix_case: self.mix_case,
                        limits: &self.limits,
                        ports: &self.ports,
                        told: &told,
                        packets,
                        metrics: &self.metrics,
                        server_metrics: &self.servers[server].1,
                    };
                    let span = trace.as_ref().and_then(|trace| self.tracer.child(trace, "upstream.exchange"));
                    dialogues.push(dialogue(surroundings, transport, span));
                    attempt_over = Instant::now() + self.attempt_timeout;
                }
                Step::Again(number) => {
                    told.ask_again(number);
                    attempt_over = Instant::now() + self.attempt_timeout;
                }
                Step::Wait => {}
                Step::GiveUp => break,
            }
            let due = attempt_over.min(deadline);
            if due != alarm.deadline() {
                alarm.as_mut().reset(due);
            }
            step = tokio::select! {
                // An answer is one, also when it comes together with the end of its time.
                biased;
                (number, born, finish) = dialogues.next() => match finish {
                    Finish::Answer(answer) => {
                        self.answered(plan.dialogue(number), born);
                        return Outcome::Answer { answer, born };
                    }
                    Finish::End(end) => {
                        let server = plan.dialogue(number).server;
                        match end {
                            plan::End::Broken => self.ranking().failed(server, Moment::now()),
                            plan::End::Rcode(_) | plan::End::Truncated => self.answered(plan.dialogue(number), born),
                        }
                        let next = plan.ended(number, end);
                        if !end.is_servfail() && end != plan::End::Truncated && next != Step::GiveUp {
                            struggle();
                        }
                        next
                    }
                },
                (number, hint) = told.hinted() => {
                    if hint == plan::Hint::Unreachable {
                        // It keeps its chance in this resolution; the next ones ask it last.
                        self.ranking().failed(plan.dialogue(number).server, Moment::now());
                    }
                    plan.hinted(number, hint)
                }
                () = &mut alarm => {
                    if let Some(server) = plan.awaited() {
                        self.ranking().failed(server, Moment::now());
                    }
                    struggle();
                    if Instant::now() >= deadline {
                        break;
                    }
                    attempt_over = Instant::now() + self.attempt_timeout;
                    plan.next()
                }
            };
        }
        match plan.failure() {
            Failure::ServFail => Outcome::ServFail,
            Failure::Rcode(code) => u8::try_from(code).map_or(Outcome::NoAnswer, Outcome::Rcode),
            Failure::NoAnswer => Outcome::NoAnswer,
        }
    }

    fn answered(&self, dialogue: &plan::Dialogue, born: Moment) {
        let time = Moment::now().since(born);
        self.servers[dialogue.server].1.response_time.observe(time.as_secs_f64());
        // An answer to a query that was sent twice may belong to either packet (Karn's rule).
        self.ranking().answered(dialogue.server, dialogue.was_tried_once().then_some(time));
    }

    /// Whether none of the upstreams answered the last queries to it.
    pub fn all_failing(&self) -> bool {
        self.ranking().all_failing()
    }

    fn ranking(&self) -> MutexGuard<'_, Ranking> {
        self.ranking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One dialogue, with its number and the moment at which it began.
async fn dialogue(exchange: Exchange<'_>, transport: Transport, mut span: Option<Span>) -> (usize, Moment, Finish) {
    if let Some(span) = &mut span {
        span.attribute("server.address", exchange.server.socket.ip().to_string());
        span.attribute("server.port", i64::from(exchange.server.socket.port()));
        span.attribute("network.transport", transport.as_str());
    }
    let born = Moment::now();
    let finish = match transport {
        Transport::Udp => udp::ask(&exchange).await,
        Transport::Tcp => tcp::ask(&exchange).await,
    };
    if let Some(span) = &mut span {
        match &finish {
            // NOERROR or NXDOMAIN: nothing else is an answer.
            Finish::Answer(answer) => span.attribute("dns.rcode", i64::from(answer.packet[3] & 0x0F)),
            Finish::End(plan::End::Rcode(code)) => span.attribute("dns.rcode", i64::from(*code)),
            Finish::End(plan::End::Truncated) => span.event("truncated"),
            Finish::End(plan::End::Broken) => span.event("broken"),
        }
    }
    (exchange.number, born, finish)
}

#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod tests;

//! How many upstream queries a cluster sends for each that it needs.
//!
//! The workload is played in real time. What it needs is counted from the moments at which the questions were sent: one
//! query for each lifetime of a key in which somebody asks for it.

use std::collections::HashMap;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heimdall_shared::clock::Moment;

use super::super::figures::{Figures, Target};
use super::super::verify::{Expected, Wrong};
use super::super::workload::{Asked, Event, Kind, Lives, Subject, Terms, Truth, Windows, events, rule};
use super::system::System;
use super::{Build, Run, upstream};
use crate::cluster::Cluster;
use crate::wire::Message;

/// Upstream queries for each that is needed.
const RATIO: Target = Target::AtMost(1.005);

/// What the upstream takes for an answer.
const UPSTREAM_TAKES: Duration = Duration::from_millis(20);

/// A client that has no answer for so long asks again, as a stub resolver does, so often at most: pods that start together send
/// more at once than a busy machine's socket buffers hold.
const ASK_AGAIN: Duration = Duration::from_secs(2);
const TRIES: u32 = 5;

/// Time between two looks at what has no answer.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Keys that were asked for too often and are shown.
const SHOWN: usize = 8;

/// A workload and how fast it is played.
#[derive(Clone, Copy, Debug)]
pub(super) struct Play {
    pub(super) kind: Kind,
    pub(super) name: &'static str,
    /// Divides the model's lifetimes: as many of them in a minute as usual in a quarter of an hour or so.
    pub(super) compressed: u32,
    /// Arrivals per second.
    pub(super) rate: f64,
}

/// The workloads of the targets.
pub(super) const PLAYS: [Play; 2] = [
    Play { kind: Kind::Edge, name: "edge", compressed: 20, rate: 1_000.0 },
    Play { kind: Kind::K8s, name: "k8s", compressed: 2, rate: 150.0 },
];

/// A question on its way, and when it was sent.
struct Sent {
    subject: Subject,
    at: Moment,
}

/// One replica's client: questions by their IDs.
struct Client {
    socket: UdpSocket,
    open: Mutex<HashMap<u16, Open>>,
    all_sent: AtomicBool,
}

/// A question without an answer.
struct Open {
    asked: Asked,
    sent: Moment,
    tries: u32,
}

/// Plays a workload on a new cluster of so many replicas.
///
/// # Errors
/// A wrong or lost answer.
pub(super) async fn play(build: &Build, replicas: u32, play: Play, run: &Run, figures: &mut Figures) -> Result<()> {
    let upstream = upstream().await?;
    upstream.otherwise(rule().after(UPSTREAM_TAKES));
    // Neither attempts nor silence may end while a machine that is busy lets somebody wait: the count is what counts.
    let builder = Cluster::builder().replicas(replicas as usize).long_budgets().binaries(build.binaries.clone());
    let system = System::start(builder, &upstream).await?;
    let (lives, rate) = (Lives::Compressed(play.compressed), play.rate);
    let terms = Terms { seed: run.seed, replicas, rate, lives, names: 1, exponent: 1.0 };
    let mut shares = vec![Vec::new(); replicas as usize];
    for event in events(play.kind, &terms).take_while(|event| event.at < run.span) {
        shares[event.replica as usize].push(event);
    }

    let begun = Moment::now();
    let mut clients = Vec::new();
    for (replica, share) in system.cluster.replicas().iter().zip(shares) {
        let server = replica.layout.dns;
        let socket = UdpSocket::bind((server.ip(), 0)).context("binding a client socket")?;
        socket.connect(server).with_context(|| format!("connecting to {server}"))?;
        socket.set_read_timeout(Some(LOOK_EVERY)).context("setting a time limit")?;
        let client = Arc::new(Client { socket, open: Mutex::default(), all_sent: AtomicBool::new(false) });
        let hears = Arc::clone(&client);
        let hears = tokio::task::spawn_blocking(move || hears.hear());
        clients.push((hears, tokio::spawn(async move { client.send(&share, begun).await })));
    }
    let (mut sent, mut again) = (Vec::new(), 0);
    for (hears, sends) in clients {
        sent.extend(sends.await.context("a client must not panic")??);
        again += hears.await.context("a client must not panic")?.with_context(|| system.shown_output())?;
    }
    sent.sort_by_key(|sent| sent.at);
    let (ideal, windows) = ideal(&sent, begun);
    let resolutions = upstream.journal().total().resolutions as u64;
    let excess = excess(&system, &windows);
    let id = format!("{}, {replicas} replicas", play.name);
    for line in excess.iter().take(SHOWN) {
        eprintln!("{id}: {line}");
    }
    figures.round(
        &id,
        0,
        &[
            ("upstream queries ÷ ideal", RATIO, resolutions as f64 / ideal as f64),
            ("upstream queries", Target::None, resolutions as f64),
            ("ideal", Target::None, ideal as f64),
            ("questions", Target::None, sent.len() as f64),
            ("questions that were sent again", Target::None, again.into()),
            ("keys with more queries than windows", Target::None, excess.len() as f64),
        ],
    );
    Ok(())
}

/// The windows in what was sent: all of them, and those of each subject.
fn ideal(sent: &[Sent], begun: Moment) -> (u64, HashMap<Subject, u64>) {
    let (mut windows, mut of) = (Windows::new(), HashMap::<Subject, u64>::new());
    for Sent { subject, at } in sent {
        let life = Truth::of(&subject.question()).life();
        if windows.asked(at.since(begun), *subject, life) {
            *of.entry(*subject).or_default() += 1;
        }
    }
    (windows.count(), of)
}

/// Keys for which there were more queries than windows, the worst first.
fn excess(system: &System, windows: &HashMap<Subject, u64>) -> Vec<String> {
    let mut worst = Vec::new();
    for (subject, &windows) in windows {
        let question = subject.question();
        let count = system.upstream.journal().count_of(&question).resolutions as u64;
        if count > windows {
            worst.push((count - windows, format!("{:?}: {count} queries in {windows} windows", question)));
        }
    }
    worst.sort_by_key(|(excess, _)| std::cmp::Reverse(*excess));
    worst.into_iter().map(|(_, line)| line).collect()
}

impl Client {
    /// Sends each question at its time.
    async fn send(&self, events: &[Event], begun: Moment) -> Result<Vec<Sent>> {
        let mut sent = Vec::with_capacity(events.len());
        for (number, event) in events.iter().enumerate() {
            let early = event.at.saturating_sub(Moment::now().since(begun));
            if !early.is_zero() {
                tokio::time::sleep(early).await;
            }
            let id = number as u16;
            let open = Open { asked: Asked::new(&event.subject), sent: Moment::now(), tries: 1 };
            let (query, at) = (open.query(id), open.sent);
            let taken = self.open().insert(id, open);
            ensure!(taken.is_none(), "65,536 questions wait for answers");
            self.socket.send(&query).context("asking")?;
            sent.push(Sent { subject: event.subject, at });
        }
        self.all_sent.store(true, Ordering::Release);
        Ok(sent)
    }

    /// Hears an answer to each question; gives the number of those that were sent again.
    fn hear(&self) -> Result<u32> {
        let mut packet = [0; 600];
        let mut again = 0;
        let mut looked = Moment::now();
        loop {
            if self.all_sent.load(Ordering::Acquire) && self.open().is_empty() {
                return Ok(again);
            }
            let heard = self.socket.recv(&mut packet);
            let now = Moment::now();
            if now.since(looked) >= LOOK_EVERY {
                looked = now;
                again += self.ask_again(now)?;
            }
            let Ok(length) = heard else { continue };
            let answer = &packet[..length];
            let id = answer.first_chunk().map(|id| u16::from_be_bytes(*id)).context("an answer without an ID")?;
            let Some(open) = self.open().remove(&id) else {
                ensure!(again > 0, "an answer to no question");
                continue;
            };
            let checked = match Expected::Answer.check(&open.asked, answer) {
                // What was alive where it was stored, and no more where it was asked for, has no second left.
                Err(Wrong::Ttl) => Expected::Answer.check(&open.asked, &revived(answer)?),
                checked => checked,
            };
            checked.with_context(|| format!("the answer to {:02x?} was {answer:02x?}", open.asked.query))?;
        }
    }

    fn ask_again(&self, now: Moment) -> Result<u32> {
        let mut again = 0;
        for (&id, open) in self.open().iter_mut().filter(|(_, open)| now.since(open.sent) >= ASK_AGAIN) {
            ensure!(open.tries < TRIES, "no answer to {:02x?} in {TRIES} tries", open.asked.query);
            (open.tries, open.sent) = (open.tries + 1, now);
            self.socket.send(&open.query(id)).context("asking again")?;
            again += 1;
        }
        Ok(again)
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u16, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn query(&self, id: u16) -> Vec<u8> {
        let mut query = self.asked.query.clone();
        query[..2].copy_from_slice(&id.to_be_bytes());
        query
    }
}

/// The same answer with a second to live, if it has none.
fn revived(answer: &[u8]) -> Result<Vec<u8>> {
    let mut message = Message::parse(answer)?;
    for record in message.answers.iter_mut().chain(&mut message.authority).filter(|record| record.ttl == 0) {
        record.ttl = 1;
    }
    Ok(message.encode_compressed())
}

//! A client that plays its share of a workload: each question at its time, and an answer to each.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heimdall_shared::clock::Moment;
use socket2::SockRef;
use tokio::task::JoinHandle;

use super::super::verify::{Expected, Wrong};
use super::super::workload::{Asked, Event, Subject};
use crate::wire::Message;

/// A client that has no answer for so long asks again, as a stub resolver does, so often at most: a replica that is killed takes its
/// open questions along.
const ASK_AGAIN: Duration = Duration::from_secs(2);
const TRIES: u32 = 5;

/// Answers that wait to be heard, bytes: those to pods that start together come all at once, some thousand of about 800 bytes with
/// what the kernel keeps of each. As much as the machine allows of it.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Time between two looks at what has no answer.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A question, and when it was sent: the time that was answered, where it had to be sent again. The one before may never have
/// reached a server.
pub(super) struct Sent {
    pub(super) subject: Subject,
    pub(super) at: Moment,
}

/// A client at work.
pub(super) struct Player {
    client: Arc<Client>,
    hears: JoinHandle<Result<(Vec<Sent>, u32)>>,
    sends: JoinHandle<Result<()>>,
}

/// One client: questions by their IDs.
struct Client {
    /// Not connected: another server may have to be asked from the same port, and one that is gone is no error.
    socket: UdpSocket,
    /// Whom it asks now.
    server: Mutex<SocketAddr>,
    open: Mutex<HashMap<u16, Open>>,
    all_sent: AtomicBool,
}

/// A question without an answer.
struct Open {
    subject: Subject,
    asked: Asked,
    sent: Moment,
    tries: u32,
}

impl Player {
    /// A client of `server` that sends these, at their times after `begun`.
    ///
    /// # Errors
    /// It gets no socket.
    pub(super) fn begin(server: SocketAddr, share: Vec<Event>, begun: Moment) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("binding a client socket")?;
        SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER).context("setting the size of a receive buffer")?;
        socket.set_read_timeout(Some(LOOK_EVERY)).context("setting a time limit")?;
        let (server, open, all_sent) = (Mutex::new(server), Mutex::default(), AtomicBool::new(false));
        let client = Arc::new(Client { socket, server, open, all_sent });
        let (hearing, sending) = (Arc::clone(&client), Arc::clone(&client));
        let hears = tokio::task::spawn_blocking(move || hearing.hear());
        let sends = tokio::spawn(async move { sending.send(&share, begun).await });
        Ok(Self { client, hears, sends })
    }

    /// Asks `server` from now on.
    pub(super) fn turn_to(&self, server: SocketAddr) {
        *self.client.server.lock().unwrap_or_else(PoisonError::into_inner) = server;
    }

    /// What was asked, and how many questions had to be sent again.
    ///
    /// # Errors
    /// A wrong or lost answer.
    pub(super) async fn end(self) -> Result<(Vec<Sent>, u32)> {
        self.sends.await.context("a client must not panic")??;
        self.hears.await.context("a client must not panic")?
    }
}

impl Client {
    /// Sends each question at its time.
    async fn send(&self, events: &[Event], begun: Moment) -> Result<()> {
        for (number, event) in events.iter().enumerate() {
            let early = event.at.saturating_sub(Moment::now().since(begun));
            if !early.is_zero() {
                tokio::time::sleep(early).await;
            }
            let id = number as u16;
            let (subject, asked) = (event.subject, Asked::new(&event.subject));
            let open = Open { subject, asked, sent: Moment::now(), tries: 1 };
            let query = open.query(id);
            let taken = self.open().insert(id, open);
            ensure!(taken.is_none(), "65,536 questions wait for answers");
            self.ask(&query)?;
        }
        self.all_sent.store(true, Ordering::Release);
        Ok(())
    }

    /// Hears an answer to each question; gives them with the number of those that were sent again.
    fn hear(&self) -> Result<(Vec<Sent>, u32)> {
        let mut packet = [0; 600];
        let (mut answered, mut again) = (Vec::new(), 0);
        let mut looked = Moment::now();
        loop {
            if self.all_sent.load(Ordering::Acquire) && self.open().is_empty() {
                return Ok((answered, again));
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
            answered.push(Sent { subject: open.subject, at: open.sent });
        }
    }

    fn ask_again(&self, now: Moment) -> Result<u32> {
        let mut again = 0;
        for (&id, open) in self.open().iter_mut().filter(|(_, open)| now.since(open.sent) >= ASK_AGAIN) {
            ensure!(open.tries < TRIES, "no answer to {:02x?} in {TRIES} tries", open.asked.query);
            (open.tries, open.sent) = (open.tries + 1, now);
            self.ask(&open.query(id))?;
            again += 1;
        }
        Ok(again)
    }

    fn ask(&self, query: &[u8]) -> Result<()> {
        let server = *self.server.lock().unwrap_or_else(PoisonError::into_inner);
        self.socket.send_to(query, server).with_context(|| format!("asking {server}"))?;
        Ok(())
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

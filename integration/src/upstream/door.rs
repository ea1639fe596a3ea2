//! One address of an upstream: a UDP socket and a TCP listener on the same port.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use heimdall_shared::clock::Moment;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;

use super::journal::{Received, Transport};
use super::script::{Source, Step};
use super::{Core, Script};
use crate::net::enlarge_receive_buffer;
use crate::wire::{Flags, Message};

/// Queries answered at the same time, per door: several times what any test sends at once. More are dropped.
const IN_FLIGHT: usize = 8192;

/// Receive buffer in bytes that is asked for: queries of some thousand askers at once, which the default of 200 KiB loses beyond
/// some two hundred.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Tries to find a port that is free for UDP and TCP.
const PORT_TRIES: usize = 50;

/// One address of an upstream. Clones are the same door.
#[derive(Clone)]
pub struct Door {
    address: SocketAddr,
    shut: Arc<AtomicBool>,
}

impl Door {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops answering (and goes on counting), or answers again.
    pub fn blackhole(&self, on: bool) {
        self.shut.store(on, Ordering::SeqCst);
    }

    pub(crate) async fn open(
        wanted: SocketAddr,
        index: usize,
        core: Arc<Core>,
        stop: CancellationToken,
    ) -> io::Result<Self> {
        let (udp, tcp) = bind_pair(wanted).await?;
        let address = udp.local_addr()?;
        let shut = Arc::new(AtomicBool::new(false));
        let server =
            Arc::new(Server { index, core, shut: shut.clone(), udp, in_flight: Arc::new(Semaphore::new(IN_FLIGHT)) });
        tokio::spawn(stop.clone().run_until_cancelled_owned(server.clone().serve_udp()));
        tokio::spawn(stop.clone().run_until_cancelled_owned(server.serve_tcp(tcp, stop)));
        Ok(Self { address, shut })
    }
}

async fn bind_pair(wanted: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut last = None;
    for _ in 0..PORT_TRIES {
        let udp = UdpSocket::bind(wanted).await?;
        enlarge_receive_buffer(&udp, RECEIVE_BUFFER)?;
        match TcpListener::bind(udp.local_addr()?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::other("no port is free for UDP and TCP")))
}

struct Server {
    index: usize,
    core: Arc<Core>,
    shut: Arc<AtomicBool>,
    udp: UdpSocket,
    in_flight: Arc<Semaphore>,
}

impl Server {
    async fn serve_udp(self: Arc<Self>) {
        let mut buffer = vec![0; 65_536];
        loop {
            // An ICMP error of an earlier send is reported here; it says nothing about the next datagram.
            let Ok((length, from)) = self.udp.recv_from(&mut buffer).await else { continue };
            let Some((received, script)) = self.received(&buffer[..length], Transport::Udp, from) else { continue };
            let Ok(permit) = self.in_flight.clone().try_acquire_owned() else { continue };
            let server = self.clone();
            tokio::spawn(async move {
                server.answer(&received, script, None).await;
                drop(permit);
            });
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        loop {
            let Ok((stream, from)) = listener.accept().await else { continue };
            tokio::spawn(stop.clone().run_until_cancelled_owned(self.clone().serve_connection(stream, from)));
        }
    }

    async fn serve_connection(self: Arc<Self>, stream: TcpStream, from: SocketAddr) {
        let (mut read, write) = stream.into_split();
        let write = Arc::new(Mutex::new(Some(write)));
        while let Ok(length) = read.read_u16().await {
            let mut packet = vec![0; usize::from(length)];
            if read.read_exact(&mut packet).await.is_err() {
                return;
            }
            let Some((received, script)) = self.received(&packet, Transport::Tcp, from) else { continue };
            let Ok(permit) = self.in_flight.clone().try_acquire_owned() else { continue };
            let (server, write) = (self.clone(), write.clone());
            tokio::spawn(async move {
                server.answer(&received, script, Some(&write)).await;
                drop(permit);
            });
        }
    }

    /// What arrived, and what it is answered. What does not even have a question is not counted: nobody could say what it asked.
    fn received(&self, packet: &[u8], transport: Transport, from: SocketAddr) -> Option<(Received, Script)> {
        let query = Message::parse(packet).ok().or_else(|| {
            // Keep what can be read: the header and the first question.
            let mut head = packet.get(..12)?.to_vec();
            head[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
            head.extend_from_slice(&packet[12..]);
            Message::parse(&head).ok()
        })?;
        let question = query.questions.first()?.clone();
        let received =
            Received { question, query, packet: packet.to_vec(), transport, from, door: self.index, at: Moment::now() };
        // Before the journal tells of it: whoever waited for it there may give the name another rule, which is for what comes.
        let script = self.core.script(&received);
        self.core.journal.arrived(&received);
        Some((received, script))
    }

    async fn answer(&self, received: &Received, script: Script, connection: Option<&Mutex<Option<OwnedWriteHalf>>>) {
        let Script(steps) = script;
        for step in steps {
            match step {
                Step::Wait(delay) => tokio::time::sleep(delay).await,
                Step::Hold(gate) => gate.passed().await,
                Step::Close => {
                    if let Some(connection) = connection {
                        connection.lock().await.take();
                    }
                }
                Step::Send(..) if self.shut.load(Ordering::SeqCst) => {}
                Step::Send(source, packet) => {
                    if source == Source::Door && is_reply_to(received, &packet) {
                        self.core.journal.answered(received, packet[2] & 0x02 != 0);
                    }
                    // A reply that cannot be sent is one that the asker does not get: nothing to handle here.
                    let _ = match connection {
                        Some(connection) => send_framed(connection, &packet).await,
                        None => self.send_datagram(source, &packet, received.from).await,
                    };
                }
            }
        }
    }

    async fn send_datagram(&self, source: Source, packet: &[u8], to: SocketAddr) -> io::Result<()> {
        let local = self.udp.local_addr()?.ip();
        match source {
            Source::Door => self.udp.send_to(packet, to).await?,
            Source::OtherPort => UdpSocket::bind((local, 0)).await?.send_to(packet, to).await?,
            Source::OtherAddress => {
                let other = Ipv4Addr::new(127, 255, 255, 253);
                UdpSocket::bind((other, self.udp.local_addr()?.port())).await?.send_to(packet, to).await?
            }
        };
        Ok(())
    }
}

/// Whether a packet is what ends a resolution, and not one of the forged ones before it.
fn is_reply_to(received: &Received, packet: &[u8]) -> bool {
    Message::parse(packet).is_ok_and(|reply| {
        reply.id == received.query.id
            && reply.flags.has(Flags::QR)
            && reply.questions.first().is_some_and(|question| question.same(&received.question))
    })
}

async fn send_framed(connection: &Mutex<Option<OwnedWriteHalf>>, packet: &[u8]) -> io::Result<()> {
    let length = u16::try_from(packet.len()).map_err(io::Error::other)?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(packet);
    match connection.lock().await.as_mut() {
        Some(write) => write.write_all(&frame).await,
        None => Ok(()),
    }
}

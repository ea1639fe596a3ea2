//! A DNS client that believes nothing: each answer's id, question and flags are checked before a test sees it,
//! and hickory's parser must be able to read it too.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::upstream::{address_of, ttl_of};
use crate::wire::{Flags, Message, Name, Opt, Question, rcode_name};

/// How long a client waits for an answer before it calls it lost: more than any query budget of a test and any scheduling
/// delay, so that only an answer that never comes is reported as lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// The UDP payload size that queries offer.
const PAYLOAD_SIZE: u16 = 1232;

/// Asks one server.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    server: SocketAddr,
}

impl Client {
    /// A client of `server`.
    pub fn new(server: SocketAddr) -> Self {
        Self { server }
    }

    /// Asks over UDP from a fresh socket, and over TCP if the answer is truncated.
    ///
    /// # Errors
    /// No answer, or one that is not an answer to the question.
    pub async fn ask(&self, name: &str, qtype: &str) -> Result<Message> {
        let query = question(name, qtype)?;
        let reply = self.exchange_udp(&query).await?;
        if reply.flags.has(Flags::TC) { self.exchange_tcp(&query).await } else { Ok(reply) }
    }

    /// Asks for the address of a name to which the upstream's default rule applies and checks the data.
    ///
    /// # Errors
    /// As [`Client::ask`]; any other address, more records, a TTL above the origin's.
    pub async fn ask_address(&self, name: &str) -> Result<Message> {
        let reply = self.ask(name, "A").await?;
        verify_address(&reply, name)?;
        Ok(reply)
    }

    /// One exchange over UDP.
    ///
    /// # Errors
    /// No answer, or one that is not an answer to the question.
    pub async fn exchange_udp(&self, query: &Message) -> Result<Message> {
        let mut conversation = Conversation::udp(self.server).await?;
        conversation.send(&query.encode()).await?;
        conversation.reply_to(query).await.with_context(|| format!("asking {} over UDP", self.server))
    }

    /// One exchange over a connection of its own.
    ///
    /// # Errors
    /// No answer, or one that is not an answer to the question.
    pub async fn exchange_tcp(&self, query: &Message) -> Result<Message> {
        let mut conversation = Conversation::tcp(self.server).await?;
        conversation.send(&query.encode()).await?;
        conversation.reply_to(query).await.with_context(|| format!("asking {} over TCP", self.server))
    }
}

/// A query with a random id, RD and an OPT.
///
/// # Errors
/// The name or the type cannot be read.
pub fn question(name: &str, qtype: &str) -> Result<Message> {
    let mut query = Message::query(rand::random(), Question::parse(name, qtype)?);
    query.opt = Some(Opt { size: PAYLOAD_SIZE, ..Opt::default() });
    Ok(query)
}

/// Checks that `reply` gives `name` the one address that follows from it.
///
/// # Errors
/// Says what differs.
pub fn verify_address(reply: &Message, name: &str) -> Result<()> {
    let name = Name::parse(name)?;
    ensure!(reply.rcode() == 0, "{name} A: {}: {reply:?}", rcode_name(reply.rcode()));
    let [record] = reply.answers.as_slice() else { bail!("{name} A: not one record: {reply:?}") };
    let wanted = address_of(&name).octets();
    ensure!(
        record.name.lower() == name.lower() && record.rtype == 1 && record.rdata == wanted,
        "{name} A: wrong data: {reply:?}"
    );
    ensure!(record.ttl <= ttl_of(&name), "{name} A: TTL above the origin's {}: {reply:?}", ttl_of(&name));
    Ok(())
}

/// Checks that `reply` answers `query`: id, QR, opcode, RA and the question's very bytes; and that another parser reads it.
///
/// # Errors
/// Says what differs.
pub fn verify_reply(query: &Message, packet: &[u8]) -> Result<Message> {
    let reply = Message::parse(packet)?;
    ensure!(reply.id == query.id, "id {} in place of {}: {reply:?}", reply.id, query.id);
    ensure!(reply.flags.has(Flags::QR | Flags::RA), "QR and RA must be set: {reply:?}");
    ensure!(reply.flags.opcode() == query.flags.opcode(), "another opcode: {reply:?}");
    ensure!(reply.questions == query.questions, "another question than {:?}: {reply:?}", query.questions);
    ensure!(reply.trailing.is_empty(), "bytes after the end: {reply:?}");
    hickory_proto::op::Message::from_vec(packet).context("hickory cannot read the answer")?;
    Ok(reply)
}

/// One socket or connection, for tests that look at raw bytes.
pub enum Conversation {
    /// A connected datagram socket.
    Udp(UdpSocket),
    /// A connection.
    Tcp(TcpStream),
}

impl Conversation {
    /// A fresh socket.
    ///
    /// # Errors
    /// None could be had.
    pub async fn udp(server: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.context("binding a client socket")?;
        socket.connect(server).await.with_context(|| format!("connecting to {server}"))?;
        Ok(Self::Udp(socket))
    }

    /// A new connection.
    ///
    /// # Errors
    /// The server does not accept it.
    pub async fn tcp(server: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(server).await.with_context(|| format!("connecting to {server} over TCP"))?;
        stream.set_nodelay(true)?;
        Ok(Self::Tcp(stream))
    }

    /// Sends one message.
    ///
    /// # Errors
    /// The socket's.
    pub async fn send(&mut self, packet: &[u8]) -> Result<()> {
        match self {
            Self::Udp(socket) => {
                socket.send(packet).await.context("sending a datagram")?;
            }
            Self::Tcp(stream) => {
                let mut frame = u16::try_from(packet.len())?.to_be_bytes().to_vec();
                frame.extend_from_slice(packet);
                stream.write_all(&frame).await.context("sending over TCP")?;
            }
        }
        Ok(())
    }

    /// Receives one message.
    ///
    /// # Errors
    /// None came, or the connection ended.
    pub async fn receive(&mut self) -> Result<Vec<u8>> {
        tokio::time::timeout(PATIENCE, async {
            match self {
                Self::Udp(socket) => {
                    let mut buffer = vec![0; 65_536];
                    let length = socket.recv(&mut buffer).await.context("receiving a datagram")?;
                    buffer.truncate(length);
                    Ok(buffer)
                }
                Self::Tcp(stream) => {
                    let length = stream.read_u16().await.context("the connection ended")?;
                    let mut packet = vec![0; usize::from(length)];
                    stream.read_exact(&mut packet).await.context("the connection ended in mid-message")?;
                    Ok(packet)
                }
            }
        })
        .await
        .with_context(|| format!("no answer within {PATIENCE:?}"))?
    }

    /// Receives and verifies the reply to `query`.
    ///
    /// # Errors
    /// No answer, or one that is not an answer to the question.
    pub async fn reply_to(&mut self, query: &Message) -> Result<Message> {
        let packet = self.receive().await.with_context(|| format!("{:?}", query.questions))?;
        verify_reply(query, &packet).with_context(|| format!("{:?}", query.questions))
    }
}

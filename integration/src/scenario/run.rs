//! Running a script against a real dns-server.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use heimdall_shared::clock::Moment;

use super::check::{Asked, check};
use super::packets::{Packet, QueryForm};
use super::parse::{Condition, Script, Statement, numbered};
use crate::client::{Conversation, question};
use crate::cluster::{Cluster, Part};
use crate::replica::AgentSocket;
use crate::upstream::{Rule, Script as UpstreamScript, Transport, Upstream};
use crate::wire::{Flags, Message, rcode_name};

/// How long a statement `until` may go on. Scripts wait for TTLs of a few seconds.
const UNTIL_LIMIT: Duration = Duration::from_secs(30);

/// Pause between two asks of a statement `until`.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// What the dns-server's agent is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentState {
    /// `--agent-socket off`.
    Off,
    /// A path at which nobody listens.
    Missing,
    /// Alive, and killed in the middle of the script.
    KilledMidway,
}

impl fmt::Display for AgentState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "without an agent",
            Self::Missing => "with its agent's socket missing",
            Self::KilledMidway => "with its agent killed in mid-run",
        })
    }
}

/// Runs a script against a dns-server of its own.
///
/// # Errors
/// Names the line that was not kept, and shows the processes' output.
pub async fn run(script: &Script, state: AgentState) -> Result<()> {
    let upstream = Upstream::start().await?;
    let mut builder = Cluster::builder().replicas(1);
    for (option, value) in &script.server_options {
        builder = builder.dns_option(option, value);
    }
    builder = match state {
        AgentState::Off => builder.standalone(AgentSocket::Off),
        AgentState::Missing => builder.standalone(AgentSocket::Own),
        AgentState::KilledMidway => builder,
    };
    let cluster = builder.start(&upstream).await?;
    let mut run =
        Run { server: cluster.replica(0).layout.dns, upstream: &upstream, begun: Moment::now(), sentinels: 0 };
    let result = run.statements(script, state, cluster).await;
    result.with_context(|| format!("{} {state}", script.name))
}

struct Run<'a> {
    server: SocketAddr,
    upstream: &'a Upstream,
    begun: Moment,
    sentinels: usize,
}

impl Run<'_> {
    async fn statements(&mut self, script: &Script, state: AgentState, mut cluster: Cluster) -> Result<()> {
        let spoken = |statement: &Statement| {
            !matches!(statement, Statement::Upstream { .. } | Statement::Count { .. } | Statement::Received { .. })
        };
        let middle = script.statements.iter().filter(|(_, statement)| spoken(statement)).count().div_ceil(2);
        let mut done = 0;
        for (at, statement) in &script.statements {
            if spoken(statement) {
                if done == middle && state == AgentState::KilledMidway {
                    cluster.kill(0, Part::Agent).await?;
                }
                done += 1;
            }
            if let Err(error) = self.statement(statement).await {
                let output = cluster.replica(0).process(Part::Dns).map(crate::process::Process::shown_output);
                return Err(error.context(format!("line {at}\n{}", output.unwrap_or_default())));
            }
        }
        let process = cluster.replica_mut(0).process_mut(Part::Dns).context("the dns-server must have been started")?;
        ensure!(process.has_ended().is_none(), "the dns-server ended:\n{}", process.shown_output());
        Ok(())
    }

    async fn statement(&mut self, statement: &Statement) -> Result<()> {
        match statement {
            Statement::Upstream { name, qtype, over, packets } => {
                self.upstream.rule(name, qtype, rule(*over, packets.clone()));
                Ok(())
            }
            Statement::Ask { query, reply } => self.ask(query, reply).await.map(drop),
            Statement::Repeat { times, words, reply } => {
                for number in 1..=*times {
                    let words = numbered(words, number);
                    let query = QueryForm::parse(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
                    self.ask(&query, reply).await.with_context(|| words.join(" "))?;
                }
                Ok(())
            }
            Statement::Until { condition, query, reply } => self.until(*condition, query, reply).await,
            Statement::Send { transport, bytes, reply } => {
                let id = bytes.get(..2).map_or(0, |id| u16::from_be_bytes([id[0], id[1]]));
                let query = Message::parse(bytes).ok();
                self.exchange(*transport, query.as_ref(), id, bytes, reply).await.map(drop)
            }
            Statement::Count { question, packets, resolutions } => {
                let journal = self.upstream.journal();
                let count = match question {
                    Some((name, qtype)) => journal.count(name, qtype),
                    None => {
                        let mut total = journal.total();
                        total.packets -= self.sentinels;
                        total.resolutions -= self.sentinels;
                        total
                    }
                };
                ensure!(packets.is_none_or(|wanted| wanted == count.packets), "the upstream had {count:?}");
                ensure!(resolutions.is_none_or(|wanted| wanted == count.resolutions), "the upstream had {count:?}");
                Ok(())
            }
            Statement::Received { name, qtype, details } => self.received(name, qtype, details),
            Statement::Ports { distinct, spread } => self.ports(*distinct, *spread),
        }
    }

    async fn ask(&mut self, form: &QueryForm, reply: &Packet) -> Result<Option<Message>> {
        let (query, bytes) = form.sent();
        self.exchange(form.transport, Some(&query), query.id, &bytes, reply).await
    }

    async fn exchange(
        &mut self,
        transport: Transport,
        query: Option<&Message>,
        id: u16,
        bytes: &[u8],
        expected: &Packet,
    ) -> Result<Option<Message>> {
        let mut conversation = match transport {
            Transport::Udp => Conversation::udp(self.server).await?,
            Transport::Tcp => Conversation::tcp(self.server).await?,
        };
        conversation.send(bytes).await?;
        if expected.silence {
            return self.silence(conversation, transport, id).await.map(|()| None);
        }
        let packet = conversation.receive().await.with_context(|| format!("{query:?}"))?;
        let asked = Asked { query, id, oldest: Moment::now().since(self.begun) };
        check(&asked, expected, &packet).map(Some).with_context(|| format!("{query:?}"))
    }

    /// Nothing may come back. A good query on the same socket is served by the same worker, after what was sent before it:
    /// if the first thing that arrives is its answer, then there was none to the other. No time needs to pass. What became a
    /// miss could be answered later; it shows in a `count`.
    async fn silence(&mut self, mut conversation: Conversation, transport: Transport, id: u16) -> Result<()> {
        self.sentinels += 1;
        let mut query = question(&format!("sentinel-{}.example.", self.sentinels), "A")?;
        query.id = id.wrapping_add(1);
        let sent = conversation.send(&query.encode()).await;
        if transport == Transport::Tcp && (sent.is_err() || Self::closed(&mut conversation).await) {
            // A closed connection is silent too, and its sentinel was never asked.
            self.sentinels -= 1;
            return Ok(());
        }
        sent?;
        conversation.reply_to(&query).await.context("silence was expected")?;
        Ok(())
    }

    async fn closed(conversation: &mut Conversation) -> bool {
        let Conversation::Tcp(stream) = conversation else { return false };
        let mut byte = [0];
        matches!(stream.peek(&mut byte).await, Ok(0) | Err(_))
    }

    async fn until(&mut self, condition: Condition, form: &QueryForm, reply: &Packet) -> Result<()> {
        let asked = &form.message.questions[0];
        let (name, qtype) = (asked.name.to_string(), crate::wire::type_name(asked.qtype));
        let begun = Moment::now();
        let mut last = (0, u32::MAX);
        loop {
            if matches!(condition, Condition::Answered) {
                let (query, bytes) = form.sent();
                let mut conversation = Conversation::udp(self.server).await?;
                conversation.send(&bytes).await?;
                let rcode = conversation.reply_to(&query).await?.rcode();
                if rcode == reply.rcode {
                    return self.ask(form, reply).await.map(drop);
                }
                ensure!(Moment::now().since(begun) < UNTIL_LIMIT, "still {} after {UNTIL_LIMIT:?}", rcode_name(rcode));
                tokio::time::sleep(ASK_AGAIN).await;
                continue;
            }
            let received = self.ask(form, reply).await?.context("silence cannot be asked for again")?;
            let packets = self.upstream.journal().count(&name, &qtype).packets;
            let ttl = received.records().next().map_or(0, |record| record.ttl);
            ensure!(packets != last.0 || ttl <= last.1, "the TTL rose from {} to {ttl}", last.1);
            last = (packets, ttl);
            match condition {
                Condition::Packets(wanted) if packets >= wanted => return Ok(()),
                Condition::Ttl(wanted) if ttl <= wanted => return Ok(()),
                _ if Moment::now().since(begun) > UNTIL_LIMIT => {
                    bail!("asked for {UNTIL_LIMIT:?}: {packets} packets, TTL {ttl}")
                }
                _ => tokio::time::sleep(ASK_AGAIN).await,
            }
        }
    }

    fn received(&self, name: &str, qtype: &str, details: &Packet) -> Result<()> {
        let all = self.upstream.journal().received_for(name, qtype);
        let newest = all.last().with_context(|| format!("the upstream had no query for {name} {qtype}"))?;
        let query = &newest.query;
        let mut rebuilt = Message { id: query.id, questions: query.questions.clone(), ..Message::default() };
        rebuilt.flags = details.flags.unwrap_or(Flags(Flags::RD));
        rebuilt.opt.clone_from(&query.opt);
        ensure!(newest.packet == rebuilt.encode(), "not header, question and OPT alone: {query:?}");
        let opt = query.opt.as_ref().context("the query must offer EDNS")?;
        let wanted = details.opt.clone().unwrap_or_default();
        let size = if wanted.size == 0 { 1232 } else { wanted.size };
        ensure!(
            (opt.size, opt.version, opt.flags, &opt.options) == (size, 0, wanted.flags, &wanted.options),
            "the server's OPT is {opt:?} in place of {wanted:?}"
        );
        Ok(())
    }

    fn ports(&self, distinct: usize, spread: u16) -> Result<()> {
        let all = self.upstream.journal().received();
        let udp = all.iter().filter(|received| received.transport == Transport::Udp);
        let ports: BTreeSet<u16> = udp.map(|received| received.from.port()).collect();
        let (Some(&first), Some(&last)) = (ports.first(), ports.last()) else { bail!("the upstream had no datagram") };
        println!("{} queries from {} ports between {first} and {last}", all.len(), ports.len());
        ensure!(ports.len() >= distinct, "{} distinct ports among {} queries", ports.len(), all.len());
        ensure!(first >= 1024 && last - first >= spread, "ports only between {first} and {last}");
        Ok(())
    }
}

fn rule(over: Option<Transport>, packets: Vec<Packet>) -> Rule {
    Rule::new(move |received| {
        if over.is_some_and(|over| over != received.transport) {
            return match received.transport {
                // What is only scripted for TCP has to send the asker there.
                Transport::Udp => UpstreamScript::send({
                    let mut truncated = received.query.response();
                    truncated.flags.0 |= Flags::TC;
                    truncated.encode()
                }),
                Transport::Tcp => UpstreamScript::default(),
            };
        }
        UpstreamScript(packets.iter().flat_map(|packet| packet.steps(received)).collect())
    })
}

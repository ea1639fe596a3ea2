//! Queries, the upstream's packets and expected replies, in the form in which scripts write them.

use anyhow::{Context, Result, bail};

use super::parse::transport;
use crate::upstream::{Received, Source, Step, Transport};
use crate::wire::{Flags, Message, Name, Opt, Question, Record, class_number, rcode_number, record_hex};

/// A query as a script writes it.
#[derive(Clone, Debug)]
pub(super) struct QueryForm {
    /// How it is sent.
    pub(super) transport: Transport,
    /// What is sent, but for the id where `random_id` is set.
    pub(super) message: Message,
    /// Whether each sending draws an id.
    pub(super) random_id: bool,
    /// Bytes of the OPT's name in place of the root.
    opt_owner: Option<Name>,
    second_opt: bool,
}

impl QueryForm {
    pub(super) fn parse(words: &[&str]) -> Result<Self> {
        let [over, name, qtype, rest @ ..] = words else { bail!("a query needs a transport, a name and a type") };
        let mut form = Self {
            transport: transport(over)?,
            message: Message::query(0, Question::parse(name, qtype)?),
            random_id: true,
            opt_owner: None,
            second_opt: false,
        };
        for word in rest {
            form.word(word).with_context(|| format!("query word {word:?}"))?;
        }
        Ok(form)
    }

    fn word(&mut self, word: &str) -> Result<()> {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let message = &mut self.message;
        match key {
            "class" => message.questions[0].qclass = class_number(value).context("no class")?,
            "id" => (message.id, self.random_id) = (value.parse()?, false),
            "flags" => message.flags.0 = message.flags.0 & 0x780F | Flags::parse(value).context("no flags")?.0,
            "opcode" => message.flags.0 = message.flags.0 & !0x7800 | value.parse::<u16>()? << 11,
            "questions" => {
                let question = message.questions[0].clone();
                message.questions = vec![question; value.parse()?];
            }
            "trailing" => message.trailing = record_hex(value).context("no hex")?,
            "opt-owner" => self.opt_owner = Some(Name::parse(value)?),
            "second-opt" => self.second_opt = true,
            _ => opt_word(message.opt.get_or_insert_default(), key, value)?,
        }
        Ok(())
    }

    /// The message with its id, and its bytes.
    pub(super) fn sent(&self) -> (Message, Vec<u8>) {
        let mut message = self.message.clone();
        if self.random_id {
            message.id = rand::random();
        }
        let mut form = message.clone();
        if let Some(opt) = &message.opt {
            if let Some(owner) = &self.opt_owner {
                form.opt = None;
                form.additional.push(Record { name: owner.clone(), ..opt.to_record() });
            } else if self.second_opt {
                form.additional.push(opt.to_record());
            }
        }
        let bytes = form.encode();
        (message, bytes)
    }
}

fn opt_word(opt: &mut Opt, key: &str, value: &str) -> Result<()> {
    match key {
        "edns" | "size" => opt.size = value.parse()?,
        "do" => opt.flags |= Opt::DO,
        "eflags" => opt.flags |= u16::from_str_radix(value, 16)?,
        "version" => opt.version = value.parse()?,
        "option" => {
            let (code, data) = value.split_once(':').context("an option is CODE:HEX")?;
            opt.options.push((code.parse()?, record_hex(data).context("no hex")?));
        }
        _ => bail!("means nothing here"),
    }
    Ok(())
}

/// A way in which a packet is not the true answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deviation {
    /// `wrong-id`: another id.
    Id,
    /// `wrong-name`: another name in the question.
    Name,
    /// `wrong-type`: another type in the question.
    Type,
    /// `wrong-class`: another class in the question.
    Class,
    /// `no-question`: none at all.
    NoQuestion,
    /// `two-questions`: the right one twice.
    TwoQuestions,
    /// `query`: QR is clear.
    Query,
    /// `wrong-opcode`: opcode 4.
    Opcode,
    /// `other-port`: from another port of the upstream's address.
    Port,
    /// `other-address`: from another address.
    Address,
    /// `empty`: a datagram without a byte.
    Empty,
    /// `short`: 11 bytes.
    Short,
    /// `cut`: one byte less than the whole.
    Cut,
    /// `garbage`: bytes that mean nothing.
    Garbage,
}

impl Deviation {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "wrong-id" => Self::Id,
            "wrong-name" => Self::Name,
            "wrong-type" => Self::Type,
            "wrong-class" => Self::Class,
            "no-question" => Self::NoQuestion,
            "two-questions" => Self::TwoQuestions,
            "query" => Self::Query,
            "wrong-opcode" => Self::Opcode,
            "other-port" => Self::Port,
            "other-address" => Self::Address,
            "empty" => Self::Empty,
            "short" => Self::Short,
            "cut" => Self::Cut,
            "garbage" => Self::Garbage,
            _ => return None,
        })
    }
}

/// A packet of the upstream, or what a reply must be like.
#[derive(Clone, Debug, Default)]
pub(super) struct Packet {
    pub(super) deviation: Option<Deviation>,
    pub(super) times: usize,
    pub(super) flags: Option<Flags>,
    pub(super) rcode: u16,
    /// Records by section.
    pub(super) records: [Vec<Record>; 3],
    pub(super) opt: Option<Opt>,
    pub(super) trailing: Vec<u8>,
    pub(super) at_most: Option<usize>,
    pub(super) silence: bool,
    pub(super) header: bool,
    pub(super) address: bool,
    pub(super) close: bool,
}

impl Packet {
    /// The expected reply. Without details it is the address that follows from the name.
    pub(super) fn parse_one(details: &[(usize, String)]) -> Result<Self> {
        let mut packet = Self { times: 1, address: details.is_empty(), ..Self::default() };
        for (at, detail) in details {
            packet.detail(detail).with_context(|| format!("line {at}: {detail}"))?;
        }
        Ok(packet)
    }

    /// The upstream's packets.
    pub(super) fn parse_all(details: &[(usize, String)]) -> Result<Vec<Self>> {
        let mut packets: Vec<Self> = Vec::new();
        for (at, detail) in details {
            let words: Vec<&str> = detail.split_whitespace().collect();
            match (words.as_slice(), packets.last_mut()) {
                (["packet", words @ ..], _) => {
                    let mut packet = Self { times: 1, ..Self::default() };
                    for word in words {
                        match word.strip_prefix("times=") {
                            Some(times) => packet.times = times.parse()?,
                            None => {
                                packet.deviation =
                                    Some(Deviation::parse(word).with_context(|| format!("line {at}: {word:?}"))?);
                            }
                        }
                    }
                    packets.push(packet);
                }
                (["close"], _) => packets.push(Self { times: 1, close: true, ..Self::default() }),
                (_, Some(packet)) => packet.detail(detail).with_context(|| format!("line {at}: {detail}"))?,
                (_, None) => bail!("line {at}: `packet` comes first"),
            }
        }
        Ok(packets)
    }

    fn detail(&mut self, detail: &str) -> Result<()> {
        let (key, value) = detail.split_once(' ').unwrap_or((detail, ""));
        let value = value.trim();
        match key {
            "flags" => self.flags = Some(Flags::parse(value).context("no flags")?),
            "rcode" => self.rcode = rcode_number(value).context("no rcode")?,
            "answer" => self.records[0].push(Record::parse(value)?),
            "authority" => self.records[1].push(Record::parse(value)?),
            "additional" => self.records[2].push(Record::parse(value)?),
            "opt" => {
                let opt = self.opt.get_or_insert_default();
                for word in value.split_whitespace() {
                    let (key, value) = word.split_once('=').unwrap_or((word, ""));
                    opt_word(opt, key, value)?;
                }
            }
            "trailing" => self.trailing = record_hex(value).context("no hex")?,
            "at-most" => self.at_most = Some(value.parse()?),
            "silence" => self.silence = true,
            "header" => self.header = true,
            "address" => self.address = true,
            _ => bail!("no detail has this form"),
        }
        Ok(())
    }

    /// What the upstream does to send this.
    pub(super) fn steps(&self, received: &Received) -> Vec<Step> {
        if self.close {
            return vec![Step::Close];
        }
        let mut message = received.query.response();
        message.flags.0 |= self.flags.unwrap_or_default().0;
        message = message.with_rcode(self.rcode);
        let [answers, authority, additional] = self.records.clone();
        (message.answers, message.authority, message.additional) = (answers, authority, additional);
        if self.opt.is_some() {
            message.opt.clone_from(&self.opt);
        }
        message.trailing.clone_from(&self.trailing);
        let mut source = Source::Door;
        let question = &mut message.questions[0];
        match self.deviation {
            Some(Deviation::Id) => message.id = message.id.wrapping_add(1),
            Some(Deviation::Name) => question.name = Name::parse("other.example.").expect("a fixed name must parse"),
            Some(Deviation::Type) => question.qtype ^= 0x100,
            Some(Deviation::Class) => question.qclass = 3,
            Some(Deviation::NoQuestion) => message.questions.clear(),
            Some(Deviation::TwoQuestions) => message.questions.push(received.question.clone()),
            Some(Deviation::Query) => message.flags.0 &= !Flags::QR,
            Some(Deviation::Opcode) => message.flags.0 |= 4 << 11,
            Some(Deviation::Port) => source = Source::OtherPort,
            Some(Deviation::Address) => source = Source::OtherAddress,
            _ => {}
        }
        let mut bytes = message.encode_compressed();
        match self.deviation {
            Some(Deviation::Empty) => bytes.clear(),
            Some(Deviation::Short) => bytes.truncate(11),
            Some(Deviation::Cut) => {
                bytes.pop();
            }
            Some(Deviation::Garbage) => bytes.iter_mut().skip(2).for_each(|byte| *byte ^= 0xA5),
            _ => {}
        }
        vec![Step::Send(source, bytes); self.times]
    }
}

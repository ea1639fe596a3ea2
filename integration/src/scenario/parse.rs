//! Reading scripts.

use anyhow::{Context, Result, bail, ensure};

use crate::upstream::Transport;
use crate::wire::record_hex;

use super::packets::{Packet, QueryForm};

/// A whole script.
#[derive(Debug)]
pub struct Script {
    /// What it is called in messages.
    pub(super) name: String,
    /// More options of the dns-server.
    pub(super) server_options: Vec<(String, String)>,
    /// The statements, with their line numbers.
    pub(super) statements: Vec<(usize, Statement)>,
}

/// One statement.
#[derive(Clone, Debug)]
pub(super) enum Statement {
    /// What the upstream does.
    Upstream { name: String, qtype: String, over: Option<Transport>, packets: Vec<Packet> },
    /// One query and its reply.
    Ask { query: QueryForm, reply: Packet },
    /// The same with other numbers.
    Repeat { times: usize, words: Vec<String>, reply: Packet },
    /// Again and again.
    Until { condition: Condition, query: QueryForm, reply: Packet },
    /// Bytes and their reply.
    Send { transport: Transport, bytes: Vec<u8>, reply: Packet },
    /// What the upstream has had.
    Count { question: Option<(String, String)>, packets: Option<usize>, resolutions: Option<usize> },
    /// The newest query that the upstream had.
    Received { name: String, qtype: String, details: Packet },
    /// Source ports.
    Ports { distinct: usize, spread: u16 },
}

/// When to stop asking.
#[derive(Clone, Copy, Debug)]
pub(super) enum Condition {
    /// The upstream has had so many packets for the question.
    Packets(usize),
    /// The reply is the expected one.
    Answered,
    /// The first record's TTL has come down to this.
    Ttl(u32),
}

impl Script {
    /// Reads a script.
    ///
    /// # Errors
    /// Names the first line that means nothing.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let mut script = Self { name: name.to_owned(), server_options: Vec::new(), statements: Vec::new() };
        let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line)).peekable();
        while let Some((at, line)) = lines.next() {
            if is_blank(line) {
                continue;
            }
            let mut details = Vec::new();
            while let Some((at, line)) = lines.next_if(|(_, line)| is_blank(line) || line.starts_with([' ', '\t'])) {
                if !is_blank(line) {
                    details.push((at, line.trim().to_owned()));
                }
            }
            script.statement(at, line, &details).with_context(|| format!("{name}:{at}: {line}"))?;
        }
        Ok(script)
    }

    fn statement(&mut self, at: usize, line: &str, details: &[(usize, String)]) -> Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let statement = match words.as_slice() {
            ["server", option, value] => {
                self.server_options.push(((*option).to_owned(), (*value).to_owned()));
                return Ok(());
            }
            ["upstream", name, qtype, rest @ ..] => Statement::Upstream {
                name: (*name).to_owned(),
                qtype: (*qtype).to_owned(),
                over: match rest {
                    [] => None,
                    [over] => {
                        Some(transport(over.strip_prefix("over=").context("only over=udp or over=tcp fits here")?)?)
                    }
                    _ => bail!("too many words"),
                },
                packets: Packet::parse_all(details)?,
            },
            ["ask", words @ ..] => {
                Statement::Ask { query: QueryForm::parse(words)?, reply: Packet::parse_one(details)? }
            }
            ["repeat", times, "ask", words @ ..] => {
                QueryForm::parse(&numbered(words, 1).iter().map(String::as_str).collect::<Vec<_>>())?;
                Statement::Repeat {
                    times: times.parse()?,
                    words: words.iter().map(|word| (*word).to_owned()).collect(),
                    reply: Packet::parse_one(details)?,
                }
            }
            ["until", condition, "ask", words @ ..] => Statement::Until {
                condition: if *condition == "answered" {
                    Condition::Answered
                } else if let Some(count) = condition.strip_prefix("packets=") {
                    Condition::Packets(count.parse()?)
                } else {
                    Condition::Ttl(
                        condition.strip_prefix("ttl<=").context("until answered, packets=N or ttl<=N")?.parse()?,
                    )
                },
                query: QueryForm::parse(words)?,
                reply: Packet::parse_one(details)?,
            },
            ["send", over, hex @ ..] => {
                let (more, details): (Vec<_>, Vec<_>) =
                    details.iter().cloned().partition(|(_, detail)| detail.starts_with("hex "));
                let hex: String =
                    hex.concat() + &more.iter().map(|(_, detail)| &detail[4..]).collect::<Vec<_>>().concat();
                Statement::Send {
                    transport: transport(over)?,
                    bytes: record_hex(&hex).context("an even number of hex digits must follow")?,
                    reply: Packet::parse_one(&details)?,
                }
            }
            ["count", "all", counts @ ..] => count(None, counts)?,
            ["count", name, qtype, counts @ ..] => count(Some(((*name).to_owned(), (*qtype).to_owned())), counts)?,
            ["received", name, qtype] => Statement::Received {
                name: (*name).to_owned(),
                qtype: (*qtype).to_owned(),
                details: Packet::parse_one(details)?,
            },
            ["ports", distinct, spread] => Statement::Ports {
                distinct: distinct.strip_prefix("distinct=").context("distinct=N comes first")?.parse()?,
                spread: spread.strip_prefix("spread=").context("spread=N comes second")?.parse()?,
            },
            _ => bail!("no statement has this form"),
        };
        self.statements.push((at, statement));
        Ok(())
    }
}

/// The words with `{i}` replaced.
pub(super) fn numbered(words: &[impl AsRef<str>], number: usize) -> Vec<String> {
    words.iter().map(|word| word.as_ref().replace("{i}", &number.to_string())).collect()
}

pub(super) fn transport(word: &str) -> Result<Transport> {
    match word {
        "udp" => Ok(Transport::Udp),
        "tcp" => Ok(Transport::Tcp),
        other => bail!("{other:?} is neither udp nor tcp"),
    }
}

fn count(question: Option<(String, String)>, words: &[&str]) -> Result<Statement> {
    let mut counts = (None, None);
    for word in words {
        match word.split_once('=') {
            Some(("packets", number)) => counts.0 = Some(number.parse()?),
            Some(("resolutions", number)) => counts.1 = Some(number.parse()?),
            _ => bail!("{word:?} is no count"),
        }
    }
    ensure!(counts != (None, None), "a count must count packets or resolutions");
    Ok(Statement::Count { question, packets: counts.0, resolutions: counts.1 })
}

fn is_blank(line: &str) -> bool {
    line.trim().is_empty() || line.trim_start().starts_with('#')
}

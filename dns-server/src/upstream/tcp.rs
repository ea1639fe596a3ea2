//! One dialogue over TCP: a connection of its own, so that no peer's idle close can lose a query.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::address::Transport;
use super::exchange::{Exchange, Finish};
use super::plan::End;
use super::query::{Query, Verdict};

/// Messages that are read from one connection. An upstream has nothing to say on it but the answer.
const MESSAGES_MAX: usize = 8;

/// Asks until the answer comes or the connection breaks; its caller ends the wait.
pub(super) async fn ask(exchange: &Exchange<'_>) -> Finish {
    // A connection is proof of the address, and some upstreams do not copy the case: it is not mixed here.
    let mut query = Query::new(exchange.key, false);
    loop {
        let code = match connection(exchange, &query).await {
            Ok(Verdict::Answer(answer)) => return Finish::Answer(answer),
            Ok(Verdict::Rcode(code)) => code,
            Ok(Verdict::Headless(code)) => code.into(),
            Ok(_) => return exchange.broken("no answer over TCP from", &io::ErrorKind::InvalidData.into()),
            Err(error) => return exchange.broken("TCP failed with", &error),
        };
        if !exchange.is_about_edns(&query, code) {
            return Finish::End(End::Rcode(code));
        }
        query.drop_edns();
    }
}

async fn connection(exchange: &Exchange<'_>, query: &Query<'_>) -> io::Result<Verdict> {
    let mut stream = TcpStream::connect(exchange.server.socket).await?;
    let length = u16::try_from(query.as_bytes().len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // RFC 7766 8: length and message in one write, so that they leave in one segment.
    let message = [&length.to_be_bytes(), query.as_bytes()].concat();
    exchange.count(Transport::Tcp);
    stream.write_all(&message).await?;
    let mut packet = Vec::new();
    for _ in 0..MESSAGES_MAX {
        let length = stream.read_u16().await?;
        packet.resize(usize::from(length), 0);
        stream.read_exact(&mut packet).await?;
        match query.judge(&packet, exchange.limits) {
            Verdict::Stray(stray) => exchange.metrics.stray(stray),
            // TC makes no sense here, and there is no other transport left to try.
            verdict => return Ok(verdict),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "nothing but messages that belong to no query"))
}

//! One dialogue over UDP: a fresh socket, one query, and a wait that nothing but the answer ends.

use std::io;

use tokio::net::UdpSocket;
use tracing::debug;

use super::address::Transport;
use super::exchange::{Exchange, Finish};
use super::plan::{End, Hint};
use super::query::{Query, Verdict};

/// Largest datagram that is read, octets. Upstreams are offered 1,232; some ignore that, and 4,096 was the common offer
/// before. A longer one is cut here, does not parse, and ends nothing.
const DATAGRAM_MAX: usize = 4_096;

/// Errors that one socket may report before it is given up. An error stands for an ICMP message that somebody sent; but
/// a socket that reports nothing else would keep this loop busy.
const ERRORS_MAX: usize = 256;

/// Asks until the answer comes; its caller ends the wait.
pub(super) async fn ask(exchange: &Exchange<'_>) -> Finish {
    let socket = match exchange.open() {
        Ok(socket) => socket,
        Err(error) => return exchange.broken("no UDP socket for", &error),
    };
    let mut query = Query::new(exchange.key, exchange.mix_case);
    if let Err(error) = send(exchange, &socket, &query).await {
        return exchange.broken("could not send to", &error);
    }
    let mut buffer = vec![0; DATAGRAM_MAX];
    let mut errors = 0;
    loop {
        let received = tokio::select! {
            received = socket.recv(&mut buffer) => received,
            () = exchange.again.notified() => {
                if let Err(error) = send(exchange, &socket, &query).await {
                    debug!(server = %exchange.server, %error, "could not send again");
                }
                continue;
            }
        };
        let length = match received {
            Ok(length) => length,
            Err(error) => {
                errors += 1;
                if errors > ERRORS_MAX {
                    return exchange.broken("too many network errors from", &error);
                }
                exchange.metrics.unreachable();
                exchange.hint(Hint::Unreachable);
                continue;
            }
        };
        match query.judge(&buffer[..length], exchange.limits) {
            Verdict::Answer(answer) => return Finish::Answer(answer),
            Verdict::Truncated => return Finish::End(End::Truncated),
            Verdict::Rcode(code) if exchange.is_about_edns(&query, code) => {
                query.drop_edns();
                if let Err(error) = send(exchange, &socket, &query).await {
                    debug!(server = %exchange.server, %error, "could not ask without EDNS");
                }
            }
            Verdict::Rcode(code) => return Finish::End(End::Rcode(code)),
            Verdict::Headless(code) => {
                exchange.metrics.headless();
                if exchange.is_about_edns(&query, code.into()) {
                    query.drop_edns();
                    if let Err(error) = send(exchange, &socket, &query).await {
                        debug!(server = %exchange.server, %error, "could not ask without EDNS");
                    }
                }
            }
            Verdict::WrongCase => {
                exchange.metrics.wrong_case();
                exchange.hint(Hint::WrongCase);
            }
            Verdict::Stray(stray) => exchange.metrics.stray(stray),
        }
    }
}

/// Sends the query. An ICMP error about an earlier packet may surface here instead of the result: then it is sent again.
async fn send(exchange: &Exchange<'_>, socket: &UdpSocket, query: &Query<'_>) -> io::Result<()> {
    exchange.count(Transport::Udp);
    match socket.send(query.as_bytes()).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            exchange.metrics.unreachable();
            exchange.hint(Hint::Unreachable);
            socket.send(query.as_bytes()).await.map(drop)
        }
        result => result.map(drop),
    }
}

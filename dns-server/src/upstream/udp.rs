//! One dialogue over UDP: a fresh socket, one query, and a wait that nothing but the answer ends.

use std::cell::RefCell;
use std::io;
use std::net::UdpSocket;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
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

thread_local! {
    /// Where datagrams are read to. Each is judged before anything else happens on its thread, so one room is enough for all
    /// dialogues, and none has to be found and cleared for each.
    static DATAGRAM: RefCell<[u8; DATAGRAM_MAX]> = const { RefCell::new([0; DATAGRAM_MAX]) };
}

/// Asks until the answer comes; its caller ends the wait.
pub(super) async fn ask(exchange: &Exchange<'_>) -> Finish {
    let socket = match exchange.open() {
        Ok(socket) => socket,
        Err(error) => return exchange.broken("no UDP socket for", &error),
    };
    let mut query = Query::new(exchange.key, exchange.mix_case);
    if let Err(error) = send(exchange, socket.get_ref(), &query) {
        return exchange.broken("could not send to", &error);
    }
    let mut errors = 0;
    loop {
        let received = tokio::select! {
            biased;
            () = exchange.again() => {
                if let Err(error) = send(exchange, socket.get_ref(), &query) {
                    debug!(server = %exchange.server, %error, "could not send again");
                }
                continue;
            }
            received = receive(exchange, &socket, &query) => received,
        };
        let verdict = match received {
            Ok(verdict) => verdict,
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
        match verdict {
            Verdict::Answer(answer) => return Finish::Answer(answer),
            Verdict::Truncated => return Finish::End(End::Truncated),
            Verdict::Rcode(code) if exchange.is_about_edns(&query, code) => {
                query.drop_edns();
                if let Err(error) = send(exchange, socket.get_ref(), &query) {
                    debug!(server = %exchange.server, %error, "could not ask without EDNS");
                }
            }
            Verdict::Rcode(code) => return Finish::End(End::Rcode(code)),
            Verdict::Headless(code) => {
                exchange.metrics.headless();
                if exchange.is_about_edns(&query, code.into()) {
                    query.drop_edns();
                    if let Err(error) = send(exchange, socket.get_ref(), &query) {
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

/// What the next datagram is to the query. An ICMP error is an error.
async fn receive(exchange: &Exchange<'_>, socket: &AsyncFd<UdpSocket>, query: &Query<'_>) -> io::Result<Verdict> {
    let read = |socket: &UdpSocket| {
        DATAGRAM.with_borrow_mut(|datagram| {
            let length = socket.recv(datagram)?;
            Ok(query.judge(&datagram[..length], exchange.limits))
        })
    };
    socket.async_io(Interest::READABLE | Interest::ERROR, read).await
}

/// Sends the query. An ICMP error about an earlier packet may surface here instead of the result: then it is sent again.
fn send(exchange: &Exchange<'_>, socket: &UdpSocket, query: &Query<'_>) -> io::Result<()> {
    exchange.count(Transport::Udp);
    match socket.send(query.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            exchange.metrics.unreachable();
            exchange.hint(Hint::Unreachable);
            socket.send(query.as_bytes()).map(drop)
        }
        result => result.map(drop),
    }
}

//! A request under way at a peer.

use std::sync::Arc;

use heimdall_shared::link::{Message, Pending, Replies, Reply};

use crate::links::Peer;

/// A request whose replies are waited for. Dropped before its end, it is cancelled there, and a grant that was on its way
/// goes back.
#[derive(Debug)]
pub(crate) struct Request {
    peer: Arc<Peer>,
    pending: Pending,
}

impl Request {
    /// Sends the message that `message` makes of the request's id. `None` when too many are under way, or the link ended.
    pub(crate) fn send(peer: &Arc<Peer>, message: impl FnOnce(u64) -> Message) -> Option<Self> {
        let pending = peer.requests.open()?;
        let message = message(pending.id);
        if peer.link.push(message).is_err() {
            // Nothing was sent, so there is nothing to cancel.
            peer.requests.close(pending.id);
            return None;
        }
        Some(Self { peer: Arc::clone(peer), pending })
    }

    /// One that was sent to `peer` already.
    pub(crate) fn under_way(peer: &Arc<Peer>, pending: Pending) -> Self {
        Self { peer: Arc::clone(peer), pending }
    }

    /// Where the replies arrive; it ends when the link does.
    pub(crate) const fn replies(&mut self) -> &mut Replies {
        &mut self.pending.replies
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if self.peer.requests.close(self.pending.id) {
            let _ = self.peer.link.push(Message::Cancel { id: self.pending.id });
        }
        // From here on the link's reader gives late grants back; this is for one that it had delivered already.
        while let Some(late) = self.pending.replies.try_recv() {
            if let Reply::Granted { token, .. } = late {
                let _ = self.peer.link.push(Message::Release { token });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Mutex;

    use futures_util::StreamExt as _;
    use heimdall_shared::clock::Moment;
    use heimdall_shared::link::{Beats, Delivered, Link, REQUESTS_IN_FLIGHT, Requests, Side};
    use heimdall_shared::token::Token;

    use super::*;

    fn peer() -> Arc<Peer> {
        Arc::new(Peer {
            id: 1,
            member: "b".into(),
            incarnation: 1,
            address: "127.0.0.1:1".parse().unwrap(),
            advertised: None,
            dialled: true,
            link: Link::new(Moment::now(), &Beats::default()),
            requests: Requests::new(Side::Dialler),
            since: Moment::now(),
            breaker: Mutex::default(),
        })
    }

    fn token() -> Token {
        Token { granter: "b".into(), incarnation: 1, counter: 1 }
    }

    fn send(peer: &Arc<Peer>) -> Option<Request> {
        Request::send(peer, |_| Message::Leaving)
    }

    /// What was sent over the peer's link, which is closed by it.
    async fn sent(peer: &Peer, link: Arc<Link>) -> Vec<Message> {
        peer.link.close();
        let far = Link::new(Moment::now(), &Beats::default());
        let batches: Vec<_> = link.outgoing().collect().await;
        batches.into_iter().flat_map(|batch| far.receive(batch, Moment::now())).collect()
    }

    #[tokio::test]
    async fn a_request_given_up_is_cancelled_and_a_grant_that_came_unread_goes_back() {
        let peer = peer();
        let granted = Reply::Granted { token: token(), takeover: false, ask_first: None };
        let waiting = send(&peer).unwrap();
        let answered = send(&peer).unwrap();
        assert!(matches!(peer.requests.deliver(answered.pending.id, granted.clone()), Delivered::Heard));
        let id = waiting.pending.id;
        drop((waiting, answered));
        let late = peer.requests.deliver(id, granted.clone());
        assert!(matches!(late, Delivered::Unwanted(reply) if reply == granted), "the reader learns that nobody waits");
        let sent = sent(&peer, Arc::clone(&peer.link)).await;
        assert_eq!(sent[2..], [Message::Cancel { id }, Message::Release { token: token() }]);
    }

    #[tokio::test]
    async fn a_request_that_could_not_be_sent_takes_no_place() {
        let peer = peer();
        peer.link.close();
        assert!(send(&peer).is_none());
        assert_eq!(peer.requests.in_flight(), 0);
        let full = self::peer();
        let under_way: Vec<_> = (0..REQUESTS_IN_FLIGHT).map(|_| send(&full).unwrap()).collect();
        assert!(send(&full).is_none());
        drop(under_way);
        assert_eq!(full.requests.in_flight(), 0);
    }
}

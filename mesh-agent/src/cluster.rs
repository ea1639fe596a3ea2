//! The one task that owns membership: events in, immutable views out; it also starts and stops the dialling of members.

use std::collections::HashMap;
use std::sync::Arc;

use heimdall_shared::clock::Moment;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::granter;
use crate::links::Links;
use crate::membership::{Changes, Event, Membership, State, View};

/// Events that may wait for the task: a few for each link that comes or goes.
pub const EVENTS: usize = 256;

/// What the task works with.
pub struct Cluster<D> {
    /// The state.
    pub membership: Membership,
    /// What its first step brought, before the task ran.
    pub first: Changes,
    /// What happens.
    pub events: mpsc::Receiver<Event>,
    /// The beats of the links.
    pub beats: watch::Receiver<Instant>,
    /// Where views are published.
    pub view: watch::Sender<Arc<View>>,
    /// Who is connected.
    pub links: Arc<Links>,
    /// Hears which incarnations are gone.
    pub granter: granter::Handle,
    /// Starts dialling a member (by name and address) until the token is cancelled.
    pub dial: D,
}

impl<D> Cluster<D>
where
    D: Fn(Arc<str>, Arc<str>, CancellationToken) + Send,
{
    /// Runs until `stop` is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        // The links are looked at for signs of life at each beat: a silent member is noticed at most that much late.
        let mut looked = Moment::now();
        let mut dialling: HashMap<Arc<str>, CancellationToken> = HashMap::new();
        let first = std::mem::take(&mut self.first);
        self.apply(first, &mut dialling, &stop).await;
        loop {
            let changes = tokio::select! {
                () = stop.cancelled() => break,
                event = self.events.recv() => match event {
                    Some(event) => self.membership.step(event, Moment::now()),
                    None => break,
                },
                Ok(()) = self.beats.changed() => {
                    let now = Moment::now();
                    let changes = self.look(looked, now);
                    looked = now;
                    changes
                }
            };
            self.apply(changes, &mut dialling, &stop).await;
        }
    }

    /// Tells membership which links were heard since the last look, and lets time pass.
    fn look(&mut self, last: Moment, now: Moment) -> Changes {
        for (member, peer) in &self.links.connected().peers {
            if peer.link.heard() >= last {
                self.membership.heard(member, peer.id, peer.link.heard().min(now));
            }
        }
        self.membership.pass(now)
    }

    async fn apply(
        &self,
        changes: Changes,
        dialling: &mut HashMap<Arc<str>, CancellationToken>,
        stop: &CancellationToken,
    ) {
        for (member, state) in &changes.states {
            match state {
                State::Up => info!(%member, "member answers"),
                State::Suspected => info!(%member, "member is suspected: nothing was heard of it for a while"),
                state => warn!(%member, ?state, "member is skipped"),
            }
        }
        if changes.left_out > 0 {
            warn!(members = changes.left_out, "more members were discovered than the ring has room for");
        }
        if let Some(view) = changes.view {
            if changes.ring_changed {
                info!(
                    members = view.members().len() + 1,
                    digest = format!("{:016x}", view.ring().digest()),
                    "members changed"
                );
            }
            self.view.send_replace(view);
        }
        for (member, incarnation) in changes.gone {
            self.granter.must_hear(granter::Event::MemberGone { member, incarnation }).await;
        }
        for member in changes.removed {
            if let Some(dialler) = dialling.remove(&member) {
                dialler.cancel();
            }
            if let Some(peer) = self.links.peer(&member) {
                peer.link.close();
            }
        }
        for member in changes.discovered {
            let token = stop.child_token();
            if let Some(old) = dialling.insert(Arc::clone(&member.name), token.clone()) {
                old.cancel();
            }
            (self.dial)(member.name, member.address, token);
        }
    }
}

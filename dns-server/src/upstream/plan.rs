//! The order of attempts within one resolution: whom to ask next, and when nothing is left. Pure.

use heimdall_shared::dns::rr::rcode;

use super::address::Transport;

/// Times that one resolution asks one upstream over one transport: "a resolver MUST NOT retry more than" that before it
/// counts as a failure (RFC 9520 3.1).
const TRIES_PER_SERVER: u8 = 3;

/// Tries of one resolution in all: the attempts of 1.2 s that fit into a budget of 4 s, and twice as many when upstreams
/// fail at once. It also bounds what two forwarders that point at each other can make of one query.
const TRIES_MAX: u8 = 6;

/// Dialogues of one resolution: each takes a try at least.
pub(super) const DIALOGUES_MAX: usize = TRIES_MAX as usize;

/// One upstream over one transport, in one resolution.
#[derive(Debug)]
pub(super) struct Dialogue {
    pub(super) server: usize,
    pub(super) transport: Transport,
    tries: u8,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It may still answer.
    Open,
    Over(End),
}

/// How a dialogue ended without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The answer is too large for a datagram.
    Truncated,
    /// The upstream answered with this return code.
    Rcode(u16),
    /// No socket, no connection, or a broken one: nothing was heard from the upstream.
    Broken,
}

/// What an open dialogue suspects. It goes on: whoever can forge packets could have sent what it saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hint {
    /// The network says that the upstream cannot be reached.
    Unreachable,
    /// An answer in the wrong case: over TCP the case does not matter.
    WrongCase,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Begin the dialogue with this number: the plan knows its upstream and transport.
    Open(usize),
    /// Send the query of this dialogue once more.
    Again(usize),
    /// Nothing; what is under way may still end well.
    Wait,
    /// Nothing is left: see [`Plan::failure`].
    GiveUp,
}

/// Why a resolution has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Every attempt ended in an upstream's own SERVFAIL.
    ServFail,
    /// Every upstream gave this other return code, or one of them did and the others the like.
    Rcode(u16),
    /// At least one upstream was not heard.
    NoAnswer,
}

const SERVFAIL: u16 = rcode::SERVFAIL as u16;

impl End {
    /// Whether the upstream said by itself that it failed.
    pub(super) const fn is_servfail(self) -> bool {
        matches!(self, Self::Rcode(SERVFAIL))
    }
}

/// The attempts of one resolution.
#[derive(Debug)]
pub(super) struct Plan {
    /// Upstreams in the order of preference, with the transport of their first query.
    servers: Vec<(usize, Transport)>,
    dialogues: Vec<Dialogue>,
    /// The dialogue that was tried last.
    latest: usize,
    tries: u8,
}

impl Plan {
    /// A plan over `servers` in this order.
    pub(super) fn new(servers: Vec<(usize, Transport)>) -> Self {
        Self { servers, dialogues: Vec::new(), latest: 0, tries: 0 }
    }

    /// The dialogue with this number.
    pub(super) fn dialogue(&self, number: usize) -> &Dialogue {
        &self.dialogues[number]
    }

    /// The upstream whose attempt is under way, if it has not ended by itself.
    pub(super) fn awaited(&self) -> Option<usize> {
        self.dialogues.get(self.latest).filter(|dialogue| dialogue.state == State::Open).map(|dialogue| dialogue.server)
    }

    /// The time of an attempt is over, or none has begun yet: the next one.
    pub(super) fn next(&mut self) -> Step {
        let turn = self
            .servers
            .iter()
            .copied()
            .filter(|&(server, transport)| self.may_try(server, transport))
            .min_by_key(|&(server, transport)| self.tries_of(server, transport));
        match turn {
            None => self.wait_or_give_up(),
            Some((server, transport)) => match self.open_dialogue(server, transport) {
                Some(number) => self.again(number),
                None => self.open(server, transport),
            },
        }
    }

    /// Dialogue `number` ended without an answer.
    pub(super) fn ended(&mut self, number: usize, end: End) -> Step {
        self.dialogues[number].state = State::Over(end);
        let Dialogue { server, transport, .. } = self.dialogues[number];
        if end == End::Truncated && transport == Transport::Udp {
            // RFC 7766 5: a truncated answer is asked for over TCP, of the upstream that has it.
            if self.room() && self.tries_of(server, Transport::Tcp) == 0 {
                return self.open(server, Transport::Tcp);
            }
        }
        self.untried()
    }

    /// Dialogue `number` suspects something and goes on.
    pub(super) fn hinted(&mut self, number: usize, hint: Hint) -> Step {
        let server = self.dialogues[number].server;
        match hint {
            Hint::WrongCase if self.room() && self.tries_of(server, Transport::Tcp) == 0 => {
                self.open(server, Transport::Tcp)
            }
            Hint::WrongCase => Step::Wait,
            Hint::Unreachable => match self.untried() {
                Step::GiveUp => Step::Wait,
                step => step,
            },
        }
    }

    /// What all attempts together say, when none brought an answer.
    pub(super) fn failure(&self) -> Failure {
        let mut rcodes = self.dialogues.iter().filter_map(|dialogue| match dialogue.state {
            State::Over(End::Rcode(code)) => Some(Some(code)),
            // Its TCP dialogue speaks for it, if there is one.
            State::Over(End::Truncated) if self.tries_of(dialogue.server, Transport::Tcp) > 0 => None,
            _ => Some(None),
        });
        let Some(Some(first)) = rcodes.next() else { return Failure::NoAnswer };
        for code in rcodes {
            let Some(code) = code else { return Failure::NoAnswer };
            if (code == SERVFAIL) != (first == SERVFAIL) {
                return Failure::NoAnswer;
            }
        }
        if first == SERVFAIL { Failure::ServFail } else { Failure::Rcode(first) }
    }

    /// Begins a dialogue with an upstream that was not asked yet; else what is under way goes on.
    fn untried(&mut self) -> Step {
        let fresh =
            self.servers.iter().copied().find(|&(server, _)| !self.dialogues.iter().any(|d| d.server == server));
        match fresh {
            Some((server, transport)) if self.room() => self.open(server, transport),
            _ => self.wait_or_give_up(),
        }
    }

    /// Nothing can be begun at once.
    fn wait_or_give_up(&self) -> Step {
        let open = self.dialogues.iter().any(|dialogue| dialogue.state == State::Open);
        let later = self.servers.iter().any(|&(server, transport)| self.may_try(server, transport));
        if open || later { Step::Wait } else { Step::GiveUp }
    }

    fn open(&mut self, server: usize, transport: Transport) -> Step {
        self.tries += 1;
        let tries = self.tries_of(server, transport) + 1;
        self.latest = self.dialogues.len();
        self.dialogues.push(Dialogue { server, transport, tries, state: State::Open });
        Step::Open(self.latest)
    }

    fn again(&mut self, number: usize) -> Step {
        self.tries += 1;
        self.latest = number;
        self.dialogues[number].tries += 1;
        Step::Again(number)
    }

    const fn room(&self) -> bool {
        self.tries < TRIES_MAX
    }

    /// Whether another try may bring what the earlier ones did not: never after an upstream has spoken, and never on top
    /// of a connection that is still open.
    fn may_try(&self, server: usize, transport: Transport) -> bool {
        let spoke = self.dialogues.iter().any(|dialogue| {
            let ended = matches!(dialogue.state, State::Over(End::Rcode(_) | End::Truncated));
            dialogue.server == server
                && (ended || (dialogue.transport == Transport::Tcp && dialogue.state == State::Open))
        });
        !spoke && self.room() && self.tries_of(server, transport) < TRIES_PER_SERVER
    }

    fn open_dialogue(&self, server: usize, transport: Transport) -> Option<usize> {
        self.dialogues.iter().position(|d| d.server == server && d.transport == transport && d.state == State::Open)
    }

    fn tries_of(&self, server: usize, transport: Transport) -> u8 {
        let with = |dialogue: &&Dialogue| dialogue.server == server && dialogue.transport == transport;
        self.dialogues.iter().filter(with).map(|dialogue| dialogue.tries).max().unwrap_or(0)
    }
}

impl Dialogue {
    /// Whether its query was sent once, so that it is known which packet an answer answers.
    pub(super) const fn was_tried_once(&self) -> bool {
        self.tries == 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REFUSED: u16 = 5;

    fn plan(servers: usize) -> Plan {
        Plan::new((0..servers).map(|server| (server, Transport::Udp)).collect())
    }

    /// A step in words: what it asks of which upstream.
    fn said(plan: &mut Plan, happens: impl FnOnce(&mut Plan) -> Step) -> String {
        match happens(plan) {
            Step::Open(number) => {
                let dialogue = plan.dialogue(number);
                format!("{} {}", dialogue.transport.as_str(), dialogue.server)
            }
            Step::Again(number) => format!("again {}", plan.dialogue(number).server),
            Step::Wait => "wait".to_owned(),
            Step::GiveUp => "give up".to_owned(),
        }
    }

    #[test]
    fn a_silent_upstream_is_asked_three_times_over_one_socket() {
        let mut plan = plan(1);
        assert_eq!(said(&mut plan, |plan| plan.next()), "udp 0");
        assert_eq!(plan.next(), Step::Again(0));
        assert_eq!(plan.next(), Step::Again(0));
        assert_eq!(plan.next(), Step::Wait);
        assert_eq!(plan.failure(), Failure::NoAnswer);
    }

    #[test]
    fn silence_goes_round_the_upstreams() {
        let mut plan = plan(2);
        let steps: Vec<String> = (0..4).map(|_| said(&mut plan, Plan::next)).collect();
        assert_eq!(steps, ["udp 0", "udp 1", "again 0", "again 1"]);
    }

    #[test]
    fn a_servfail_goes_to_the_next_upstream_at_once_and_is_shared_when_all_say_it() {
        let mut plan = plan(2);
        plan.next();
        assert_eq!(said(&mut plan, |plan| plan.ended(0, End::Rcode(SERVFAIL))), "udp 1");
        assert_eq!(plan.ended(1, End::Rcode(SERVFAIL)), Step::GiveUp);
        assert_eq!(plan.failure(), Failure::ServFail);
    }

    #[test]
    fn one_silent_upstream_makes_a_failure_local() {
        let mut plan = plan(2);
        plan.next();
        assert_eq!(said(&mut plan, |plan| plan.next()), "udp 1");
        assert_eq!(plan.ended(1, End::Rcode(SERVFAIL)), Step::Wait);
        assert_eq!(plan.failure(), Failure::NoAnswer);
    }

    #[test]
    fn a_refusal_of_all_is_relayed_and_a_mixture_with_servfail_is_local() {
        let mut all = plan(1);
        all.next();
        assert_eq!(all.ended(0, End::Rcode(REFUSED)), Step::GiveUp);
        assert_eq!(all.failure(), Failure::Rcode(REFUSED));

        let mut mixed = plan(2);
        mixed.next();
        mixed.ended(0, End::Rcode(REFUSED));
        mixed.ended(1, End::Rcode(SERVFAIL));
        assert_eq!(mixed.failure(), Failure::NoAnswer);
    }

    #[test]
    fn a_truncated_answer_is_fetched_from_the_same_upstream_over_tcp() {
        let mut plan = plan(2);
        plan.next();
        assert_eq!(said(&mut plan, |plan| plan.ended(0, End::Truncated)), "tcp 0");
        assert_eq!(said(&mut plan, |plan| plan.ended(1, End::Rcode(SERVFAIL))), "udp 1");
        assert_eq!(plan.ended(2, End::Rcode(SERVFAIL)), Step::GiveUp);
        assert_eq!(plan.failure(), Failure::ServFail);
    }

    #[test]
    fn a_truncated_answer_without_tcp_is_a_local_failure() {
        let mut plan = plan(1);
        plan.next();
        plan.ended(0, End::Truncated);
        assert_eq!(plan.ended(1, End::Broken), Step::GiveUp);
        assert_eq!(plan.failure(), Failure::NoAnswer);
    }

    #[test]
    fn an_unreachable_upstream_keeps_its_chance_while_the_next_one_is_asked() {
        let mut plan = plan(2);
        plan.next();
        assert_eq!(said(&mut plan, |plan| plan.hinted(0, Hint::Unreachable)), "udp 1");
        assert_eq!(plan.hinted(0, Hint::Unreachable), Step::Wait);
        assert_eq!(plan.hinted(1, Hint::Unreachable), Step::Wait);
        assert_eq!(plan.next(), Step::Again(0));
    }

    #[test]
    fn a_wrong_case_asks_the_same_upstream_over_tcp_once() {
        let mut plan = plan(1);
        plan.next();
        assert_eq!(said(&mut plan, |plan| plan.hinted(0, Hint::WrongCase)), "tcp 0");
        assert_eq!(plan.hinted(0, Hint::WrongCase), Step::Wait);
    }

    #[test]
    fn a_socket_that_cannot_be_opened_is_tried_again_when_the_attempt_s_time_is_over() {
        let mut plan = plan(1);
        plan.next();
        assert_eq!(plan.ended(0, End::Broken), Step::Wait);
        assert_eq!(said(&mut plan, |plan| plan.next()), "udp 0");
        assert_eq!(plan.ended(1, End::Broken), Step::Wait);
        assert_eq!(said(&mut plan, |plan| plan.next()), "udp 0");
        assert_eq!(plan.ended(2, End::Broken), Step::GiveUp);
    }

    #[test]
    fn a_tcp_upstream_is_not_asked_twice_at_the_same_time() {
        let mut plan = Plan::new(vec![(0, Transport::Tcp)]);
        assert_eq!(said(&mut plan, |plan| plan.next()), "tcp 0");
        assert_eq!(plan.next(), Step::Wait);
    }

    #[derive(Clone, Debug)]
    enum Happens {
        Time,
        Ends(usize, End),
        Hints(usize, Hint),
    }

    fn happens() -> impl Strategy<Value = Happens> {
        let end =
            prop_oneof![Just(End::Truncated), Just(End::Broken), Just(End::Rcode(SERVFAIL)), Just(End::Rcode(REFUSED))];
        let hint = prop_oneof![Just(Hint::Unreachable), Just(Hint::WrongCase)];
        prop_oneof![
            Just(Happens::Time),
            (0usize..8, end).prop_map(|(number, end)| Happens::Ends(number, end)),
            (0usize..8, hint).prop_map(|(number, hint)| Happens::Hints(number, hint)),
        ]
    }

    proptest! {
        #[test]
        fn tries_are_bounded_and_giving_up_means_that_nothing_is_under_way(
            servers in 1usize..5,
            events in prop::collection::vec(happens(), 0..60),
        ) {
            let mut plan = plan(servers);
            let mut sent = vec![[0u8; 2]; servers];
            let mut steps = vec![plan.next()];
            for event in events {
                let open = |number: &usize| plan.dialogues.get(*number).is_some_and(|d| d.state == State::Open);
                steps.push(match event {
                    Happens::Time => plan.next(),
                    Happens::Ends(number, end) if open(&number) => plan.ended(number, end),
                    Happens::Hints(number, hint) if open(&number) => plan.hinted(number, hint),
                    _ => continue,
                });
                if steps.last() == Some(&Step::GiveUp) {
                    prop_assert!(plan.dialogues.iter().all(|dialogue| dialogue.state != State::Open));
                }
            }
            for step in steps {
                let (server, transport) = match step {
                    Step::Open(number) | Step::Again(number) => {
                        (plan.dialogue(number).server, plan.dialogue(number).transport)
                    }
                    Step::Wait | Step::GiveUp => continue,
                };
                sent[server][usize::from(transport == Transport::Tcp)] += 1;
            }
            prop_assert!(sent.iter().flatten().all(|&tries| tries <= TRIES_PER_SERVER));
            prop_assert!(sent.iter().flatten().sum::<u8>() <= TRIES_MAX);
        }
    }
}

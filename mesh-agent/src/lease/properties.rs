//! What must hold for the lease table in every order of events, checked from outside: the test knows who asked, what was
//! answered, and which words should count.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Flags;
use heimdall_shared::link::FailureKind;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits {
    lease: Duration::from_millis(500),
    tick: Duration::from_millis(25),
    confirm: Duration::from_millis(80),
    waiters_per_key: 4,
    waiters_per_link: 3,
    leases_per_peer: 2,
    leases_total: 4,
    failures_total: 2,
    result_kept: Duration::from_millis(100),
    results_total: 2,
};

/// One event. Indices choose among what there is, modulo its number.
#[derive(Clone, Debug)]
enum Op {
    Ask { key: u8, who: Who, join: bool },
    Wait { token: usize, who: Who },
    Tick { token: usize, by: By, struggling: bool },
    Publish { token: usize, by: By },
    PublishFreely { key: u8, who: Who },
    Fail { token: usize, by: By, kind: FailureKind },
    Release { token: usize, by: By },
    Cancel { request: usize },
    LinkClosed { who: Who },
    StreamGone { who: Who },
    MemberGone { who: Who },
    Pass { millis: u64 },
}

/// One of three members, two incarnations of each, two streams of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Who {
    member: u8,
    incarnation: u8,
    stream: u8,
}

/// Who shows a token.
#[derive(Clone, Copy, Debug)]
enum By {
    ItsHolder,
    Another,
}

fn ops() -> impl Strategy<Value = Op> {
    let who = || (0..3u8, 0..2u8, 0..2u8).prop_map(|(member, incarnation, stream)| Who { member, incarnation, stream });
    let by = || prop_oneof![9 => Just(By::ItsHolder), 1 => Just(By::Another)];
    let kind = prop_oneof![1 => Just(FailureKind::Shared), 3 => Just(FailureKind::Local)];
    // The newest tokens are the interesting ones; older ones come late.
    let token = || prop_oneof![6 => 0..3usize, 1 => 0..30usize];
    prop_oneof![
        12 => (0..3u8, who(), prop::bool::weighted(0.85)).prop_map(|(key, who, join)| Op::Ask { key, who, join }),
        2 => (token(), who()).prop_map(|(token, who)| Op::Wait { token, who }),
        5 => (token(), by(), any::<bool>()).prop_map(|(token, by, struggling)| Op::Tick { token, by, struggling }),
        2 => (token(), by()).prop_map(|(token, by)| Op::Publish { token, by }),
        1 => (0..3u8, who()).prop_map(|(key, who)| Op::PublishFreely { key, who }),
        2 => (token(), by(), kind).prop_map(|(token, by, kind)| Op::Fail { token, by, kind }),
        1 => (token(), by()).prop_map(|(token, by)| Op::Release { token, by }),
        2 => (0..20usize).prop_map(|request| Op::Cancel { request }),
        1 => who().prop_map(|who| Op::LinkClosed { who }),
        1 => who().prop_map(|who| Op::StreamGone { who }),
        1 => who().prop_map(|who| Op::MemberGone { who }),
        5 => (0..200u64).prop_map(|millis| Op::Pass { millis }),
    ]
}

impl Who {
    fn name(self) -> Arc<str> {
        format!("member-{}", self.member).into()
    }

    fn holder(self) -> Holder {
        Holder { member: self.name(), incarnation: self.incarnation.into() }
    }

    fn link(self) -> LinkId {
        u64::from(self.member) * 10 + u64::from(self.incarnation)
    }
}

/// A request that was made.
#[derive(Debug)]
struct Request {
    who: Who,
    key: u8,
    joins: bool,
    /// It waits for a lease that it met before.
    names_a_lease: bool,
    state: Waiting,
    told: Option<Token>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// Nothing was answered yet, which no event may leave so.
    Unanswered,
    Held,
    Over,
}

struct World {
    table: Table,
    now: Moment,
    out: Vec<Action>,
    requests: BTreeMap<(LinkId, u64), Request>,
    next_request: u64,
    /// All tokens ever granted, newest first.
    tokens: Vec<(Token, u8, Who)>,
    /// Leases whose holder knows that somebody waits, or ticks anyway.
    informed: BTreeSet<u64>,
    /// Members whose local failure for a key counts.
    failed: BTreeSet<(u8, u8)>,
    /// Until when at least a failure of the key must be served.
    fails_until: BTreeMap<u8, Moment>,
}

impl World {
    fn new() -> Self {
        Self {
            table: Table::new("granter".into(), 7, LIMITS),
            now: Moment::from_nanos(1_000_000_000),
            out: Vec::new(),
            requests: BTreeMap::new(),
            next_request: 0,
            tokens: Vec::new(),
            informed: BTreeSet::new(),
            failed: BTreeSet::new(),
            fails_until: BTreeMap::new(),
        }
    }

    fn act(&mut self, op: &Op) {
        let before = self.live();
        let now = self.now;
        match *op {
            Op::Ask { key, who, join } => {
                let asker = self.new_request(key, who, join);
                if join {
                    self.table.ask(&wire(key), asker, now, &mut self.out);
                } else {
                    self.table.ask_without_joining(&wire(key), asker, now, &mut self.out);
                }
            }
            Op::Wait { token, who } => {
                let Some((token, key, _)) = self.pick(token) else { return };
                let asker = self.new_request(key, who, true);
                if let Some(request) = self.requests.get_mut(&(asker.link, asker.request)) {
                    request.names_a_lease = true;
                }
                self.table.wait(&wire(key), &token, asker, now, &mut self.out);
            }
            Op::Tick { token, by, struggling } => {
                let Some((token, _, holder)) = self.pick(token) else { return };
                let tokens = [token.clone()];
                let (working, struggles): (&[Token], &[Token]) =
                    if struggling { (&[], &tokens) } else { (&tokens, &[]) };
                self.table.tick(&by.holder(holder), working, struggles, now, &mut self.out);
                if matches!(by, By::ItsHolder) {
                    self.informed.insert(token.counter);
                }
            }
            Op::Publish { token, by } => {
                let Some((token, key, holder)) = self.pick(token) else { return };
                let from = by.holder(holder);
                let holds = self.table.holds(&wire(key), &token, &from, now);
                let published = self.table.publish(&wire(key), Some(&token), &from, &entry(), now, &mut self.out);
                assert_eq!(published.token_live, holds, "what decides about the store must be what ends the lease");
                assert_eq!(holds, matches!(by, By::ItsHolder) && before.contains_key(&token.counter));
                self.fails_until.remove(&key);
                if holds {
                    assert_eq!(self.table.leases_of(&wire(key)), [], "a result ends the key's leases");
                }
            }
            Op::PublishFreely { key, who } => {
                self.table.publish(&wire(key), None, &who.holder(), &entry(), now, &mut self.out);
                self.fails_until.remove(&key);
                assert!(before.keys().eq(self.live().keys()), "an ordinary write ends no lease");
            }
            Op::Fail { token, by, kind } => {
                let Some((token, key, holder)) = self.pick(token) else { return };
                let has_room = self.table.sizes().failures < LIMITS.failures_total;
                let claim = self.table.fail(&token, kind, &by.holder(holder), now, &mut self.out);
                self.check_claim(claim, &token, by, &before);
                if claim == Claim::Live && kind == FailureKind::Local {
                    self.failed.insert((key, holder.member));
                }
                if claim == Claim::Live && kind == FailureKind::Shared && has_room {
                    self.fails_until.insert(key, now + Duration::from_secs(1));
                }
            }
            Op::Release { token, by } => {
                let Some((token, _, holder)) = self.pick(token) else { return };
                let claim = self.table.release(&token, &by.holder(holder), now, &mut self.out);
                self.check_claim(claim, &token, by, &before);
            }
            Op::Cancel { request } => {
                let Some(&(link, id)) = self.requests.keys().rev().nth(request) else { return };
                self.table.cancel(link, id, now, &mut self.out);
                self.free(|at, _| *at == (link, id));
            }
            Op::LinkClosed { who } => {
                self.table.link_closed(who.link(), now, &mut self.out);
                self.free(|(link, _), _| *link == who.link());
            }
            Op::StreamGone { who } => {
                self.free(|_, request| request.who == who);
                self.table.stream_gone(&who.name(), who.incarnation.into(), who.stream.into(), now, &mut self.out);
                assert!(
                    !self
                        .live()
                        .values()
                        .any(|lease| lease.holder == who.holder() && lease.stream == u64::from(who.stream))
                );
            }
            Op::MemberGone { who } => {
                self.free(|_, request| request.who.holder() == who.holder());
                self.table.member_gone(&who.name(), who.incarnation.into(), now, &mut self.out);
                assert!(!self.live().values().any(|lease| lease.holder == who.holder()));
            }
            Op::Pass { millis } => self.now = now + Duration::from_millis(millis),
        }
        self.table.expire(self.now, &mut self.out);
        self.take_answers(op, &before);
        self.check();
    }

    fn pick(&self, token: usize) -> Option<(Token, u8, Who)> {
        self.tokens.get(token).or(self.tokens.last()).cloned()
    }

    fn new_request(&mut self, key: u8, who: Who, joins: bool) -> Asker {
        self.next_request += 1;
        let request = self.next_request;
        let state = Waiting::Unanswered;
        self.requests
            .insert((who.link(), request), Request { who, key, joins, names_a_lease: false, state, told: None });
        Asker {
            link: who.link(),
            request,
            member: who.name(),
            incarnation: who.incarnation.into(),
            stream: who.stream.into(),
            trace: None,
        }
    }

    /// These requests can or need be answered no more.
    fn free(&mut self, is_freed: impl Fn(&(LinkId, u64), &Request) -> bool) {
        for (at, request) in &mut self.requests {
            if is_freed(at, request) {
                request.state = Waiting::Over;
            }
        }
    }

    fn live(&self) -> BTreeMap<u64, LeaseInfo> {
        self.table.leases().map(|lease| (lease.token.counter, lease)).collect()
    }

    fn check_claim(&self, claim: Claim, token: &Token, by: By, before: &BTreeMap<u64, LeaseInfo>) {
        let expected = match (before.contains_key(&token.counter), by) {
            (false, _) => Claim::Ended,
            (true, By::ItsHolder) => Claim::Live,
            (true, By::Another) => Claim::NotTheirs,
        };
        assert_eq!(claim, expected);
        assert_eq!(self.live().contains_key(&token.counter), claim == Claim::NotTheirs);
    }

    fn take_answers(&mut self, op: &Op, before: &BTreeMap<u64, LeaseInfo>) {
        for action in std::mem::take(&mut self.out) {
            match action {
                Action::Reply { link, request, reply } => self.take_reply(link, request, reply, before),
                Action::Watch { holder, stream, token } => {
                    let (_, _, granted_to) = self
                        .tokens
                        .iter()
                        .find(|(known, ..)| *known == token)
                        .expect("only a granted lease is watched");
                    assert_eq!((holder, stream), (granted_to.holder(), granted_to.stream.into()));
                    self.informed.insert(token.counter);
                }
                Action::Tick { link, tokens } => {
                    assert!(matches!(op, Op::Tick { by: By::ItsHolder, .. }), "only a holder's word is a sign of work");
                    for token in tokens {
                        let is_waited_for = self
                            .requests
                            .iter()
                            .any(|((over, _), request)| *over == link && request.told.as_ref() == Some(&token));
                        assert!(is_waited_for, "a tick must name what somebody there waits for");
                    }
                }
            }
        }
    }

    fn take_reply(&mut self, link: LinkId, id: u64, reply: Reply, before: &BTreeMap<u64, LeaseInfo>) {
        let request = self.requests.get_mut(&(link, id)).expect("only requests are answered");
        let key = request.key;
        let is_first = request.state == Waiting::Unanswered;
        assert_ne!(request.state, Waiting::Over, "no request is answered twice, none after it was freed");
        request.state = Waiting::Over;
        let must_fail = self.fails_until.get(&key).is_some_and(|until| *until > self.now);
        // Who names a lease that ended with an answer gets that one, whatever became of the next lease.
        let has_own_result = request.names_a_lease && matches!(reply, Reply::Entry(_));
        if is_first && must_fail && !has_own_result {
            assert!(matches!(reply, Reply::Failure { .. }), "a remembered failure is served, not {reply:?}");
        }
        match reply {
            Reply::Held { token, .. } => {
                assert!(is_first, "who waits is told so once");
                if request.joins {
                    request.state = Waiting::Held;
                    request.told = Some(token);
                }
            }
            Reply::Granted { token, takeover, .. } => {
                let who = request.who;
                assert!(!self.tokens.iter().any(|(known, ..)| *known == token), "no token names two leases");
                if takeover {
                    self.informed.insert(token.counter);
                    assert!(!self.failed.contains(&(key, who.member)), "no lease goes to a replica that failed");
                } else if !before
                    .values()
                    .any(|lease| lease.key == wire(key) && self.table.leases_of(&wire(key)).contains(lease))
                {
                    self.failed.retain(|(of, _)| *of != key);
                }
                self.tokens.insert(0, (token, key, who));
            }
            Reply::Failure { remaining } => {
                assert!(remaining <= Duration::from_secs(5));
                if must_fail {
                    assert!(self.now + remaining >= self.fails_until[&key]);
                }
            }
            Reply::Entry(given) => assert_eq!(given, entry()),
            Reply::Proceed if is_first => {
                let who = request.who;
                assert!(self.is_bound_reached(key, who), "nobody is sent on without a lease for nothing");
            }
            Reply::Proceed => {}
            Reply::Working
            | Reply::Elsewhere(_)
            | Reply::Stored { .. }
            | Reply::Refused(_)
            | Reply::Stale(_)
            | Reply::Checked { .. } => {
                panic!("the table never answers {reply:?}")
            }
        }
    }

    fn is_bound_reached(&self, key: u8, who: Who) -> bool {
        let live = self.live();
        let held = live.values().filter(|lease| lease.holder.member == who.name()).count();
        let waiting = || self.requests.iter().filter(|(_, request)| request.state == Waiting::Held);
        held == LIMITS.leases_per_peer
            || live.len() == LIMITS.leases_total
            || waiting().filter(|(_, request)| request.key == key).count() == LIMITS.waiters_per_key
            || waiting().filter(|((link, _), _)| *link == who.link()).count() == LIMITS.waiters_per_link
    }

    fn check(&mut self) {
        let live = self.live();
        let sizes = self.table.sizes();
        let waiting: Vec<_> = self.requests.iter().filter(|(_, request)| request.state == Waiting::Held).collect();
        assert!(
            self.requests.values().all(|request| request.state != Waiting::Unanswered),
            "every request is answered"
        );
        assert_eq!(sizes.waiters, waiting.len(), "who waits is neither forgotten nor kept for nothing");
        for key in 0..3 {
            let leases = self.table.leases_of(&wire(key));
            let waiters = waiting.iter().filter(|(_, request)| request.key == key).count();
            match leases.as_slice() {
                [] => {
                    assert_eq!(waiters, 0, "nobody waits for nobody");
                    assert!(!self.table.is_leased(&wire(key)));
                    self.failed.retain(|(of, _)| *of != key);
                }
                [_] => {}
                [first, second] => {
                    assert!(first.struggling || second.struggling, "two leases only while one struggles");
                    assert_ne!(first.holder.member, second.holder.member);
                }
                more => panic!("too many leases: {more:?}"),
            }
            assert!(leases.iter().all(|lease| lease.waiters == waiters));
            assert!(waiters <= LIMITS.waiters_per_key);
            if waiters > 0 {
                assert!(
                    leases.iter().all(|lease| self.informed.contains(&lease.token.counter)),
                    "holders know who waits"
                );
            }
        }
        for lease in live.values() {
            assert!(lease.granted <= self.now && lease.expires > self.now, "an expired lease is no lease");
            assert!(lease.expires <= lease.granted + LIMITS.lease);
        }
        for member in 0..3u8 {
            let name: Arc<str> = format!("member-{member}").into();
            assert!(live.values().filter(|lease| lease.holder.member == name).count() <= LIMITS.leases_per_peer);
        }
        for link in waiting.iter().map(|((link, _), _)| link) {
            assert!(waiting.iter().filter(|((other, _), _)| other == link).count() <= LIMITS.waiters_per_link);
        }
        assert!(sizes.leases <= LIMITS.leases_total && sizes.leases == live.len());
        assert!(sizes.failures <= LIMITS.failures_total && sizes.results <= LIMITS.results_total);
        assert!(self.table.next_deadline().is_none_or(|due| due > self.now), "what is due was done");
        assert!(sizes == Sizes::default() || self.table.next_deadline().is_some(), "what is there ends by itself");
    }

    /// Lets time pass with nothing else happening.
    fn run_dry(&mut self) {
        let mut rounds = 0;
        while let Some(due) = self.table.next_deadline() {
            self.act(&Op::Pass { millis: due.since(self.now).as_nanos().div_ceil(1_000_000) as u64 });
            rounds += 1;
            assert!(rounds < 1_000, "the table must come to rest");
        }
        assert_eq!(self.table.sizes(), Sizes::default());
        assert!(
            self.requests.values().all(|request| request.state == Waiting::Over),
            "everybody was answered or freed"
        );
    }
}

impl By {
    fn holder(self, holder: Who) -> Holder {
        match self {
            Self::ItsHolder => holder.holder(),
            Self::Another => Holder { incarnation: 99, ..holder.holder() },
        }
    }
}

fn wire(key: u8) -> Key {
    Key::new(&[1, b'a' + key, 0], 1, 1, Flags::default(), "").expect("a name of one letter must be a key")
}

fn entry() -> Entry {
    let lifetime = Duration::from_secs(60);
    Entry { packet: Bytes::from_static(b"answer"), born: Moment::from_nanos(1), lifetime, since: 0 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn in_every_order_of_events_leases_are_few_and_nobody_is_forgotten(ops in vec(ops(), 1..120)) {
        let mut world = World::new();
        for op in &ops {
            world.act(op);
        }
        world.run_dry();
    }
}

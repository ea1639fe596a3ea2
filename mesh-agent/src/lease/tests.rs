#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Flags;
use heimdall_shared::link::FailureKind;

use super::*;

const HELD_FOR: Duration = Duration::from_secs(5);

/// A table with an own clock, and what it answered.
struct Script {
    table: Table,
    now: Moment,
    last: Vec<Action>,
}

impl Script {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        Self {
            table: Table::new("granter".into(), 42, limits),
            now: Moment::from_nanos(1_000_000_000),
            last: Vec::new(),
        }
    }

    fn ask(&mut self, asker: &Asker) -> &[Action] {
        self.ask_for("example", asker)
    }

    fn ask_for(&mut self, name: &str, asker: &Asker) -> &[Action] {
        self.last.clear();
        self.table.ask(&key(name), asker.clone(), self.now, &mut self.last);
        &self.last
    }

    fn acquire(&mut self, asker: &Asker) -> &[Action] {
        self.last.clear();
        self.table.ask_without_joining(&key("example"), asker.clone(), self.now, &mut self.last);
        &self.last
    }

    fn wait(&mut self, token: &Token, asker: &Asker) -> &[Action] {
        self.last.clear();
        self.table.wait(&key("example"), token, asker.clone(), self.now, &mut self.last);
        &self.last
    }

    fn tick(&mut self, from: &Asker, working: &[&Token], struggling: &[&Token]) -> &[Action] {
        self.last.clear();
        let working: Vec<Token> = working.iter().copied().cloned().collect();
        let struggling: Vec<Token> = struggling.iter().copied().cloned().collect();
        self.table.tick(&holder(from), &working, &struggling, self.now, &mut self.last);
        &self.last
    }

    fn publish(&mut self, from: &Asker, token: Option<&Token>) -> Published {
        self.last.clear();
        self.table.publish(&key("example"), token, &holder(from), &entry(60), self.now, &mut self.last)
    }

    fn fail(&mut self, from: &Asker, token: &Token, kind: FailureKind) -> Claim {
        self.last.clear();
        self.table.fail(token, kind, &holder(from), self.now, &mut self.last)
    }

    fn release(&mut self, from: &Asker, token: &Token) -> Claim {
        self.last.clear();
        self.table.release(token, &holder(from), self.now, &mut self.last)
    }

    fn pass(&mut self, millis: u64) -> &[Action] {
        self.now = self.now + Duration::from_millis(millis);
        self.last.clear();
        self.table.expire(self.now, &mut self.last);
        &self.last
    }

    /// The token that `asker` was granted by the last call.
    fn granted(&self, asker: &Asker) -> Token {
        let granted = self.last.iter().find_map(|action| match action {
            Action::Reply { link, request, reply: Reply::Granted { token, .. } } if to(asker) == (*link, *request) => {
                Some(token.clone())
            }
            _ => None,
        });
        granted.unwrap_or_else(|| panic!("{asker:?} got no lease: {:?}", self.last))
    }

    fn held_by(&self) -> Vec<String> {
        self.table.leases_of(&key("example")).iter().map(|lease| lease.holder.member.to_string()).collect()
    }

    fn is_empty(&self) -> bool {
        self.table.sizes() == Sizes::default()
    }
}

fn key(name: &str) -> Key {
    let wire = [&[name.len() as u8], name.as_bytes(), &[0]].concat();
    Key::new(&wire, 1, 1, Flags::default(), "").unwrap()
}

fn entry(lifetime: u64) -> Entry {
    Entry {
        packet: Bytes::from_static(b"packet"),
        born: Moment::from_nanos(1),
        lifetime: Duration::from_secs(lifetime),
        since: 0,
    }
}

/// One request of a member's dns-server; each member has one link, named by its first letter.
fn asker(member: &str, request: u64) -> Asker {
    Asker { link: link(member), request, member: member.into(), incarnation: 1, stream: 10, trace: None }
}

fn link(member: &str) -> LinkId {
    member.bytes().next().unwrap().into()
}

fn to(asker: &Asker) -> (LinkId, u64) {
    (asker.link, asker.request)
}

fn holder(asker: &Asker) -> Holder {
    Holder { member: Arc::clone(&asker.member), incarnation: asker.incarnation }
}

fn reply(asker: &Asker, reply: Reply) -> Action {
    Action::Reply { link: asker.link, request: asker.request, reply }
}

fn granted(asker: &Asker, token: &Token, takeover: bool) -> Action {
    reply(asker, Reply::Granted { token: token.clone(), takeover, ask_first: None })
}

fn held(asker: &Asker, token: &Token) -> Action {
    reply(asker, Reply::Held { token: token.clone(), holder: None })
}

fn watch(holder_: &Asker, token: &Token) -> Action {
    Action::Watch { holder: holder(holder_), stream: holder_.stream, token: token.clone() }
}

#[test]
fn the_first_who_asks_gets_the_lease_and_the_next_waits_for_it() {
    let mut script = Script::new();
    let (alice, bob, carol) = (asker("alice", 1), asker("bob", 1), asker("carol", 1));
    script.ask(&alice);
    let token = script.granted(&alice);
    assert_eq!(script.last, [granted(&alice, &token, false)]);
    assert_eq!(script.ask(&bob), [held(&bob, &token), watch(&alice, &token)]);
    // The holder knows already.
    assert_eq!(script.ask(&carol), [held(&carol, &token)]);
    assert_eq!(script.table.sizes(), Sizes { leases: 1, waiters: 2, ..Sizes::default() });
}

#[test]
fn those_who_wait_are_told_the_holder_s_span() {
    let mut script = Script::new();
    let trace = TraceContext { trace_id: [1; 16], span_id: [2; 8], sampled: true };
    let alice = Asker { trace: Some(trace), ..asker("alice", 1) };
    script.ask(&alice);
    let token = script.granted(&alice);
    let bob = asker("bob", 1);
    assert_eq!(script.ask(&bob)[0], reply(&bob, Reply::Held { token, holder: Some(trace) }));
}

#[test]
fn a_publish_with_the_token_wakes_everybody_and_leaves_nothing_behind() {
    let mut script = Script::new();
    let (alice, bob, carol) = (asker("alice", 1), asker("bob", 1), asker("carol", 1));
    script.ask(&alice);
    let token = script.granted(&alice);
    script.ask(&bob);
    script.ask(&carol);
    assert!(script.table.holds(&key("example"), &token, &holder(&alice), script.now));
    assert_eq!(script.publish(&alice, Some(&token)), Published { token_live: true, woken: 2 });
    assert_eq!(script.last, [reply(&bob, Reply::Entry(entry(60))), reply(&carol, Reply::Entry(entry(60)))]);
    assert!(script.is_empty());
    assert_eq!(script.table.next_deadline(), None);
}

#[test]
fn an_answer_that_may_not_be_stored_still_reaches_those_who_wait() {
    let mut script = Script::new();
    let (alice, bob) = (asker("alice", 1), asker("bob", 1));
    script.ask(&alice);
    let token = script.granted(&alice);
    script.ask(&bob);
    script.last.clear();
    script.table.publish(&key("example"), Some(&token), &holder(&alice), &entry(0), script.now, &mut script.last);
    assert_eq!(script.last, [reply(&bob, Reply::Entry(entry(0)))]);
}

#[test]
fn a_publish_without_a_lease_wakes_those_who_wait_and_leaves_the_lease() {
    let mut script = Script::new();
    let (alice, bob, carol) = (asker("alice", 1), asker("bob", 1), asker("carol", 1));
    script.ask(&alice);
    let token = script.granted(&alice);
    script.ask(&bob);
    assert_eq!(script.publish(&carol, None), Published { token_live: false, woken: 1 });
    assert_eq!(script.held_by(), ["alice"]);
    assert!(script.publish(&alice, Some(&token)).token_live);
}

#[test]
fn a_token_is_worth_nothing_in_other_hands_or_for_another_key() {
    let mut script = Script::new();
    let (alice, bob) = (asker("alice", 1), asker("bob", 1));
    script.ask(&alice);
    let token = script.granted(&alice);
    let reborn = Asker { incarnation: 2, ..alice.clone() };
    for thief in [&bob, &reborn] {
        assert!(!script.table.holds(&key("example"), &token, &holder(thief), script.now));
        assert!(!script.publish(thief, Some(&token)).token_live);
        assert_eq!(script.fail(thief, &token, FailureKind::Shared), Claim::NotTheirs);
        assert_eq!(script.release(thief, &token), Claim::NotTheirs);
        assert_eq!(script.tick(thief, &[&token], &[&token]), []);
    }
    assert_eq!(script.table.stats().refused, 10);
    assert!(!script.table.holds(&key("other"), &token, &holder(&alice), script.now));
    assert_eq!(script.held_by(), ["alice"]);
    assert_eq!(script.table.sizes().failures, 0);
}

#[test]
fn tokens_of_other_granters_and_incarnations_are_unknown() {
    let mut script = Script::new();
    let alice = asker("alice", 1);
    script.ask(&alice);
    let token = script.granted(&alice);
    for foreign in [Token { granter: "other".into(), ..token.clone() }, Token { incarnation: 41, ..token.clone() }] {
        assert!(!script.publish(&alice, Some(&foreign)).token_live);
        assert_eq!(script.release(&alice, &foreign), Claim::Ended);
    }
    assert_eq!(script.held_by(), ["alice"]);
}

#[test]
fn a_lease_that_times_out_goes_to_who_waits_longest_and_its_late_publish_is_an_ordinary_write() {
    let mut script = Script::new();
    let (alice, bob, carol) = (asker("alice", 1), asker("bob", 1), asker("carol", 1));
    script.ask(&alice);
    let first = script.granted(&alice);
    script.pass(10);
    script.ask(&bob);
    script.ask(&carol);
    assert_eq!(script.pass(4_989), []);
    script.pass(1);
    let second = script.granted(&bob);
    assert_eq!(script.last, [granted(&bob, &second, true)]);
    assert_eq!(script.publish(&alice, Some(&first)), Published { token_live: false, woken: 1 });
    assert_eq!(script.held_by(), ["bob"]);
    assert_eq!((script.table.stats().timeouts, script.table.stats().takeovers), (1, 1));
}

#[test]
fn a_takeover_that_nobody_takes_up_goes_on_to_the_next() {
    let mut script = Script::new();
    let (alice, bob, carol) = (asker("alice", 1), asker("bob", 1), asker("carol", 1));
    script.ask(&alice);
    let first = script.granted(&alice);
    script.ask(&bob);
    script.ask(&carol);
    assert_eq!(script.release(&alice, &first), Claim::Live);
    let second = script.granted(&bob);
    assert_eq!(script.pass(79), []);
    script.pass(1);
    let third = script.granted(&carol);
    assert_eq!(script.publish(&bob, Some(&second)), Published { token_live: false, woken: 0 });
    script.tick(&carol, &[&third], &[]);
    assert_eq!(script.pass(1_000), []);
    assert!(script.publish(&carol, Some(&third)).token_live);
    assert!(script.is_empty());
}

#[test]
fn a_takeover_that_nobody_else_wants_waits_for_the_next_who_asks() {
    let mut script = Script::new();
    let (alice, bob, carol) = (asker("alice", 1), asker("bob", 1), asker("carol", 1));
    script.ask(&alice);
    let first = script.granted(&alice);
    script.ask(&bob);
    script.release(&alice, &first);
    let second = script.granted(&bob);
    assert_eq!(script.pass(500), []);
    assert_eq!(script.held_by(), ["bob"]);
    script.ask(&carol);
    let third = script.granted(&carol);
    assert_eq!(script.last, [granted(&carol, &third, false)]);
    assert_eq!(script.release(&bob, &second), Claim::Ended);
}

#[test]
fn a_takeover_that_ticks_late_keeps_the_lease_if_nobody_came_for_it() {
    let mut script = Script::new();
    let (alice, bob, carol) = (asker("alice", 1), asker("bob", 1), asker("carol", 1));
    script.ask(&alice);
    let first = script.granted(&alice);
    script.ask(&bob);
    script.release(&alice, &first);
    let second = script.granted(&bob);
    script.pass(500);
    script.tick(&bob, &[&second], &[]);
    assert_eq!(script.ask(&carol), [held(&carol, &second)]);
}

#[test]
fn signs_of_work_are_passed_on_as_they_come_and_not_otherwise() {
    let mut script = Script::new();
    let (alice, bob, carol) = (asker("alice", 1), asker("bob", 1), asker("carol", 1));
    script.ask(&alice);
    let token = script.granted(&alice);
    assert_eq!(script.tick(&alice, &[&token], &[]), [], "nobody waits");
    script.pass(25);
    script.ask(&bob);
    script.ask(&carol);
    let tick = |asker: &Asker| Action::Tick { link: asker.link, tokens: vec![token.clone()] };
    assert_eq!(script.tick(&alice, &[&token], &[]), [tick(&bob), tick(&carol)]);
    assert_eq!(script.pass(1_000), [], "a silent holder is silence for those who wait");
    assert_eq!(script.tick(&alice, &[&token], &[]), [tick(&bob), tick(&carol)]);
}

#[test]
fn a_holder_that_ticks_too_often_does_not_make_the_granter_send_more() {
    let mut script = Script::new();
    let (alice, bob) = (asker("alice", 1), asker("bob", 1));
    script.ask(&alice);
    let token = script.granted(&alice);
    script.ask(&bob);
    let mut sent = 0;
    for _ in 0..1_000 {
        sent += script.tick(&alice, &[&token, &token], &[&token]).len();
        script.pass(1);
    }
    assert!((1..=80).contains(&sent), "{sent} ticks in a second");
}

#[test]
fn after_a_takeover_those_who_wait_still_hear_of_the_lease_that_they_were_told() {
    let mut script = Script::new();
    let (alice, bob, carol, dave) = (asker("alice", 1), asker("bob", 1), asker("carol", 1), asker("dave", 1));
    script.ask(&alice);
    let first = script.granted(&alice);
    script.ask(&bob);
    script.ask(&carol);
    script.release(&alice, &first);
    let second = script.granted(&bob);
    script.ask(&dave);
    let heard = script.tick(&bob, &[&second], &[]).to_vec();
    let tick = |asker: &Asker, token: &Token| Action::Tick { link: asker.link, tokens: vec![token.clone()] };
    assert_eq!(heard, [tick(&carol, &first), tick(&dave, &second)]);
}

#[test]
fn a_holder_that_stopped_ticking_is_told_again_that_somebody_waits() {
    let mut script = Script::new();
    let (alice, bob, carol, dave) = (asker("alice", 1), asker("bob", 1), asker("carol", 1), asker("dave", 1));
    script.ask(&alice);
    let token = script.granted(&alice);
    script.ask(&bob);
    script.tick(&alice, &[&token], &[]);
    script.pass(40);
    assert_eq!(script.ask(&carol), [held(&carol, &token)]);
    script.pass(40);
    assert_eq!(script.ask(&dave), [held(&dave, &token), watch(&alice, &token)]);
}

#[test]
fn a_shared_failure_is_everybody_s_for_a_second() {
    let mut script = Script::new();
    let (alice, bob, carol) = (asker("alice", 1), asker("bob", 1), asker("carol", 1));
    script.ask(&alice);
    let token = script.granted(&alice);
    script.ask(&bob);
    assert_eq!(script.fail(&alice, &token, FailureKind::Shared), Claim::Live);
    let failure = |millis| Reply::Failure { remaining: Duration::from_millis(millis) };
    assert_eq!(script.last, [reply(&bob, failure(1_000))]);
    script.pass(400);
    assert_eq!(script.ask(&carol), [reply(&carol, failure(600))]);
    script.pass(600);
    script.ask(&carol);
    script.granted(&carol);
}

#[test]
fn a_key_that_keeps_failing_is_remembered_longer_each_time_up_to_five_seconds() {
    let mut script = Script::new();
    let alice = asker("alice", 1);
    let mut spans = Vec::new();
    for _ in 0..5 {
        script.ask(&alice);
        let token = script.granted(&alice);
        script.fail(&alice, &token, FailureKind::Shared);
        let [Action::Reply { reply: Reply::Failure { remaining }, .. }] = script.ask(&alice) else {
            panic!("{:?}", script.last)
        };
        spans.push(remaining.as_secs());
        let remaining = remaining.as_millis() as u64;
        script.pass(remaining);
    }
    assert_eq!(spans, [1, 2, 4, 5, 5]);
    script.pass(5_000);
    assert!(script.is_empty());
}

#[test]
fn an_answer_ends_the_memory_of_failures() {
    let mut script = Script::new();
    let alice = asker("alice", 1);
    script.ask(&alice);
    let token = script.granted(&alice);
    script.fail(&alice, &token, FailureKind::Shared);
    assert_eq!(script.publish(&alice, None), Published { token_live: false, woken: 0 });
    assert!(script.is_empty());
    script.ask(&alice);
    script.granted(&alice);
}

#[test]
fn a_local_failure_passes_the_lease_to_a_replica_that_has_not_failed() {
    let mut script = Script::new();
    let (alice, again, bob) = (asker("alice", 1), asker("alice", 2), asker("bob", 1));
    script.ask(&alice);
    let first = script.granted(&alice);
    script.ask(&again);
    script.ask(&bob);
    script.fail(&alice, &first, FailureKind::Local);
    let second = script.granted(&bob);
    assert_eq!(script.last, [granted(&bob, &second, true)]);
    // Whoever failed may still have the result of the other.
    assert_eq!(script.publish(&bob, Some(&second)), Published { token_live: true, woken: 1 });
    assert_eq!(script.last, [reply(&again, Reply::Entry(entry(60)))]);
    assert_eq!(script.table.sizes().failures, 0, "nobody else is told of a local failure");
}

#[test]
fn when_every_replica_that_waits_has_failed_all_go_on_by_themselves() {
    let mut script = Script::new();
    let (alice, again, bob, also) = (asker("alice", 1), asker("alice", 2), asker("bob", 1), asker("bob", 2));
    script.ask(&alice);
    let first = script.granted(&alice);
    for waiter in [&again, &bob, &also] {
        script.ask(waiter);
    }
    script.fail(&alice, &first, FailureKind::Local);
    let second = script.granted(&bob);
    script.fail(&bob, &second, FailureKind::Local);
    assert_eq!(script.last, [reply(&again, Reply::Proceed), reply(&also, Reply::Proceed)]);
    assert!(script.is_empty());
    assert_eq!(script.table.stats().proceed_none_left, 2);
}

#[test]
fn a_struggling_holder_gets_one_rival_on_another_replica() {
    let mut script = Script::new();
    let (alice, again, bob, carol) = (asker("alice", 1), asker("alice", 2), asker("bob", 1), asker("carol", 1));
    script.ask(&alice);
    let first = script.granted(&alice);
    for waiter in [&again, &bob, &carol] {
        script.ask(waiter);
    }
    script.tick(&alice, &[], &[&first]);
    let second = script.granted(&bob);
    assert_eq!(script.last.last(), Some(&granted(&bob, &second, true)));
    script.tick(&bob, &[&second], &[]);
    script.pass(25);
    script.tick(&alice, &[&first], &[&first]);
    assert_eq!(script.held_by(), ["alice", "bob"]);
    // Either result is everybody's.
    assert_eq!(script.publish(&bob, Some(&second)), Published { token_live: true, woken: 2 });
    assert!(!script.publish(&alice, Some(&first)).token_live, "a result after the result is an ordinary write");
    assert!(script.is_empty());
}

#[test]
fn a_struggling_holder_without_rivals_gets_the_next_who_asks_as_one() {
    let mut script = Script::new();
    let (alice, again, bob, carol) = (asker("alice", 1), asker("alice", 2), asker("bob", 1), asker("carol", 1));
    script.ask(&alice);
    let first = script.granted(&alice);
    script.tick(&alice, &[], &[&first]);
    assert_eq!(script.ask(&again)[0], held(&again, &first), "the same replica has the same trouble");
    script.ask(&bob);
    let second = script.granted(&bob);
    assert_eq!(script.ask(&carol)[0], held(&carol, &second));
    assert_eq!(script.table.stats().second_leases, 1);
}

#[test]
fn when_a_rival_fails_another_replica_tries_beside_the_struggling_one() {
    let mut script = Script::new();
    let (alice, bob, carol) = (asker("alice", 1), asker("bob", 1), asker("carol", 1));
    script.ask(&alice);
    let first = script.granted(&alice);
    script.ask(&bob);
    script.ask(&carol);
    script.tick(&alice, &[], &[&first]);
    let second = script.granted(&bob);
    script.fail(&bob, &second, FailureKind::Local);
    script.granted(&carol);
    assert_eq!(script.held_by(), ["alice", "carol"]);
    // The first one's failure leaves the other at work.
    script.fail(&alice, &first, FailureKind::Local);
    assert_eq!(script.last, []);
    assert_eq!(script.held_by(), ["carol"]);
}

#[test]
fn leases_end_with_their_holder_s_last_link() {
    let mut script = Script::new();
    let (alice, bob) = (asker("alice", 1), asker("bob", 1));
    script.ask(&alice);
    let first = script.granted(&alice);
    script.ask(&bob);
    script.last.clear();
    script.table.member_gone(&alice.member, 2, script.now, &mut script.last);
    assert_eq!(script.held_by(), ["alice"], "that was another incarnation");
    script.table.member_gone(&alice.member, 1, script.now, &mut script.last);
    script.granted(&bob);
    assert_eq!(script.release(&alice, &first), Claim::Ended);
    assert_eq!(script.table.stats().orphaned, 1);
}

#[test]
fn leases_end_with_their_stream_and_are_not_passed_on_within_it() {
    let mut script = Script::new();
    let alice = asker("alice", 1);
    let same_stream = asker("alice", 2);
    let other_stream = Asker { stream: 11, ..asker("alice", 3) };
    script.ask(&alice);
    script.ask(&same_stream);
    script.ask(&other_stream);
    script.last.clear();
    script.table.stream_gone(&alice.member, 1, 10, script.now, &mut script.last);
    script.granted(&other_stream);
    assert_eq!(script.last.len(), 1);
    assert_eq!(script.table.sizes(), Sizes { leases: 1, ..Sizes::default() });
}

#[test]
fn who_waited_over_a_closed_link_is_freed_and_leases_stay() {
    let mut script = Script::new();
    let (alice, bob, carol) = (asker("alice", 1), asker("bob", 1), asker("carol", 1));
    script.ask(&alice);
    let token = script.granted(&alice);
    script.ask(&bob);
    script.ask(&carol);
    script.last.clear();
    for closed in [link("bob"), link("alice"), 999] {
        script.table.link_closed(closed, script.now, &mut script.last);
    }
    assert_eq!(script.publish(&alice, Some(&token)), Published { token_live: true, woken: 1 });
    assert_eq!(script.last, [reply(&carol, Reply::Entry(entry(60)))]);
}

#[test]
fn a_cancel_frees_a_waiter_but_never_a_lease() {
    let mut script = Script::new();
    let (alice, bob) = (asker("alice", 1), asker("bob", 1));
    script.ask(&alice);
    let token = script.granted(&alice);
    script.ask(&bob);
    for cancelled in [&bob, &bob, &alice, &asker("carol", 7)] {
        script.table.cancel(cancelled.link, cancelled.request, script.now, &mut script.last);
    }
    assert_eq!(script.table.stats().freed, 1);
    assert_eq!(script.publish(&alice, Some(&token)), Published { token_live: true, woken: 0 });
}

#[test]
fn a_request_that_waits_is_not_answered_twice_when_its_id_comes_again() {
    let mut script = Script::new();
    let (alice, bob) = (asker("alice", 1), asker("bob", 1));
    script.ask(&alice);
    let token = script.granted(&alice);
    script.ask(&bob);
    assert_eq!(script.ask(&bob), []);
    assert_eq!(script.ask_for("other", &bob), []);
    assert_eq!(script.publish(&alice, Some(&token)).woken, 1);
    assert_eq!(script.table.stats().duplicates, 2);
}

#[test]
fn a_unary_asker_learns_of_the_lease_and_waits_in_a_second_call() {
    let mut script = Script::new();
    let (alice, bob) = (asker("alice", 1), asker("bob", 1));
    script.acquire(&alice);
    let token = script.granted(&alice);
    assert_eq!(script.acquire(&bob), [held(&bob, &token)], "nobody waits, so nobody has to tick");
    assert_eq!(script.table.sizes().waiters, 0);
    assert_eq!(script.wait(&token, &bob), [held(&bob, &token), watch(&alice, &token)]);
    assert_eq!(script.publish(&alice, Some(&token)).woken, 1);
}

#[test]
fn an_ended_lease_keeps_its_result_for_the_second_call() {
    let mut script = Script::new();
    let (alice, bob) = (asker("alice", 1), asker("bob", 1));
    script.ask(&alice);
    let token = script.granted(&alice);
    script.acquire(&bob);
    script.publish(&alice, Some(&token));
    script.pass(99);
    assert_eq!(script.wait(&token, &bob), [reply(&bob, Reply::Entry(entry(60)))]);
    script.pass(1);
    assert!(script.is_empty());
    script.wait(&token, &bob);
    script.granted(&bob);
}

#[test]
fn an_ended_lease_keeps_its_failure_too() {
    let mut script = Script::new();
    let (alice, bob) = (asker("alice", 1), asker("bob", 1));
    script.ask(&alice);
    let token = script.granted(&alice);
    script.acquire(&bob);
    script.fail(&alice, &token, FailureKind::Shared);
    script.pass(60);
    let failure = Reply::Failure { remaining: Duration::from_millis(940) };
    assert_eq!(script.wait(&token, &bob), [reply(&bob, failure)]);
}

#[test]
fn waiting_for_a_lease_that_moved_on_joins_its_successor() {
    let mut script = Script::new();
    let (alice, bob, carol) = (asker("alice", 1), asker("bob", 1), asker("carol", 1));
    script.ask(&alice);
    let first = script.granted(&alice);
    script.acquire(&carol);
    script.ask(&bob);
    script.release(&alice, &first);
    let second = script.granted(&bob);
    assert_eq!(script.wait(&first, &carol), [held(&carol, &second)]);
}

#[test]
fn a_full_table_sends_askers_on_without_a_lease() {
    let limits = Limits { leases_total: 2, leases_per_peer: 1, ..Limits::default() };
    let mut script = Script::with(limits);
    let (alice, bob, carol) = (asker("alice", 1), asker("bob", 1), asker("carol", 1));
    script.ask_for("a", &alice);
    assert_eq!(script.ask_for("b", &alice), [reply(&alice, Reply::Proceed)], "one lease per replica");
    script.ask_for("b", &bob);
    assert_eq!(script.ask_for("c", &carol), [reply(&carol, Reply::Proceed)], "two in all");
    assert_eq!(script.table.stats().proceed_by_limit, 2);
    assert_eq!(script.table.sizes().leases, 2);
}

#[test]
fn waits_are_bounded_per_key_and_per_link() {
    let mut script = Script::with(Limits { waiters_per_key: 2, waiters_per_link: 1, ..Limits::default() });
    let (alice, bob) = (asker("alice", 1), asker("bob", 1));
    script.ask(&alice);
    script.ask(&bob);
    let again = asker("bob", 2);
    assert_eq!(script.ask(&again), [reply(&again, Reply::Proceed)]);
    script.ask(&asker("carol", 1));
    let dave = asker("dave", 1);
    assert_eq!(script.ask(&dave), [reply(&dave, Reply::Proceed)]);
}

#[test]
fn a_waiter_whose_replica_holds_too_many_leases_does_not_take_another_over() {
    let mut script = Script::with(Limits { leases_per_peer: 1, ..Limits::default() });
    let (alice, bob, carol) = (asker("alice", 1), asker("bob", 1), asker("carol", 1));
    script.ask(&alice);
    let token = script.granted(&alice);
    script.ask(&bob);
    script.ask(&carol);
    script.ask_for("other", &asker("bob", 2));
    script.release(&alice, &token);
    assert_eq!(script.last[0], reply(&bob, Reply::Proceed));
    script.granted(&carol);
}

#[test]
fn who_lets_leases_run_out_gets_none_until_its_time_is_over_and_nobody_waits_for_him() {
    let mut script = Script::new();
    let (mallory, alice) = (asker("mallory", 1), asker("alice", 1));
    let mut stopped = None;
    while stopped.is_none() {
        script.ask(&mallory);
        script.granted(&mallory);
        assert_eq!(script.table.take_overdue(), []);
        script.pass(5_000);
        let overdue = script.table.take_overdue();
        assert_eq!(overdue, [holder(&mallory)], "the lease ran out");
        stopped = script.table.hoarded(&overdue[0].member, script.now);
    }
    assert_eq!(script.ask(&mallory), [reply(&mallory, Reply::Proceed)]);
    assert!(script.is_empty(), "it waits for nobody, and nobody for it");
    script.ask(&alice);
    let token = script.granted(&alice);
    script.ask(&mallory);
    script.release(&alice, &token);
    assert_eq!(script.last, [reply(&mallory, Reply::Proceed)], "it inherits none either");
    script.pass(60_000);
    script.ask(&mallory);
    script.granted(&mallory);
    assert_eq!(script.table.stats().hoarders, 1);
}

#[test]
fn failures_and_results_are_bounded_too() {
    let mut script = Script::with(Limits { failures_total: 0, results_total: 0, ..Limits::default() });
    let (alice, bob, carol) = (asker("alice", 1), asker("bob", 1), asker("carol", 1));
    script.ask(&alice);
    let token = script.granted(&alice);
    script.ask(&bob);
    script.acquire(&carol);
    script.fail(&alice, &token, FailureKind::Shared);
    assert_eq!(script.last, [reply(&bob, Reply::Failure { remaining: Duration::from_secs(1) })]);
    assert!(script.is_empty());
    assert_eq!(script.table.stats().not_kept, 2);
}

#[test]
fn a_lease_is_over_at_its_deadline_even_before_the_table_is_told_the_time() {
    let mut script = Script::new();
    let (alice, bob) = (asker("alice", 1), asker("bob", 1));
    script.ask(&alice);
    let token = script.granted(&alice);
    assert_eq!(script.table.next_deadline(), Some(script.now + HELD_FOR));
    script.now = script.now + HELD_FOR;
    assert!(!script.table.holds(&key("example"), &token, &holder(&alice), script.now));
    assert_eq!(script.ask(&bob), [granted(&bob, &Token { counter: token.counter + 1, ..token.clone() }, false)]);
    assert_eq!(script.fail(&alice, &token, FailureKind::Local), Claim::Ended);
}

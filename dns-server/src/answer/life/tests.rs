//! Scripts of events, and random orders of them.

use bytes::Bytes;
use heimdall_shared::dns::answer::Answer;
use proptest::prelude::*;

use super::*;

/// A lease in these tests is a number.
type Script = Life<u8>;

const NOW: Moment = Moment::from_nanos(1_000_000_000_000);

fn entry(lifetime: u64) -> Entry {
    Entry { packet: Bytes::from_static(b"x"), born: NOW, lifetime: Duration::from_secs(lifetime), since: 0 }
}

fn brought(lifetime: u64) -> upstream::Outcome {
    let answer = Answer { packet: entry(lifetime).packet, lifetime: Duration::from_secs(lifetime) };
    upstream::Outcome::Answer { answer, born: NOW }
}

fn granted(lease: u8) -> Word<u8> {
    Word::Granted { lease, takeover: false }
}

fn begun() -> Script {
    let (life, actions) = Script::begin(Ok(()), None);
    assert_eq!(actions, []);
    life
}

fn fresh(lifetime: u64) -> Action<u8> {
    Action::Finish(Outcome::Answer { entry: entry(lifetime), fresh: true })
}

#[test]
fn the_cluster_s_entry_is_the_answer() {
    let mut life = begun();
    let actions = life.heard(Word::Entry(entry(60)));
    assert_eq!(
        actions,
        [
            Action::Count(MissOutcome::entry),
            Action::Keep(entry(60)),
            Action::Finish(Outcome::Answer { entry: entry(60), fresh: false })
        ]
    );
    assert!(life.is_finished());
}

#[test]
fn a_holder_answers_its_client_before_it_publishes_with_the_token() {
    let mut life = begun();
    assert_eq!(life.heard(granted(7)), [Action::Count(MissOutcome::granted), Action::Resolve]);
    let actions = life.resolved(brought(60), NOW);
    assert_eq!(actions, [Action::Keep(entry(60)), fresh(60), Action::Publish(entry(60), Some(7))]);
}

#[test]
fn an_answer_that_nobody_may_keep_still_goes_to_those_who_wait_for_the_lease() {
    let mut holder = begun();
    holder.heard(granted(7));
    assert!(holder.resolved(brought(0), NOW).contains(&Action::Publish(entry(0), Some(7))));

    let mut alone = begun();
    alone.heard(Word::Proceed);
    assert_eq!(alone.resolved(brought(0), NOW), [Action::Keep(entry(0)), fresh(0)]);
}

#[test]
fn a_waiter_gets_the_holder_s_answer() {
    let mut life = begun();
    assert_eq!(life.heard(Word::Held(None)), []);
    assert!(life.minds_silence());
    assert_eq!(life.heard(Word::Entry(entry(60)))[0], Action::Count(MissOutcome::held_entry));
}

#[test]
fn silence_sends_it_upstream_while_the_lookup_stays_open() {
    let mut life = begun();
    let expected = [Action::Count(MissOutcome::silence), Action::CountFallback, Action::Resolve];
    assert_eq!(life.silent(), expected);
    assert!(life.is_asking_mesh() && !life.minds_silence());
    assert_eq!(life.silent(), []);
}

#[test]
fn a_late_grant_is_adopted_by_the_query_under_way() {
    let mut life = begun();
    life.silent();
    assert_eq!(life.heard(granted(3)), [Action::Count(MissOutcome::granted)]);
    assert!(life.resolved(brought(60), NOW).contains(&Action::Publish(entry(60), Some(3))));
}

#[test]
fn a_late_entry_answers_at_once() {
    let mut life = begun();
    life.heard(Word::Held(None));
    life.silent();
    let actions = life.heard(Word::Entry(entry(60)));
    assert!(actions.contains(&Action::Finish(Outcome::Answer { entry: entry(60), fresh: false })));
    assert!(life.is_finished());
}

#[test]
fn an_answer_fetched_in_silence_is_published_without_a_token() {
    let mut life = begun();
    life.silent();
    let actions = life.resolved(brought(60), NOW);
    assert_eq!(actions, [Action::Keep(entry(60)), fresh(60), Action::Publish(entry(60), None)]);
    assert!(!life.is_asking_mesh());
}

#[test]
fn a_broken_link_costs_nothing_but_the_lease() {
    let mut life = begun();
    life.heard(Word::Held(None));
    let expected = [Action::Count(MissOutcome::link_down), Action::CountFallback, Action::Resolve];
    assert_eq!(life.heard(Word::LinkDown), expected);
}

#[test]
fn without_a_mesh_the_upstream_is_asked_at_once_and_nothing_is_counted_as_a_fallback() {
    let (_, actions) = Script::begin(Err(Absent::Off), None);
    assert_eq!(actions, [Action::Resolve]);
    let (_, actions) = Script::begin(Err(Absent::Unable(MissOutcome::limit)), None);
    assert_eq!(actions, [Action::Count(MissOutcome::limit), Action::CountFallback, Action::Resolve]);
}

#[test]
fn the_upstreams_own_failure_is_told_to_the_cluster_and_remembered() {
    let mut life = begun();
    life.heard(granted(1));
    assert_eq!(
        life.resolved(upstream::Outcome::ServFail, NOW),
        [
            Action::Remember(Memory::Own(Known::Shared)),
            Action::Finish(Outcome::Failed),
            Action::Fail(1, FailureKind::Shared)
        ]
    );
}

#[test]
fn everything_else_is_a_failure_of_this_process() {
    for outcome in [upstream::Outcome::NoAnswer, upstream::Outcome::Rcode(5), upstream::Outcome::Overload] {
        let mut life = begun();
        life.heard(granted(1));
        assert_eq!(life.resolved(outcome, NOW).last(), Some(&Action::Fail(1, FailureKind::Local)));
    }
}

#[test]
fn a_failure_of_the_cluster_is_the_answer_unless_our_own_query_is_under_way() {
    let told = Duration::from_secs(2);
    let mut waiting = begun();
    let actions = waiting.heard(Word::Failure(told));
    let expected =
        [Action::Count(MissOutcome::failure), Action::Remember(Memory::Told(told)), Action::Finish(Outcome::Failed)];
    assert_eq!(actions, expected);

    let mut asking = begun();
    asking.silent();
    assert_eq!(asking.heard(Word::Failure(told)), [Action::Count(MissOutcome::failure)]);
    assert!(asking.resolved(brought(60), NOW).contains(&fresh(60)));
}

#[test]
fn a_process_whose_own_query_failed_still_takes_what_the_others_find() {
    let mut life = begun();
    life.heard(Word::Held(None));
    life.silent();
    let remembered = [Action::Remember(Memory::Own(Known::Local(None)))];
    assert_eq!(life.resolved(upstream::Outcome::NoAnswer, NOW), remembered);
    assert!(!life.is_finished());
    let actions = life.heard(Word::Entry(entry(60)));
    assert!(actions.contains(&Action::Finish(Outcome::Answer { entry: entry(60), fresh: false })));
}

#[test]
fn a_process_whose_own_query_failed_waits_for_the_others_only_while_they_work() {
    let mut life = begun();
    life.heard(Word::Held(None));
    life.silent();
    life.resolved(upstream::Outcome::NoAnswer, NOW);
    assert!(life.minds_silence());
    assert_eq!(life.silent(), [Action::Count(MissOutcome::silence), Action::Finish(Outcome::Failed)]);
}

/// A holder whose first attempt brought nothing.
fn struggling() -> Script {
    let mut life = begun();
    life.heard(granted(1));
    assert_eq!(life.struggled(), [Action::AskAgain]);
    assert_eq!(life.struggled(), []);
    life
}

#[test]
fn a_holder_that_struggles_takes_what_another_replica_finds() {
    let mut life = struggling();
    life.heard(Word::Held(None));
    assert!(!life.minds_silence(), "its own query may still be answered");
    let actions = life.heard(Word::Entry(entry(60)));
    assert_eq!(actions.last(), Some(&Action::Release(1)));
    assert!(actions.contains(&Action::Finish(Outcome::Answer { entry: entry(60), fresh: false })));
}

#[test]
fn a_holder_that_struggles_publishes_what_it_gets_in_the_end() {
    let mut life = struggling();
    life.heard(Word::Held(None));
    assert!(life.resolved(brought(60), NOW).contains(&Action::Publish(entry(60), Some(1))));
}

#[test]
fn a_holder_that_fails_passes_its_lease_on_at_once_and_waits_for_the_others() {
    let mut life = struggling();
    life.heard(Word::Held(None));
    let actions = life.resolved(upstream::Outcome::NoAnswer, NOW);
    assert_eq!(actions.last(), Some(&Action::Fail(1, FailureKind::Local)));
    assert!(!life.is_finished());
    assert_eq!(life.heard(Word::Proceed).last(), Some(&Action::Finish(Outcome::Failed)));
}

#[test]
fn a_mesh_that_cannot_be_asked_again_changes_nothing() {
    let mut life = struggling();
    life.not_asked();
    let actions = life.resolved(upstream::Outcome::NoAnswer, NOW);
    assert_eq!(actions.last(), Some(&Action::Fail(1, FailureKind::Local)));
    assert!(life.is_finished());

    let (mut off, _) = Script::begin(Err(Absent::Off), None);
    assert_eq!(off.struggled(), []);
}

#[test]
fn a_lease_granted_to_a_process_that_failed_is_passed_on() {
    let mut life = begun();
    life.silent();
    life.resolved(upstream::Outcome::NoAnswer, NOW);
    let actions = life.heard(Word::Granted { lease: 4, takeover: true });
    let expected =
        [Action::Count(MissOutcome::takeover), Action::Finish(Outcome::Failed), Action::Fail(4, FailureKind::Local)];
    assert_eq!(actions, expected);
}

#[test]
fn a_remembered_failure_asks_the_mesh_and_no_upstream() {
    let (mut life, actions) = Script::begin(Ok(()), Some(Outcome::Rcode(5)));
    assert_eq!(actions, []);
    assert_eq!(life.heard(Word::Proceed), [Action::Count(MissOutcome::proceed), Action::Finish(Outcome::Rcode(5))]);
    let (_, actions) = Script::begin(Err(Absent::Off), Some(Outcome::Failed));
    assert_eq!(actions, [Action::Finish(Outcome::Failed)]);
}

#[test]
fn signs_of_work_without_end_do_not_cost_a_client_its_answer() {
    let mut waiting = begun();
    waiting.heard(Word::Held(None));
    let fallback = [Action::Count(MissOutcome::late), Action::CountFallback, Action::Resolve];
    assert_eq!(waiting.late(), fallback);
    assert_eq!(waiting.late(), []);
    assert_eq!(waiting.expired(), [], "its own query is under way");

    let mut holding = begun();
    holding.heard(granted(1));
    assert_eq!(holding.late(), [], "it asks already");
}

#[test]
fn time_ends_a_wait_for_others_but_not_a_query_under_way() {
    let mut waiting = begun();
    waiting.heard(Word::Held(None));
    assert_eq!(waiting.expired(), [Action::Finish(Outcome::Failed)]);

    let mut asking = begun();
    asking.heard(granted(1));
    assert_eq!(asking.expired(), []);
}

/// What may happen to a miss, in any order.
#[derive(Clone, Debug)]
enum Event {
    Held,
    Entry,
    Failure,
    Granted(bool),
    Proceed,
    LinkDown,
    Silent,
    Struggled,
    Late,
    Resolved(upstream::Outcome),
    Expired,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Held),
        Just(Event::Entry),
        Just(Event::Failure),
        any::<bool>().prop_map(Event::Granted),
        Just(Event::Proceed),
        Just(Event::LinkDown),
        Just(Event::Silent),
        Just(Event::Struggled),
        Just(Event::Late),
        prop_oneof![
            Just(brought(60)),
            Just(brought(0)),
            Just(upstream::Outcome::ServFail),
            Just(upstream::Outcome::NoAnswer),
            Just(upstream::Outcome::Rcode(5)),
            Just(upstream::Outcome::Overload),
        ]
        .prop_map(Event::Resolved),
        Just(Event::Expired),
    ]
}

proptest! {
    /// Whatever happens in whatever order: one resolution at most, everybody is told exactly once, and a lease that was
    /// taken is given back in exactly one way.
    #[test]
    fn every_miss_ends_once_and_keeps_no_lease(
        events in prop::collection::vec(event(), 1..30),
        failed: bool,
        off: bool,
    ) {
        let mesh = if off { Err(Absent::Off) } else { Ok(()) };
        let (mut life, mut done) = Script::begin(mesh, failed.then_some(Outcome::Failed));
        let (mut next_lease, mut taken) = (0u8, 0);
        for event in events.into_iter().chain([Event::LinkDown, Event::Resolved(upstream::Outcome::NoAnswer)]) {
            let asking = life.upstream == Upstream::Asking && !life.finished;
            let actions = match event {
                Event::Held => life.heard(Word::Held(None)),
                Event::Entry => life.heard(Word::Entry(entry(60))),
                Event::Failure => life.heard(Word::Failure(Duration::from_secs(1))),
                Event::Granted(takeover) => {
                    taken += usize::from(life.is_asking_mesh());
                    next_lease += 1;
                    life.heard(Word::Granted { lease: next_lease, takeover })
                }
                Event::Proceed => life.heard(Word::Proceed),
                Event::LinkDown => life.heard(Word::LinkDown),
                Event::Silent => life.silent(),
                Event::Struggled => life.struggled(),
                Event::Resolved(outcome) if asking => life.resolved(outcome, NOW),
                Event::Resolved(_) => continue,
                Event::Late => life.late(),
                Event::Expired => life.expired(),
            };
            done.extend(actions);
        }
        let count = |what: fn(&Action<u8>) -> bool| done.iter().filter(|&action| what(action)).count();
        prop_assert!(count(|action| matches!(action, Action::Resolve)) <= 1);
        prop_assert_eq!(count(|action| matches!(action, Action::Finish(_))), 1);
        prop_assert!(life.is_finished());
        let given_back = count(|action| matches!(action, Action::Publish(_, Some(_)) | Action::Fail(..) | Action::Release(_)));
        prop_assert_eq!(given_back, taken);
        prop_assert!(life.lease.is_none());
        prop_assert!(!(failed && count(|action| matches!(action, Action::Resolve)) > 0));
    }
}

#![allow(clippy::unwrap_used)]

use super::*;

fn at(millis: u64) -> Moment {
    Moment::from_nanos(1_000_000_000_000) + Duration::from_millis(millis)
}

fn discovered(name: &str) -> Discovered {
    Discovered { name: name.into(), address: format!("{name}.mesh:8443").into() }
}

fn list(names: &[&str]) -> Event {
    Event::Discovered(Update::Reset(names.iter().map(|name| discovered(name)).collect()))
}

fn link_up(member: &str, incarnation: u64, link: LinkId) -> Event {
    Event::LinkUp { member: member.into(), incarnation, link, advertised: None }
}

fn link_down(member: &str, link: LinkId) -> Event {
    Event::LinkDown { member: member.into(), link }
}

/// Tells of a frame that arrived then, as the task does: at one of its looks.
fn heard(membership: &mut Membership, member: &str, link: LinkId, millis: u64, look: u64) -> Changes {
    membership.heard(member, link, at(millis));
    membership.pass(at(look))
}

/// Member a among a, b and c, with a link to each of the others (1 to b, 2 to c), at 0 ms.
fn three() -> Membership {
    let mut membership = Membership::new(discovered("a"), 2, at(0));
    membership.step(list(&["a", "b", "c"]), at(0));
    membership.step(link_up("b", 7, 1), at(0));
    membership.step(link_up("c", 8, 2), at(0));
    membership
}

fn state(membership: &Membership, member: &str) -> State {
    membership.view().member(member).unwrap().state
}

fn ring_names(membership: &Membership) -> String {
    membership.view().ring().members().concat()
}

#[test]
fn an_agent_that_knows_nobody_owns_everything() {
    let membership = Membership::new(discovered("a"), 3, at(0));
    let view = membership.view();
    assert_eq!(view.target(9, &[""; 0]), Some(view.self_name()));
    assert!(view.is_settled(at(0)));
    assert_eq!(membership.next_deadline(), None);
}

#[test]
fn discovery_makes_the_ring_and_says_whom_to_dial() {
    let mut membership = Membership::new(discovered("a"), 3, at(0));
    let changes = membership.step(list(&["c", "a", "b"]), at(0));
    assert!(changes.ring_changed);
    assert_eq!(changes.discovered, [discovered("c"), discovered("b")]);
    assert_eq!(ring_names(&membership), "abc");
    let again = membership.step(list(&["a", "b", "c"]), at(5));
    assert!(again.view.is_none() && again.discovered.is_empty() && !again.ring_changed);
}

#[test]
fn liveness_only_skips_and_never_changes_the_ring() {
    let mut membership = three();
    let ring = membership.view().ring_shared();
    let changes = membership.step(link_down("b", 1), at(600));
    assert!(changes.view.is_some() && !changes.ring_changed);
    assert_eq!(changes.states, [("b".into(), State::Down)]);
    assert!(Arc::ptr_eq(&ring, &membership.view().ring_shared()));
}

#[test]
fn a_killed_member_is_skipped_when_its_link_ends() {
    let mut membership = three();
    let changes = membership.step(link_down("b", 1), at(900));
    assert_eq!(changes.gone, [("b".into(), 7)]);
    assert!(!membership.view().is_up("b"));
    let slot = (0..).find(|&slot| membership.view().ring().owner(slot).unwrap().as_ref() == "b").unwrap();
    let view = membership.view();
    let next = view.ring().order(slot).nth(1).unwrap();
    assert_eq!(view.target(slot, &[""; 0]), Some(next));
    assert_eq!(view.skipped_before(slot, next), ["b".into()]);
}

#[test]
fn a_silent_member_is_skipped_within_three_seconds_and_returns_when_heard() {
    let mut membership = three();
    assert_eq!(membership.next_deadline(), Some(at(1_000)));
    // First it is suspected, which people see and requests do not.
    assert_eq!(heard(&mut membership, "c", 2, 1_000, 1_000).states, [("b".into(), State::Suspected)]);
    assert!(membership.view().is_up("b"));
    assert_eq!(membership.next_deadline(), Some(at(2_000)));
    heard(&mut membership, "c", 2, 2_000, 2_000);
    assert_eq!(membership.next_deadline(), Some(at(2_500)));
    assert!(membership.pass(at(2_499)).states.is_empty());
    assert_eq!(membership.pass(at(2_500)).states, [("b".into(), State::Silent)]);
    assert!(membership.view().is_up("c"));
    assert_eq!(membership.next_deadline(), Some(at(3_000)));
    let changes = heard(&mut membership, "b", 1, 60_000, 60_000);
    assert!(changes.states.contains(&("b".into(), State::Up)));
    assert!(changes.gone.is_empty(), "its link, and so its leases, never ended");
}

#[test]
fn hearing_that_is_told_late_counts_from_when_it_was() {
    let mut membership = three();
    heard(&mut membership, "b", 1, 100, 2_400);
    assert_eq!(membership.pass(at(2_600)).states.len(), 2);
    assert_eq!(state(&membership, "b"), State::Silent);
}

#[test]
fn frames_that_change_nothing_make_no_view() {
    let mut membership = three();
    let view = membership.view();
    for millis in 1..50 {
        assert!(heard(&mut membership, "b", 1, millis, millis).view.is_none());
    }
    assert!(Arc::ptr_eq(&view, &membership.view()));
}

#[test]
fn a_member_stays_while_one_of_its_links_does() {
    let mut membership = three();
    membership.step(link_up("b", 7, 3), at(1));
    let changes = membership.step(link_down("b", 1), at(2));
    assert!(changes.gone.is_empty() && changes.states.is_empty());
    assert_eq!(membership.step(link_down("b", 3), at(600)).gone, [("b".into(), 7)]);
}

#[test]
fn a_restarted_member_returns_as_another_incarnation_at_another_address() {
    let mut membership = three();
    // The new process is there before the end of the old one is noticed.
    let advertised = Some("10.0.0.9:8443".into());
    membership.step(Event::LinkUp { member: "b".into(), incarnation: 70, link: 9, advertised }, at(5));
    let changes = membership.step(link_down("b", 1), at(6));
    assert_eq!(changes.gone, [("b".into(), 7)]);
    // A further link that says nothing of an address leaves the one that is known.
    membership.step(link_up("b", 70, 10), at(7));
    let view = membership.view();
    let member = view.member("b").unwrap();
    assert_eq!((member.state, member.incarnation), (State::Up, Some(70)));
    assert_eq!(member.learned.as_deref(), Some("10.0.0.9:8443"));
    assert_eq!(&*member.address, "b.mesh:8443");
}

#[test]
fn of_two_links_dialled_at_once_the_end_of_one_is_no_end_of_the_member() {
    let mut membership = three();
    // The one that goes is seen to end before the one that stays is seen to begin.
    let changes = membership.step(link_down("b", 1), at(100));
    assert_eq!((changes.gone.len(), changes.states), (0, vec![("b".into(), State::Suspected)]));
    assert!(membership.view().is_up("b"));
    membership.step(link_up("b", 7, 3), at(150));
    assert_eq!(state(&membership, "b"), State::Up);
    assert!(membership.pass(at(700)).gone.is_empty());
    // When no other one comes it was the end, a moment later.
    let mut membership = three();
    membership.step(link_down("c", 2), at(100));
    assert_eq!(membership.next_deadline(), Some(at(350)));
    let changes = membership.pass(at(350));
    assert_eq!((changes.gone, changes.states), (vec![("c".into(), 8)], vec![("c".into(), State::Down)]));
    // Another incarnation's link is not the one that was waited for.
    let mut membership = three();
    membership.step(link_down("c", 2), at(100));
    assert_eq!(membership.step(link_up("c", 80, 5), at(150)).gone, [("c".into(), 8)]);
}

#[test]
fn the_end_of_an_unknown_link_says_nothing() {
    let mut membership = three();
    let changes = membership.step(link_down("b", 99), at(5));
    assert!(changes.gone.is_empty() && changes.view.is_none());
    assert!(membership.step(link_down("nobody", 1), at(5)).view.is_none());
}

#[test]
fn a_leaver_is_skipped_at_once_and_its_successor_is_not() {
    let mut membership = three();
    let changes = membership.step(Event::Leaving { member: "b".into(), link: 1 }, at(5));
    assert_eq!(changes.states, [("b".into(), State::Leaving)]);
    assert!(changes.gone.is_empty(), "it still finishes its leases");
    heard(&mut membership, "b", 1, 6, 6);
    assert_eq!(state(&membership, "b"), State::Leaving);
    membership.step(link_up("b", 71, 4), at(7));
    assert_eq!(state(&membership, "b"), State::Up);
    membership.step(link_down("b", 1), at(8));
    assert_eq!(state(&membership, "b"), State::Up);
}

#[test]
fn an_agent_that_leaves_names_its_successors() {
    let mut membership = three();
    assert!(membership.step(Event::SelfLeaving, at(1)).view.is_some());
    let view = membership.view();
    assert!(view.is_leaving());
    for slot in 0..64 {
        assert_ne!(view.target(slot, &[""; 0]), Some(view.self_name()));
    }
}

#[test]
fn an_empty_list_keeps_the_last_members_for_a_grace_period() {
    let mut membership = three();
    membership.step(list(&[]), at(0));
    assert_eq!(ring_names(&membership), "abc");
    // Asking again and again does not start the grace anew.
    membership.step(list(&[]), at(20_000));
    for link in [1, 2] {
        heard(&mut membership, if link == 1 { "b" } else { "c" }, link, 29_000, 29_000);
    }
    assert!(membership.pass(at(29_999)).removed.is_empty());
    assert_eq!(membership.next_deadline(), Some(at(30_000)));
    let changes = membership.pass(at(30_000));
    assert_eq!(changes.removed, ["b".into(), "c".into()]);
    assert!(changes.ring_changed);
    assert_eq!(ring_names(&membership), "a");
}

#[test]
fn a_list_with_members_ends_the_doubt_about_an_empty_one() {
    let mut membership = three();
    membership.step(Event::Discovered(Update::Remove(vec!["b".into(), "c".into()])), at(0));
    assert_eq!(ring_names(&membership), "abc");
    membership.step(list(&["a", "b"]), at(10_000));
    heard(&mut membership, "b", 1, 31_000, 31_000);
    membership.pass(at(31_000));
    assert_eq!(ring_names(&membership), "ab");
}

#[test]
fn members_come_and_go_one_by_one_too() {
    let mut membership = three();
    let changes = membership.step(Event::Discovered(Update::Remove(vec!["b".into()])), at(1));
    assert_eq!(changes.removed, ["b".into()]);
    assert_eq!(ring_names(&membership), "ac");
    // Its link is closing; until then it is known, but no member.
    assert!(membership.view().member("b").is_none());
    assert_eq!(membership.step(link_down("b", 1), at(600)).gone, [("b".into(), 7)]);
    membership.step(Event::Discovered(Update::Add(vec![discovered("b")])), at(3));
    assert_eq!(state(&membership, "b"), State::Joining);
}

#[test]
fn a_peer_that_dials_before_discovery_names_it_is_up_as_soon_as_it_does() {
    let mut membership = three();
    membership.step(link_up("d", 5, 6), at(1));
    assert_eq!(ring_names(&membership), "abc");
    membership.step(list(&["a", "b", "c", "d"]), at(2));
    assert_eq!(state(&membership, "d"), State::Up);
}

#[test]
fn a_new_address_is_dialled_anew_without_a_change_of_the_ring() {
    let mut membership = three();
    let moved = Discovered { address: "elsewhere:8443".into(), ..discovered("b") };
    let update = Update::Reset(vec![discovered("a"), moved.clone(), discovered("c")]);
    let changes = membership.step(Event::Discovered(update), at(1));
    assert_eq!(changes.discovered, [moved]);
    assert!(!changes.ring_changed && changes.removed.is_empty());
}

#[test]
fn somebody_with_our_own_name_is_no_peer() {
    let mut membership = three();
    assert!(membership.step(link_up("a", 3, 9), at(1)).view.is_none());
    assert!(membership.step(link_down("a", 9), at(2)).gone.is_empty());
}

#[test]
fn a_view_is_settled_when_everybody_had_a_chance_to_connect() {
    let mut membership = Membership::new(discovered("a"), 3, at(0));
    membership.step(list(&["a", "b", "c"]), at(0));
    assert!(!membership.view().is_settled(at(0)));
    membership.step(link_up("b", 1, 1), at(10));
    assert!(!membership.view().is_settled(at(2_999)));
    assert!(membership.view().is_settled(at(3_000)), "c had long enough");
    membership.step(Event::DialFailed { member: "c".into(), error: "c.mesh:8443: refused".into() }, at(20));
    assert!(membership.view().is_settled(at(30)), "c was tried");
}

#[test]
fn the_reason_of_a_failed_dial_is_shown() {
    let mut membership = Membership::new(discovered("a"), 3, at(0));
    membership.step(list(&["b"]), at(0));
    membership.step(Event::DialFailed { member: "b".into(), error: "b.mesh:8443: refused".into() }, at(1));
    assert_eq!(membership.view().member("b").unwrap().reason, Reason::DialFailed("b.mesh:8443: refused".into()));
    assert_eq!(state(&membership, "b"), State::Down);
}

#[test]
fn a_request_goes_to_the_first_that_neither_end_had_to_skip() {
    let mut membership = three();
    membership.step(link_down("c", 2), at(600));
    let view = membership.view();
    for slot in 0..512 {
        let order: Vec<_> = view.ring().order(slot).collect();
        let first = order.iter().find(|name| &****name != "c").copied();
        assert_eq!(view.target(slot, &[""; 0]), first);
        let second = order.iter().find(|name| !["b", "c"].contains(&&****name)).copied();
        assert_eq!(view.target(slot, &["b"]), second);
        assert_eq!(view.target(slot, &["a", "b", "c"]), None);
    }
}

#[test]
fn more_members_than_the_ring_holds_are_left_out_and_counted() {
    let mut membership = Membership::new(discovered("a"), 1, at(0));
    let many = (0..MEMBERS_MAX + 3).map(|number| discovered(&format!("m{number}"))).collect();
    let changes = membership.step(Event::Discovered(Update::Reset(many)), at(0));
    assert_eq!(changes.left_out, 4);
    assert_eq!(membership.view().ring().members().len(), MEMBERS_MAX);
}

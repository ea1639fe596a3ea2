//! Partitions in both directions, in one, and connections that stall: duplicates at most while they last, one cache after.

use std::time::Duration;

use heimdall_integration::ownership::order;
use heimdall_integration::wire::Name;
use heimdall_proto::v1::ReplicaOutcome;
use tokio::time::sleep;

use super::stage::{REPLICAS, Stage, host, run};

/// Runs of each story; each has delays of its own.
const SEEDS: u64 = 4;

/// Names in each part of a story: about four for each owner.
const NAMES: usize = 12;

/// A partition lasts longer than a dead connection goes unnoticed.
const CUT_FOR: Duration = Duration::from_secs(15);

/// Replicas that can reach each other again are one cache within this time (fault matrix, cell 10).
const WHOLE_WITHIN: Duration = Duration::from_secs(5);

/// A stall that ends before a connection is given up.
const STALL_FOR: Duration = Duration::from_secs(3);

fn names(zone: &str) -> Vec<String> {
    (0..NAMES).map(|number| format!("name-{number}.{zone}.example.")).collect()
}

/// Runs `story` with each seed, or with the one that was asked for.
fn with_each_seed<F: Future<Output = ()> + 'static>(story: impl Fn(Stage) -> F) {
    #[allow(clippy::disallowed_methods, reason = "a test's own switch, not an option of a server")]
    let one = std::env::var("HEIMDALL_TURMOIL_SEED").ok();
    let one: Option<u64> = one.map(|text| text.parse().expect("HEIMDALL_TURMOIL_SEED must be a number"));
    one.map_or(0..SEEDS, |seed| seed..seed + 1).for_each(|seed| run(seed, &story));
}

/// Does `change` to the network between replica 0 and the others.
fn between_the_sides(change: impl Fn(String, String)) {
    (1..REPLICAS).for_each(|other| change(host(0), host(other)));
}

fn is_owned_by(name: &str, replica: usize) -> bool {
    let members: Vec<_> = (0..REPLICAS).map(host).collect();
    order(&Name::parse(name).unwrap(), &members)[0] == replica
}

/// Every name is fetched once, whoever asks.
async fn is_one_cache(stage: &Stage, zone: &str) {
    assert_eq!(stage.ask_all(&names(zone)).await, [1; NAMES], "{zone}: how often each name was fetched");
}

/// Every name is fetched, and at most once on each side.
async fn is_two_caches(stage: &Stage, zone: &str) {
    let fetched = stage.ask_all(&names(zone)).await;
    assert!(fetched.iter().all(|times| (1..=2).contains(times)), "{zone}: names were fetched {fetched:?} times");
}

#[test]
fn a_partition_costs_duplicates_and_heals() {
    with_each_seed(|stage: Stage| async move {
        stage.whole().await;
        is_one_cache(&stage, "before").await;

        between_the_sides(turmoil::partition);
        // Nobody has noticed yet, and every client is answered.
        let fetched = stage.ask_all(&names("unnoticed")).await;
        assert!(fetched.iter().all(|times| (1..=REPLICAS).contains(times)), "fetched {fetched:?} times");
        stage.sees(0, 1).await;
        stage.sees(1, 2).await;
        stage.sees(2, 2).await;
        is_two_caches(&stage, "during").await;

        sleep(CUT_FOR).await;
        between_the_sides(turmoil::repair);
        let took = stage.whole().await;
        assert!(took <= WHOLE_WITHIN, "the members needed {took:?} to find each other");
        is_one_cache(&stage, "after").await;
    });
}

#[test]
fn words_that_pass_in_one_direction_alone_cost_no_answer() {
    with_each_seed(|stage: Stage| async move {
        stage.whole().await;
        between_the_sides(turmoil::partition_oneway);
        let fetched = stage.ask_all(&names("unnoticed")).await;
        assert!(fetched.iter().all(|times| (1..=REPLICAS).contains(times)), "fetched {fetched:?} times");

        sleep(CUT_FOR).await;
        is_two_caches(&stage, "during").await;
        between_the_sides(turmoil::repair_oneway);
        let took = stage.whole().await;
        assert!(took <= WHOLE_WITHIN, "the members needed {took:?} to find each other");
        is_one_cache(&stage, "after").await;
    });
}

#[test]
fn what_a_stall_held_back_arrives_late_and_harms_nothing() {
    with_each_seed(|stage: Stage| async move {
        stage.whole().await;
        between_the_sides(turmoil::hold);
        let fetched = stage.ask_all(&names("stalled")).await;
        assert!(fetched.iter().all(|times| (1..=REPLICAS).contains(times)), "fetched {fetched:?} times");

        sleep(STALL_FOR).await;
        between_the_sides(turmoil::release);
        let took = stage.whole().await;
        assert!(took <= WHOLE_WITHIN, "the members needed {took:?} to find each other");
        // Grants and publishes of the stall have arrived by now: nothing of them may be fetched again.
        assert_eq!(stage.ask_all(&names("stalled")).await, fetched, "what is cached is not fetched again");
        is_one_cache(&stage, "after").await;
    });
}

#[test]
fn a_purge_reaches_a_replica_that_was_cut_off() {
    with_each_seed(|stage: Stage| async move {
        stage.whole().await;
        is_one_cache(&stage, "purged").await;
        between_the_sides(turmoil::partition);
        stage.sees(1, 2).await;

        let results = stage.purge(1, "purged.example.").await;
        for result in &results {
            // Late or not reached: that depends on whether the dead connection was noticed already.
            let is_done = result.outcome() == ReplicaOutcome::Done;
            assert_eq!(is_done, result.replica != host(0), "{result:?}");
        }
        assert_eq!(results.len(), REPLICAS);
        // The other side fetches anew; the one that was not reached still gives its copies out.
        assert_eq!(stage.ask_all(&names("purged")).await, [2; NAMES]);

        sleep(CUT_FOR).await;
        between_the_sides(turmoil::repair);
        stage.whole().await;
        // It has dropped its copies and takes those of the others; of its own names it grants one lease, as an empty owner does.
        let fetched = stage.ask_all(&names("purged")).await;
        for (name, &times) in names("purged").iter().zip(&fetched) {
            let most = if is_owned_by(name, 0) { 3 } else { 2 };
            assert!((2..=most).contains(&times), "{name} was fetched {times} times");
        }
        let again = stage.purge(0, "purged.example.").await;
        assert!(again.iter().all(|result| result.outcome() == ReplicaOutcome::Done), "{again:?}");
        let once_more: Vec<_> = fetched.iter().map(|times| times + 1).collect();
        assert_eq!(stage.ask_all(&names("purged")).await, once_more);
    });
}

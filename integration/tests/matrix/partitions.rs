//! Networks that part the replicas from each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use heimdall_integration::cluster::LOOK_AGAIN;
use heimdall_integration::history::Bounds;
use heimdall_proto::v1::{ListMembersRequest, MemberState};
use heimdall_shared::clock::Moment;

use super::stage::{FAULT, NAMES, QUIET, Stage, cell};

/// Each side of a partition asks for itself: at most as many queries more as names and lifetimes fit into it, twice over.
fn bounds(stage_fallbacks: usize) -> Bounds {
    Bounds { lost: 0, extra: 4 * NAMES + stage_fallbacks, clock_error: 0.0 }
}

/// Cell 10: one replica is cut off from the other two, in both directions.
#[test]
fn cell_10_one_replica_is_cut_off() {
    cell("partitions::cell_10_one_replica_is_cut_off", || async {
        let mut stage = Stage::set().await;
        stage.begin().await;
        let quiet = stage.history.snapshot().given.len();
        stage.network.part(0, 1).unwrap();
        stage.network.part(0, 2).unwrap();
        tokio::time::sleep(FAULT).await;
        let during = stage.history.snapshot().given.len() - quiet;
        stage.network.heal().unwrap();
        let healed = Moment::now();
        stage.whole().await;
        println!("cell 10: whole again {:?} after the network", Moment::now().since(healed));
        tokio::time::sleep(QUIET).await;
        let fallbacks = stage.fallbacks().await;
        let verdict = stage.end("cell 10", &bounds(fallbacks)).await;
        println!("cell 10: {during} upstream queries during the partition, {fallbacks} fallbacks");
        // Two sides: at most twice what the whole cluster asks.
        assert!(verdict.extra.len() <= verdict.fetched / 2 + fallbacks, "{verdict}");
    });
}

/// Cell 11: what one replica sends does not reach another one; what that one sends does.
#[test]
fn cell_11_one_direction_is_cut() {
    cell("partitions::cell_11_one_direction_is_cut", || async {
        let mut stage = Stage::set().await;
        let over = Arc::new(AtomicBool::new(false));
        let mut watchers = Vec::new();
        for (observer, other) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
            let mut agent = stage.cluster.agent(observer).await.unwrap();
            let name = stage.cluster.replica(other).layout.name.clone();
            let over = Arc::clone(&over);
            let watch = async move {
                let mut seen = vec![true];
                while !over.load(Ordering::Relaxed) {
                    let answer = agent.list_members(ListMembersRequest {}).await.unwrap().into_inner();
                    let member = answer.members.into_iter().find(|member| member.name == name).unwrap();
                    let answers = member.state() != MemberState::Dead;
                    if seen.last() != Some(&answers) {
                        seen.push(answers);
                    }
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                (observer, other, seen)
            };
            watchers.push(tokio::spawn(watch));
        }
        stage.begin().await;
        stage.network.cut(0, 1).unwrap();
        tokio::time::sleep(FAULT).await;
        stage.network.heal().unwrap();
        let healed = Moment::now();
        stage.whole().await;
        println!("cell 11: whole again {:?} after the network", Moment::now().since(healed));
        tokio::time::sleep(QUIET).await;
        over.store(true, Ordering::Relaxed);
        for watcher in watchers {
            let (observer, other, seen) = watcher.await.unwrap();
            println!("cell 11: {observer} saw {other} answer: {seen:?}");
            let concerned = observer + other == 1;
            assert!(seen.len() <= if concerned { 3 } else { 1 }, "a member flaps");
        }
        let fallbacks = stage.fallbacks().await;
        stage.end("cell 11", &bounds(fallbacks)).await;
    });
}

//! Networks that part the replicas from each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use heimdall_integration::cluster::LOOK_AGAIN;
use heimdall_integration::history::Bounds;
use heimdall_proto::v1::{ListMembersRequest, MemberState};
use heimdall_shared::clock::Moment;
use tokio::task::JoinHandle;

use super::agreement::Agreement;
use super::stage::{FAULT, NAMES, QUIET, Stage, cell};

/// Each side of a partition asks for itself: at most as many queries more as names and lifetimes fit into it, twice over.
fn bounds(stage_fallbacks: usize) -> Bounds {
    Bounds { lost: 0, extra: 4 * NAMES + stage_fallbacks, clock_error: 0.0 }
}

/// What the replicas see of each other, in a run.
struct Watched {
    over: Arc<AtomicBool>,
    watchers: Vec<JoinHandle<(Pair, Vec<bool>)>>,
}

/// Who looks, and at whom.
type Pair = (usize, usize);

impl Watched {
    /// Looks from now on, at each replica, for each other one.
    async fn begin(stage: &Stage) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let mut watchers = Vec::new();
        for (observer, other) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
            let mut agent = stage.cluster.agent(observer).await.unwrap();
            let name = stage.cluster.replica(other).layout.name.clone();
            let over = Arc::clone(&over);
            watchers.push(tokio::spawn(async move {
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
                ((observer, other), seen)
            }));
        }
        Self { over, watchers }
    }

    /// For each pair whether the one saw the other one answer, at first and after each change.
    async fn end(self) -> Vec<(Pair, Vec<bool>)> {
        self.over.store(true, Ordering::Relaxed);
        let mut seen = Vec::new();
        for watcher in self.watchers {
            seen.push(watcher.await.unwrap());
        }
        seen
    }
}

/// The network is whole again: so are the members, they agree, and go on for a while.
async fn heal(stage: &Stage, agreement: &Agreement, what: &str) {
    stage.network.heal().unwrap();
    let healed = Moment::now();
    stage.whole().await;
    let whole = Moment::now();
    println!("{what}: whole again {:?} after the network", whole.since(healed));
    agreement.reached(stage, what, whole).await;
    tokio::time::sleep(QUIET).await;
}

/// Cell 10: one replica is cut off from the other two, in both directions.
#[test]
fn cell_10_one_replica_is_cut_off() {
    cell("partitions::cell_10_one_replica_is_cut_off", || async {
        let mut stage = Stage::set().await;
        stage.begin().await;
        let agreement = Agreement::before(&stage).await;
        let quiet = stage.history.snapshot().given.len();
        stage.network.part(0, 1).unwrap();
        stage.network.part(0, 2).unwrap();
        tokio::time::sleep(FAULT).await;
        agreement.purge(&stage).await;
        let during = stage.history.snapshot().given.len() - quiet;
        heal(&stage, &agreement, "cell 10").await;
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
        let members = Watched::begin(&stage).await;
        stage.begin().await;
        let agreement = Agreement::before(&stage).await;
        stage.network.cut(0, 1).unwrap();
        tokio::time::sleep(FAULT).await;
        agreement.purge(&stage).await;
        heal(&stage, &agreement, "cell 11").await;
        for ((observer, other), seen) in members.end().await {
            println!("cell 11: {observer} saw {other} answer: {seen:?}");
            let concerned = observer + other == 1;
            assert!(seen.len() <= if concerned { 3 } else { 1 }, "a member flaps");
        }
        let fallbacks = stage.fallbacks().await;
        stage.end("cell 11", &bounds(fallbacks)).await;
    });
}

/// Two replicas do not reach each other, and a third one reaches both. Only what one of the two owns is asked for twice.
#[test]
fn two_replicas_reach_each_other_only_through_a_third_one() {
    cell("partitions::two_replicas_reach_each_other_only_through_a_third_one", || async {
        let mut stage = Stage::set().await;
        let members = Watched::begin(&stage).await;
        stage.begin().await;
        let agreement = Agreement::before(&stage).await;
        let quiet = stage.history.snapshot().given.len();
        stage.network.part(0, 2).unwrap();
        for (a, b) in [(0, 2), (2, 0)] {
            stage.cluster.sees(a, b, false).await.unwrap();
        }
        tokio::time::sleep(FAULT).await;
        agreement.purge(&stage).await;
        let during = stage.history.snapshot().given.len() - quiet;
        heal(&stage, &agreement, "partial partition").await;
        for ((observer, other), seen) in members.end().await {
            println!("partial partition: {observer} saw {other} answer: {seen:?}");
            // The severed pair loses and finds each other once; whoever reaches somebody never doubts it.
            let wanted: &[bool] = if observer + other == 2 { &[true, false, true] } else { &[true] };
            assert_eq!(seen, wanted, "{observer} sees {other}");
        }
        let fallbacks = stage.fallbacks().await;
        let verdict = stage.end("partial partition", &bounds(fallbacks)).await;
        println!("partial partition: {during} upstream queries during it, {fallbacks} fallbacks");
        // What the one in the middle owns both sides ask it for: nothing of that is fetched twice but by a fallback.
        // But for those that the cell itself purges.
        let of_the_middle = |name: &str| name.starts_with("name-") && stage.cluster.order(name)[0] == 1;
        let in_the_middle =
            verdict.extra.iter().filter(|extra| extra.split(' ').next().is_some_and(of_the_middle)).count();
        println!("partial partition: {in_the_middle} extra queries for names that the third one owns");
        assert!(in_the_middle <= fallbacks, "{:?}", verdict.extra);
        // The others are fetched by each of the two sides: at most twice what the whole cluster asks.
        assert!(verdict.extra.len() <= verdict.fetched / 2 + fallbacks, "{verdict}");
    });
}

//! Purges while the network is parted.

use std::time::Duration;

use heimdall_integration::history::{Bounds, Purged};
use heimdall_proto::v1::purge_cache_request::What;
use heimdall_proto::v1::{PurgeCacheRequest, ReplicaOutcome};
use heimdall_shared::clock::Moment;

use super::stage::{FAULT, NAMES, QUIET, Stage, cell};

/// Names that live longer than the run: only a purge takes them away.
const KEPT: usize = 40;

/// A replica that is told by its own side has done it within this time; what lies behind the cut is not waited for.
const WAIT_MS: u32 = 2_000;

/// After the mesh is whole again, copies that were purged meanwhile are gone with the first words on each link; a busy machine
/// may take this long to say and hear them.
const GONE_WITHIN: Duration = Duration::from_secs(5);

fn kept(number: usize) -> String {
    format!("kept-{number}.ttl-300.example.")
}

impl Stage {
    /// Purges a name at a replica, and writes down what that said.
    async fn purge(&self, at: usize, name: &str) -> Vec<usize> {
        let asked = Moment::now();
        let what = Some(What::Name(name.to_owned()));
        let request = PurgeCacheRequest { what, wait_ms: WAIT_MS, ..PurgeCacheRequest::default() };
        let results = self.cluster.agent(at).await.unwrap().purge_cache(request).await.unwrap().into_inner().results;
        let named = |name: &str| self.cluster.replicas().iter().position(|replica| replica.layout.name == name);
        let done: Vec<usize> = results
            .iter()
            .filter(|result| result.outcome() == ReplicaOutcome::Done)
            .filter_map(|result| named(&result.replica))
            .collect();
        let told = Moment::now();
        self.history.purged(Purged { name: name.to_owned(), asked, told, done: done.clone() });
        done
    }

    /// The number of the answer that a replica gives for a name.
    async fn number(&self, at: usize, name: &str) -> Vec<u8> {
        self.cluster.client(at).ask(name, "A").await.unwrap().answers[0].rdata.clone()
    }
}

/// Cell 33: names are purged on either side of a partition. Where it is done nothing comes back; the other side serves its
/// copies, and drops them when the mesh is whole again.
#[test]
fn cell_33_names_are_purged_on_both_sides_of_a_partition() {
    cell("purges::cell_33_names_are_purged_on_both_sides_of_a_partition", || async {
        let mut stage = Stage::set().await;
        let names: Vec<String> = (0..KEPT).map(kept).collect();
        stage.begin_with(names.clone()).await;
        for name in &names {
            for at in 0..3 {
                stage.number(at, name).await;
            }
        }
        // Undisturbed, so that what follows has something to compare with.
        assert_eq!(stage.purge(0, &names[0]).await.len(), 3, "while nothing is wrong");
        stage.network.part(0, 1).unwrap();
        stage.network.part(0, 2).unwrap();
        for (a, b) in [(0, 1), (0, 2), (1, 0), (2, 0)] {
            stage.cluster.sees(a, b, false).await.unwrap();
        }
        let (isolated, others) = (&names[1..KEPT / 2], &names[KEPT / 2..]);
        let before: Vec<Vec<u8>> = stage.numbers(0, others).await;
        for name in others {
            let mut done = stage.purge(1, name).await;
            done.sort_unstable();
            assert_eq!(done, [1, 2], "{name}");
        }
        for name in isolated {
            assert_eq!(stage.purge(0, name).await, [0], "{name}");
        }
        assert_eq!(stage.numbers(0, others).await, before, "the isolated side serves its copies");
        tokio::time::sleep(FAULT / 2).await;
        stage.network.heal().unwrap();
        let healed = Moment::now();
        stage.whole().await;
        let whole = Moment::now();
        println!("cell 33: whole again {:?} after the network", whole.since(healed));
        while stage.numbers(0, others).await.iter().zip(&before).any(|(now, before)| now == before) {
            assert!(Moment::now().since(whole) < GONE_WITHIN, "copies of before the purge are still served");
        }
        println!("cell 33: all copies dropped {:?} after the mesh was whole", Moment::now().since(whole));
        stage.history.healed(whole);
        tokio::time::sleep(2 * QUIET).await;
        let fallbacks = stage.fallbacks().await;
        let bounds = Bounds { lost: 0, extra: 4 * NAMES + 4 * KEPT + fallbacks, clock_error: 0.0 };
        stage.end("cell 33", &bounds).await;
    });
}

impl Stage {
    async fn numbers(&self, at: usize, names: &[String]) -> Vec<Vec<u8>> {
        let mut numbers = Vec::new();
        for name in names {
            numbers.push(self.number(at, name).await);
        }
        numbers
    }
}

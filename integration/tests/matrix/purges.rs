//! Purges while the network is parted.

use heimdall_integration::history::Bounds;
use heimdall_shared::clock::Moment;

use super::stage::{FAULT, NAMES, QUIET, Stage, cell};

/// Names that live longer than the run: only a purge takes them away.
const KEPT: usize = 40;

/// A replica that is told by its own side has done it within this time; what lies behind the cut is not waited for.
const WAIT_MS: u32 = 2_000;

fn kept(number: usize) -> String {
    format!("kept-{number}.ttl-300.example.")
}

/// Cell 33: names are purged on either side of a partition. Where it is done nothing comes back; the other side serves its
/// copies, and drops them when the mesh is whole again.
#[test]
fn cell_33_names_are_purged_on_both_sides_of_a_partition() {
    cell("purges::cell_33_names_are_purged_on_both_sides_of_a_partition", || async {
        let mut stage = Stage::set().await;
        let names: Vec<String> = (0..KEPT).map(kept).collect();
        stage.begin_with(names.clone()).await;
        for at in 0..3 {
            stage.numbers(at, &names).await;
        }
        // Undisturbed, so that what follows has something to compare with.
        assert_eq!(stage.purge(0, &names[0], WAIT_MS).await.len(), 3, "while nothing is wrong");
        stage.network.part(0, 1).unwrap();
        stage.network.part(0, 2).unwrap();
        for (a, b) in [(0, 1), (0, 2), (1, 0), (2, 0)] {
            stage.cluster.sees(a, b, false).await.unwrap();
        }
        let (isolated, others) = (&names[1..KEPT / 2], &names[KEPT / 2..]);
        let before: Vec<Vec<u8>> = stage.numbers(0, others).await;
        for name in others {
            let mut done = stage.purge(1, name, WAIT_MS).await;
            done.sort_unstable();
            assert_eq!(done, [1, 2], "{name}");
        }
        for name in isolated {
            assert_eq!(stage.purge(0, name, WAIT_MS).await, [0], "{name}");
        }
        assert_eq!(stage.numbers(0, others).await, before, "the isolated side serves its copies");
        tokio::time::sleep(FAULT / 2).await;
        stage.network.heal().unwrap();
        let healed = Moment::now();
        stage.whole().await;
        let whole = Moment::now();
        println!("cell 33: whole again {:?} after the network", whole.since(healed));
        stage.agree("cell 33", others, &before.iter().collect::<Vec<_>>(), whole).await;
        tokio::time::sleep(2 * QUIET).await;
        let fallbacks = stage.fallbacks().await;
        let bounds = Bounds { lost: 0, extra: 4 * NAMES + 4 * KEPT + fallbacks, clock_error: 0.0 };
        stage.end("cell 33", &bounds).await;
    });
}

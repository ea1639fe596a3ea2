//! Processes that die or stop.

use std::time::Duration;

use heimdall_integration::cluster::Part;
use heimdall_integration::history::Bounds;
use heimdall_integration::process::Signal;
use heimdall_shared::clock::Moment;
use tokio::task::JoinSet;

use super::agreement::Agreement;
use super::stage::{FAULT, QUIET, Stage, cell};

/// Clients of each replica that wait for one answer.
const CLIENTS: usize = 10;

/// Cell 8: the owner of a hot key is killed. Nobody is left without an answer, and the key costs at most a query per replica.
#[test]
fn cell_08_the_owner_of_a_hot_key_is_killed() {
    cell("processes::cell_08_the_owner_of_a_hot_key_is_killed", || async {
        let mut stage = Stage::set().await;
        let hot = Stage::name(0);
        let owner = stage.cluster.order(&hot)[0];
        stage.begin().await;
        let agreement = Agreement::before(&stage).await;
        stage.cluster.kill(owner, Part::Agent).await.unwrap();
        tokio::time::sleep(FAULT).await;
        agreement.purge(&stage).await;
        stage.cluster.start(owner, Part::Agent).unwrap();
        stage.cluster.ready(owner, Part::Agent).await.unwrap();
        stage.whole().await;
        stage.cluster.linked(owner).await.unwrap();
        agreement.reached(&stage, "cell 8", Moment::now()).await;
        tokio::time::sleep(QUIET).await;
        let fallbacks = stage.fallbacks().await;
        // What the killed owner alone knew, and what the restarted one does not know yet: a window of each name at most.
        let bounds = Bounds { lost: 0, extra: 2 * super::stage::NAMES + fallbacks, clock_error: 0.0 };
        let verdict = stage.end("cell 8", &bounds).await;
        let of_hot = verdict.extra.iter().filter(|extra| extra.starts_with(hot.as_str())).count();
        println!("cell 8: {of_hot} extra queries for {hot}, {fallbacks} fallbacks");
        assert!(of_hot <= stage.cluster.replicas().len() + fallbacks, "{:?}", verdict.extra);
    });
}

/// Cell 9: the holder of a lease is stopped between its grant and its answer. Those who wait are answered all the same, and
/// what it brings late, if it is taken, has no longer a life than it should.
#[test]
fn cell_09_the_holder_of_a_lease_is_stopped() {
    cell("processes::cell_09_the_holder_of_a_lease_is_stopped", || async {
        let mut stage = Stage::set().await;
        let name =
            (0..).map(|n| format!("held-{n}.ttl-8.example.")).find(|name| stage.cluster.order(name)[0] == 1).unwrap();
        stage.upstream.rule(&name, "A", stage.history.numbered_answers().after(Duration::from_millis(500)));
        let agreement = Agreement::before(&stage).await;
        let asking = tokio::spawn({
            let (client, name) = (stage.cluster.client(0), name.clone());
            async move { client.ask(&name, "A").await }
        });
        stage.upstream.journal().wait_for(&name, "A", 1).await;
        stage.cluster.signal(0, Part::Dns, Signal::SIGSTOP);
        let asked = Moment::now();
        let mut waiting = JoinSet::new();
        for replica in [1, 2] {
            for _ in 0..CLIENTS {
                let (client, name) = (stage.cluster.client(replica), name.clone());
                waiting.spawn(async move { client.ask(&name, "A").await });
            }
        }
        let told = waiting.join_all().await;
        let longest = Moment::now().since(asked);
        let count = stage.upstream.journal().count(&name, "A").resolutions;
        println!("cell 9: the others were told after {longest:?} at the latest, {count} resolutions");
        for reply in told {
            assert_eq!(reply.unwrap().rcode(), 0);
        }
        assert!(count <= 3, "one per replica at most: {count}");
        agreement.purge(&stage).await;
        stage.cluster.signal(0, Part::Dns, Signal::SIGCONT);
        let goes_on = Moment::now();
        assert_eq!(asking.await.unwrap().unwrap().rcode(), 0, "its own client is answered when it goes on");
        agreement.reached(&stage, "cell 9", goes_on).await;
        // From now on every client looks at what came late. The load goes on for some lifetimes of the name: what there is to
        // see is that nothing wrong comes in all of that time.
        stage.ask(100, vec![name]);
        tokio::time::sleep(Duration::from_secs(10)).await;
        let fallbacks = stage.fallbacks().await;
        let extra = 2 + agreement.costs() + fallbacks;
        stage.end("cell 9", &Bounds { lost: 0, extra, clock_error: 0.0 }).await;
    });
}

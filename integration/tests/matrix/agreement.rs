//! V8: when all replicas reach each other again, they soon agree on what is purged.

use std::time::Duration;

use heimdall_integration::cluster::LOOK_AGAIN;
use heimdall_integration::history::Purged;
use heimdall_proto::v1::purge_cache_request::What;
use heimdall_proto::v1::{PurgeCacheRequest, ReplicaOutcome};
use heimdall_shared::clock::Moment;

use super::stage::Stage;

/// How long agreeing may take. Purges are the first words on a link that is new; a busy machine may take this long to say and
/// hear them.
const AGREE_WITHIN: Duration = Duration::from_secs(5);

/// A purge while something is wrong is told to who can hear it, and who cannot is not waited for.
const NO_WAIT_MS: u32 = 1;

/// Names that live longer than a run, so that only a purge takes them away: one that each replica will be told to purge.
pub(crate) struct Agreement {
    names: Vec<String>,
    /// The answer of each name that all replicas have.
    before: Vec<Vec<u8>>,
}

impl Agreement {
    /// Has every replica know the names, while nothing is wrong.
    pub(crate) async fn before(stage: &Stage) -> Self {
        let names: Vec<String> =
            (0..stage.cluster.replicas().len()).map(|replica| format!("agreed-{replica}.ttl-300.example.")).collect();
        let before = stage.numbers(0, &names).await;
        for replica in 1..names.len() {
            assert_eq!(stage.numbers(replica, &names).await, before, "one answer for all while nothing is wrong");
        }
        Self { names, before }
    }

    /// While something is wrong: each replica whose agent runs is told to purge its name.
    pub(crate) async fn purge(&self, stage: &Stage) {
        let mut told = 0;
        for (replica, name) in self.names.iter().enumerate() {
            if stage.cluster.agent(replica).await.is_ok() {
                stage.purge(replica, name, NO_WAIT_MS).await;
                told += 1;
            }
        }
        assert!(told > 0, "no agent could be told to purge anything");
    }

    /// Upstream queries that the purges cost a mesh that is whole: each name is fetched anew.
    pub(crate) const fn costs(&self) -> usize {
        self.names.len()
    }

    /// All reach each other again, since `whole`: soon none of them has an answer of before the purges.
    pub(crate) async fn reached(&self, stage: &Stage, what: &str, whole: Moment) {
        let purged = stage.history.snapshot().purged;
        let purged = |name: &String| purged.iter().any(|purged| purged.name == *name);
        let (names, before): (Vec<_>, Vec<_>) =
            self.names.iter().cloned().zip(&self.before).filter(|(name, _)| purged(name)).unzip();
        stage.agree(what, &names, &before, whole).await;
    }
}

impl Stage {
    /// Purges a name at a replica, and writes down what that said: who has done it.
    pub(crate) async fn purge(&self, at: usize, name: &str, wait_ms: u32) -> Vec<usize> {
        let asked = Moment::now();
        let what = Some(What::Name(name.to_owned()));
        let request = PurgeCacheRequest { what, wait_ms, ..PurgeCacheRequest::default() };
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

    /// The numbers of the answers that a replica gives for some names.
    pub(crate) async fn numbers(&self, at: usize, names: &[String]) -> Vec<Vec<u8>> {
        let mut numbers = Vec::new();
        for name in names {
            numbers.push(self.cluster.client(at).ask(name, "A").await.unwrap().answers[0].rdata.clone());
        }
        numbers
    }

    /// Waits until no replica gives an answer of `before` for these names any more.
    pub(crate) async fn agree(&self, what: &str, names: &[String], before: &[&Vec<u8>], whole: Moment) {
        for replica in 0..self.cluster.replicas().len() {
            while self.numbers(replica, names).await.iter().zip(before).any(|(now, before)| now == *before) {
                let since = Moment::now().since(whole);
                assert!(since < AGREE_WITHIN, "{what}: V8 replica {replica} serves what was purged {since:?} after");
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        println!("{what}: all agree on {} purges {:?} after all were whole", names.len(), Moment::now().since(whole));
        self.history.healed(whole);
    }
}

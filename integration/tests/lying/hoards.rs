//! Leases that a member takes and does nothing with.

use std::collections::BTreeSet;
use std::sync::Mutex;

use heimdall_integration::cluster::{Cluster, Part};
use heimdall_integration::upstream::Upstream;
use heimdall_shared::link::{Link, Message, Reply};

use super::liar::Liar;
use super::lies::{LIAR, join};

/// Leases that run out before a member gets no more.
const OVERDUE: usize = 8;

/// Short, so that the test is; a holder that works publishes within it.
const LEASE: &str = "2s";

/// Takes every lease for itself and says, whenever it is asked to, that it works on it.
fn hoard(link: &Link, message: &Message) {
    static HELD: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());
    match message {
        Message::Reply { reply: Reply::Granted { token, .. }, .. } => {
            HELD.lock().unwrap().insert(token.counter);
        }
        Message::Watch { token } if HELD.lock().unwrap().contains(&token.counter) => {
            let _ = link.push(Message::Tick { working: vec![token.clone()], struggling: Vec::new() });
        }
        _ => {}
    }
}

fn answer_to(liar: &Liar, id: u64) -> Option<Reply> {
    let answers = liar.heard(1, |message| match message {
        Message::Reply { id: to, reply } if *to == id => Some(reply.clone()),
        _ => None,
    });
    answers.into_iter().next()
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_that_are_hoarded_cost_a_wait_and_no_answer_and_then_there_are_none() {
    let upstream = Upstream::start().await.unwrap();
    let builder = Cluster::builder().replicas(LIAR).spares(1).agent_option("--lease", LEASE);
    let mut cluster = builder.start(&upstream).await.unwrap();
    cluster.set_members(&[0, 1, 2, LIAR]).unwrap();
    let mut liar = Liar::of(&cluster, LIAR, hoard);
    join(&mut liar, &cluster, &[1]).await;
    let names: Vec<String> = (0..OVERDUE).map(|n| cluster.name_owned_by(1, &format!("hoarded{n}"))).collect();
    for (name, id) in names.iter().zip((1..).step_by(2)) {
        liar.ask_for(1, id, name).unwrap();
        cluster.until("an answer", async || answer_to(&liar, id).is_some()).await.unwrap();
        let answer = answer_to(&liar, id);
        assert!(matches!(answer, Some(Reply::Granted { .. })), "{name}: {answer:?}");
    }
    // Whoever asks meanwhile is answered rightly: after silence, when the lease runs out, or when its own time does.
    let asked = names.iter().flat_map(|name| [(0, name), (1, name), (2, name)]);
    let answers = asked.map(async |(replica, name)| cluster.client(replica).ask_address(name).await);
    for answer in futures_util::future::join_all(answers).await {
        answer.unwrap();
    }
    let stopped = async || {
        let metrics = cluster.metrics(1, Part::Agent).await.unwrap();
        metrics.sum("heimdall_agent_leases_total", &["event=\"hoarder_stopped\""])
    };
    // Some may have ended by an answer from elsewhere; it goes on until it has gone too far.
    let mut id = 1_001;
    cluster
        .until("nothing more is granted to it", async || {
            liar.ask_for(1, id, &cluster.name_owned_by(1, &format!("more{id}"))).unwrap();
            id += 2;
            stopped().await == 1.0
        })
        .await
        .unwrap();
    let name = cluster.name_owned_by(1, "at-last");
    id += 2;
    liar.ask_for(1, id, &name).unwrap();
    cluster.until("an answer", async || answer_to(&liar, id).is_some()).await.unwrap();
    assert_eq!(answer_to(&liar, id), Some(Reply::Proceed));
    cluster.client(0).ask_address(&name).await.unwrap();
    cluster.shut_down().await.unwrap();
}

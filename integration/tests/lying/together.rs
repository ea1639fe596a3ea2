//! Cell 41 of the fault matrix: a member does all at once what it should not, under load. No client is left without an answer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use heimdall_integration::cluster::{Cluster, LOOK_AGAIN, Part};
use heimdall_integration::upstream::Upstream;
use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::link::{Condition, DegradedReason, FailureKind, Link, Message, NodeState, Publish, Reply};
use heimdall_shared::token::Token;
use tokio::task::JoinSet;

use super::liar::{LIE, Liar, lie, packet};
use super::lies::{LIAR, cut_offs, is_lie, join};

/// Clients of each replica, each of which asks one question after the other.
const CLIENTS: usize = 8;

/// Names that are asked for, each once by every client, while the member is there.
const NAMES: usize = 150;

/// What it has heard of, to send it again later: keys and tokens that others use.
#[derive(Default)]
struct Loot {
    keys: Mutex<Vec<Key>>,
    tokens: Mutex<Vec<Token>>,
    turn: AtomicU64,
}

impl Loot {
    /// A different one of its tricks with each question that it hears.
    fn answer(&self, link: &Link, id: u64, key: &Key) {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let token = Token { granter: "nobody".into(), incarnation: 1, counter: turn };
        let entry = match turn % 6 {
            0 => lie(key),
            // A hundred times what its record says, and a hundred times what any record may say.
            1 => Entry { lifetime: Duration::from_secs(30_000), ..lie(key) },
            2 => Entry { packet: packet(key, LIE, 8_640_000), ..lie(key) },
            // No answer to this question.
            3 => Entry { packet: packet(key, LIE, 300).slice(..20), ..lie(key) },
            // Somebody fetches it, and nobody does.
            4 => {
                let _ = link.push(Message::Reply { id, reply: Reply::Held { token, holder: None } });
                return;
            }
            _ => return,
        };
        let _ = link.push(Message::Reply { id, reply: Reply::Entry(entry) });
    }

    fn hear(&self, link: &Link, message: &Message) {
        match message {
            Message::Lookup { id, lookup } => {
                self.keys.lock().unwrap().push(lookup.key.clone());
                self.answer(link, *id, &lookup.key);
            }
            Message::Copy { key, .. } => self.keys.lock().unwrap().push(key.clone()),
            Message::Reply { reply: Reply::Granted { token, .. } | Reply::Held { token, .. }, .. } => {
                self.tokens.lock().unwrap().push(token.clone());
            }
            // Whoever waits for its leases shall go on waiting.
            Message::Watch { token } => {
                let _ = link.push(Message::Tick { working: vec![token.clone()], struggling: Vec::new() });
            }
            _ => {}
        }
    }

    /// What it does without being asked.
    fn pester(&self, link: &Link) {
        let reasons = vec![DegradedReason::Upstreams];
        let _ = link.push(Message::NodeState(NodeState { condition: Condition::Degraded, reasons }));
        let _ = link.push(Message::UpstreamState { failing: true });
        let keys = std::mem::take(&mut *self.keys.lock().unwrap());
        for key in keys {
            let _ = link.push(Message::Copy { key: key.clone(), entry: lie(&key), write: None });
            let stale = Entry { born: Moment::now().minus(Duration::from_secs(10)), ..lie(&key) };
            let _ = link.push(Message::Copy { key: key.clone(), entry: stale.clone(), write: None });
            let publish = Publish { key, entry: stale, token: None, level: None };
            let _ = link.push(Message::Publish { id: 0, publish });
        }
        let tokens = std::mem::take(&mut *self.tokens.lock().unwrap());
        for token in tokens.into_iter().filter(|token| token.counter % 2 == 0) {
            let _ = link.push(Message::Fail { token: token.clone(), kind: FailureKind::Local });
            let _ = link.push(Message::Release { token });
        }
    }
}

/// Clients ask until they have asked for all names; gives the lies that they were told.
async fn load(cluster: &Cluster, label: &str) -> usize {
    let names: Arc<Vec<String>> = Arc::new((0..NAMES).map(|number| format!("{label}-{number}.example.")).collect());
    let mut clients = JoinSet::new();
    for (replica, client) in (0..LIAR).flat_map(|replica| (0..CLIENTS).map(move |client| (replica, client))) {
        let (server, names) = (cluster.client(replica), Arc::clone(&names));
        clients.spawn(async move {
            let mut lies = 0;
            for number in 0..NAMES {
                // Not all at the same place, so that some come to what others have just fetched.
                let name = &names[(number + client * NAMES / CLIENTS) % NAMES];
                // No answer, and one that is neither the lie nor the truth, fail here.
                lies += usize::from(is_lie(&server.ask(name, "A").await.unwrap(), name));
            }
            lies
        });
    }
    clients.join_all().await.into_iter().sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn cell_41_a_member_does_everything_wrong_at_once_and_nobody_is_left_without_an_answer() {
    let upstream = Upstream::start().await.unwrap();
    // An attempt has time on a busy machine, and a lease that nobody uses ends long before a client's time does.
    let builder = Cluster::builder().replicas(LIAR).spares(1).replication_factor(2);
    let builder = builder.dns_option("--attempt-timeout", "5s").dns_option("--query-budget", "12s");
    let builder = builder.agent_option("--lease", "2s").agent_option("--peer-sample", "1");
    let mut cluster = builder.start(&upstream).await.unwrap();
    cluster.set_members(&[0, 1, 2, LIAR]).unwrap();
    let loot = Arc::<Loot>::default();
    let hears = Arc::clone(&loot);
    let mut liar = Liar::of(&cluster, LIAR, move |link: &Link, message: &Message| hears.hear(link, message));
    join(&mut liar, &cluster, &[0, 1, 2]).await;
    let over = AtomicBool::new(false);
    let misbehave = async {
        let mut id = 1;
        while !over.load(Ordering::Relaxed) {
            for replica in 0..LIAR {
                let link = liar.link(replica);
                loot.pester(link);
                // Takes the leases of names that clients ask for, and does nothing with them. Its link ends at some time.
                let _ = liar.ask_for(replica, id, &format!("evil-{}.example.", id as usize % NAMES));
                id += 2;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let loaded = async {
        let lies = load(&cluster, "evil").await;
        over.store(true, Ordering::Relaxed);
        lies
    };
    let ((), lies) = tokio::join!(misbehave, loaded);
    let asked = LIAR * CLIENTS * NAMES;
    let tricks = loot.turn.load(Ordering::Relaxed);
    println!("cell 41: {asked} asked, 0 lost, {lies} lies told, the member was asked {tricks} times");
    assert!(tricks > 0, "nobody asked it for anything");
    // Each replica finds out for itself, and then there are no lies any more.
    let mut round = 0;
    cluster
        .until("all replicas have cut it off", async || {
            round += 1;
            let mut cut_off = 0;
            for replica in 0..LIAR {
                let name = cluster.name_owned_by(LIAR, &format!("more-{round}"));
                is_lie(&cluster.client(replica).ask(&name, "A").await.unwrap(), &name);
                cut_off += usize::from(cut_offs(&cluster, replica, LIAR).await > 0);
            }
            cut_off == LIAR
        })
        .await
        .unwrap();
    assert_eq!(load(&cluster, "after").await, 0, "who is cut off is not believed");
    for replica in 0..LIAR {
        for other in (0..LIAR).filter(|other| *other != replica) {
            assert_eq!(cut_offs(&cluster, replica, other).await, 0, "{replica} has cut off {other}, which is honest");
        }
    }
    let refused = cluster.total(Part::Agent, "heimdall_agent_refused_entries_total", &[]).await;
    println!("cell 41: {refused} entries were refused, then {asked} asked and no lie told");
    assert!(refused > 0.0);
    cluster.shut_down().await.unwrap();
}

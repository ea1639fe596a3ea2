//! Lies are found out by comparing with the upstream, and the member that tells them is cut off.

use heimdall_integration::cluster::{Cluster, Part};
use heimdall_integration::unary;
use heimdall_integration::upstream::{Upstream, address_of};
use heimdall_integration::wire::{Message as Dns, Name};
use heimdall_proto::v1::{GetCacheEntryRequest, ListMembersRequest, Member, MemberState};
use heimdall_shared::dns::name;
use heimdall_shared::key::{Flags, Key};
use heimdall_shared::link::{Link, Message, Publish, Reply};
use tonic::Code;

use super::liar::{LIE, Liar, lie};

/// The member that nobody has started: the test is it.
pub(crate) const LIAR: usize = 3;

/// Lies before a member is cut off.
const LIES: usize = 3;

/// Three replicas, each of which checks one in `sample` answers of the others, and a fourth member.
async fn start(sample: &str) -> (Upstream, Cluster) {
    let upstream = Upstream::start().await.unwrap();
    let builder = Cluster::builder().replicas(LIAR).spares(1).long_budgets().agent_option("--peer-sample", sample);
    let builder = builder.agent_option("--log", "info,heimdall_agent::trust=debug");
    let mut cluster = builder.start(&upstream).await.unwrap();
    cluster.set_members(&[0, 1, 2, LIAR]).unwrap();
    (upstream, cluster)
}

pub(crate) async fn join(liar: &mut Liar, cluster: &Cluster, replicas: &[usize]) {
    for &replica in replicas {
        // It is a stranger until the replica has read its members anew.
        cluster.until("the member is known", async || member(cluster, replica).await.is_some()).await.unwrap();
        liar.join(cluster, replica).await;
        cluster.sees(replica, LIAR, true).await.unwrap();
    }
}

/// The liar as a replica sees it.
pub(crate) async fn member(cluster: &Cluster, replica: usize) -> Option<Member> {
    let members = cluster.agent(replica).await.ok()?.list_members(ListMembersRequest {}).await.ok()?.into_inner();
    members.members.into_iter().find(|member| member.name == cluster.replica(LIAR).layout.name)
}

pub(crate) fn key(name: &str) -> Key {
    Key::new(&name::from_text(name).unwrap(), 1, 1, Flags::default(), "").unwrap()
}

/// Whether the answer is the lie; else it must be the truth.
pub(crate) fn is_lie(reply: &Dns, name: &str) -> bool {
    let told = reply.answers.last().unwrap_or_else(|| panic!("{name}: {reply:?}")).rdata.clone();
    assert!(told == LIE || told == address_of(&Name::parse(name).unwrap()).octets(), "{name}: {reply:?}");
    told == LIE
}

pub(crate) async fn cut_offs(cluster: &Cluster, replica: usize, of: usize) -> u64 {
    let label = format!("member=\"{}\"", cluster.replica(of).layout.name);
    let metrics = cluster.metrics(replica, Part::Agent).await.unwrap();
    metrics.sum("heimdall_agent_members_cut_off_total", &[&label]) as u64
}

/// Waits until a replica has judged so many answers, or given up on them.
async fn checked(cluster: &Cluster, replica: usize, answers: usize) {
    cluster
        .until("the answers are checked", async || {
            let metrics = cluster.metrics(replica, Part::Agent).await.unwrap();
            metrics.sum("heimdall_agent_peer_checks_total", &[]) as usize >= answers
        })
        .await
        .unwrap();
}

/// It answers every question with a lie.
fn lies(link: &Link, message: &Message) {
    if let Message::Lookup { id, lookup } = message {
        let _ = link.push(Message::Reply { id: *id, reply: Reply::Entry(lie(&lookup.key)) });
    }
}

fn lookups(liar: &Liar, from: usize) -> usize {
    liar.heard(from, |message| matches!(message, Message::Lookup { .. }).then_some(())).len()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_lies_is_cut_off_and_its_lies_are_told_no_longer() {
    let (_upstream, cluster) = start("1").await;
    let mut liar = Liar::of(&cluster, LIAR, lies);
    join(&mut liar, &cluster, &[0]).await;
    let mut names = Vec::new();
    while cut_offs(&cluster, 0, LIAR).await == 0 {
        let name = cluster.name_owned_by(LIAR, &format!("lied{}", names.len()));
        if is_lie(&cluster.client(0).ask(&name, "A").await.unwrap(), &name) {
            names.push(name);
            checked(&cluster, 0, names.len()).await;
        }
    }
    assert!(names.len() >= LIES);
    cluster.sees(0, LIAR, false).await.unwrap();
    // What was checked is told right, also from the caches, and nothing more is taken from it.
    let mut right = 0;
    for name in &names {
        right += usize::from(!is_lie(&cluster.client(0).ask(name, "A").await.unwrap(), name));
    }
    assert!(right >= LIES, "{right} of {names:?}");
    let asked = lookups(&liar, 0);
    for number in 0..20 {
        let name = cluster.name_owned_by(LIAR, &format!("later{number}"));
        assert!(!is_lie(&cluster.client(0).ask(&name, "A").await.unwrap(), &name));
    }
    assert_eq!(lookups(&liar, 0), asked);
    let seen = member(&cluster, 0).await.unwrap();
    assert!(seen.cut_off_ms > 0 && seen.cut_off_ms <= 300_000, "{seen:?}");
    assert_eq!(seen.state(), MemberState::Dead);
    assert!(seen.reason.starts_with("cut off: 3 of "), "{seen:?}");
    // The door is closed to it, by stream and by call; the others never dealt with it and still would.
    liar.join(&cluster, 0).await;
    liar.link(0).closed().await;
    let request = GetCacheEntryRequest { key: unary::key(&names[0]) };
    let refused = liar.client(&cluster, 0).await.get_cache_entry(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("cut off"), "{refused}");
    assert_eq!(cut_offs(&cluster, 1, LIAR).await, 0);
    for other in [1, 2] {
        assert_eq!(cut_offs(&cluster, 0, other).await, 0);
    }
    cluster.shut_down().await.unwrap();
}

/// Gets the lease on a name from its owner, and publishes a lie under it.
async fn publish(liar: &Liar, cluster: &Cluster, owner: usize, id: u64, name: &str) {
    if liar.ask_for(owner, id, name).is_err() {
        return;
    }
    // The link may end at any moment: then there is nothing more to publish.
    let granted = || {
        liar.heard(owner, |message| match message {
            Message::Reply { id: to, reply: Reply::Granted { token, .. } } if *to == id => Some(token.clone()),
            _ => None,
        })
    };
    let is_over = || liar.link(owner).is_closed() || !granted().is_empty();
    cluster.until("the lease is granted", async || is_over()).await.unwrap();
    let publish = Publish { key: key(name), entry: lie(&key(name)), token: granted().pop(), level: None };
    let _ = liar.link(owner).push(Message::Publish { id: 0, publish });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_lies_is_cut_off_and_not_the_owner_that_passed_its_lies_on() {
    let (_upstream, cluster) = start("1").await;
    let mut liar = Liar::of(&cluster, LIAR, lies);
    join(&mut liar, &cluster, &[1, 2]).await;
    // The owner's own upstream is out of reach, so that it cannot find out by itself.
    cluster.replica(1).door.blackhole(true);
    let mut passed = 0;
    while cut_offs(&cluster, 2, LIAR).await == 0 {
        let name = cluster.name_ordered(&[1, 0, 2], &format!("passed{passed}"));
        passed += 1;
        publish(&liar, &cluster, 1, 2 * passed as u64 + 1, &name).await;
        assert!(is_lie(&cluster.client(2).ask(&name, "A").await.unwrap(), &name), "nobody knows better yet");
        checked(&cluster, 2, passed).await;
    }
    assert!(passed >= LIES);
    for other in [0, 1] {
        assert_eq!(cut_offs(&cluster, 2, other).await, 0, "replica {other} only passed on what it was given");
    }
    // The owner was told, and finds out as soon as it can ask.
    cluster.replica(1).door.blackhole(false);
    cluster
        .until("the owner finds out", async || {
            if cut_offs(&cluster, 1, LIAR).await == 0 {
                let name = cluster.name_ordered(&[1, 0, 2], &format!("passed{passed}"));
                passed += 1;
                publish(&liar, &cluster, 1, 2 * passed as u64 + 1, &name).await;
            }
            cut_offs(&cluster, 1, LIAR).await == 1
        })
        .await
        .unwrap();
    cluster.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn honest_members_are_checked_and_never_cut_off() {
    let (upstream, cluster) = start("1").await;
    let mut names = Vec::new();
    for number in 0..60 {
        let name = cluster.name_owned_by(number % LIAR, &format!("honest{number}"));
        for replica in 0..LIAR {
            cluster.client(replica).ask_address(&name).await.unwrap();
        }
        names.push(name);
    }
    cluster
        .until("answers were checked", async || {
            cluster.total(Part::Agent, "heimdall_agent_peer_checks_total", &["result=\"agrees\""]).await >= 20.0
        })
        .await
        .unwrap();
    assert!(names.iter().map(|name| upstream.journal().count(name, "A").resolutions).sum::<usize>() > names.len());
    assert_eq!(cluster.total(Part::Agent, "heimdall_agent_members_cut_off_total", &[]).await, 0.0);
    cluster.shut_down().await.unwrap();
}

//! S14: what a member says of its own health, and of upstreams, changes no answer and nobody else's health.

use std::time::Duration;

use heimdall_integration::cluster::Part;
use heimdall_integration::unary;
use heimdall_proto::v1::{AcquireQueryLockRequest, ListMembersRequest, MemberState, lock_answer};
use heimdall_shared::link::{Condition, DegradedReason, FailureKind, Message, NodeState, Reply};
use heimdall_shared::wire;

use super::lies::{LIAR, member};
use super::scene::{Scene, TOLD};

/// Names that clients ask for.
const NAMES: usize = 30;

#[tokio::test(flavor = "multi_thread")]
async fn s14_a_member_s_word_about_health_changes_no_answer() {
    let scene = Scene::set().await;
    let link = scene.liar.link(TOLD);
    let reasons = vec![DegradedReason::Upstreams, DegradedReason::Memory];
    link.push(Message::NodeState(NodeState { condition: Condition::Degraded, reasons })).unwrap();
    // Only a replica's own dns-server may say that of its upstreams.
    link.push(Message::UpstreamState { failing: true }).unwrap();
    scene
        .cluster
        .until("what the member says of itself is shown", async || {
            member(&scene.cluster, TOLD).await.is_some_and(|member| member.state() == MemberState::Degraded)
        })
        .await
        .unwrap();
    assert_eq!(scene.counted("heimdall_agent_unexpected_messages_total", &[]).await, 1);
    // The replica itself knows better.
    let seen = scene.cluster.agent(TOLD).await.unwrap().list_members(ListMembersRequest {}).await.unwrap().into_inner();
    let own = seen.members.iter().find(|member| member.is_self).unwrap();
    let is_told = own.degraded.iter().any(|&reason| reason == i32::from(heimdall_proto::v1::DegradedReason::Upstreams));
    assert!(!is_told, "{own:?}");
    for number in 0..NAMES {
        let name = scene.name(&[number % LIAR], &format!("s14-{number}"));
        for replica in 0..LIAR {
            scene.cluster.client(replica).ask_address(&name).await.unwrap();
        }
        assert_eq!(scene.upstream.journal().count(&name, "A").resolutions, 1, "{name}");
    }
    let servfail = scene.cluster.total(Part::Dns, "heimdall_miss_outcome_total", &["outcome=\"failure\""]).await;
    assert_eq!(servfail, 0.0, "nobody was told that upstreams fail");
    scene.cluster.shut_down().await.unwrap();
}

/// What a member says of upstreams is believed once: then whoever is told so asks for himself.
#[tokio::test(flavor = "multi_thread")]
async fn s14_a_member_that_says_that_all_upstreams_fail_keeps_no_name_from_anybody() {
    let scene = Scene::set().await;
    scene.fails(Duration::from_secs(3_600));
    let name = scene.name(&[LIAR, TOLD], "s14-failed");
    let client = scene.cluster.client(TOLD);
    let told = client.ask(&name, "A").await.unwrap();
    assert_eq!(told.rcode(), 2, "nobody knows better yet: {told:?}");
    assert_eq!(scene.upstream.journal().count(&name, "A").packets, 0);
    scene
        .cluster
        .until("the name is answered", async || client.ask(&name, "A").await.unwrap().rcode() == 0)
        .await
        .unwrap();
    client.ask_address(&name).await.unwrap();
    assert_eq!(scene.upstream.journal().count(&name, "A").resolutions, 1);
    scene.cluster.shut_down().await.unwrap();
}

/// S13: a lease is given back, failed or kept at work by its holder alone, whoever knows its token.
#[tokio::test(flavor = "multi_thread")]
async fn s13_a_lease_of_somebody_else_s_is_not_a_member_s_to_end() {
    let scene = Scene::set().await;
    let name = scene.name(&[TOLD, 1], "s13");
    let request = AcquireQueryLockRequest { key: unary::key(&name) };
    let mut holder = scene.cluster.agent(1).await.unwrap();
    let asked = holder.acquire_query_lock(request.clone()).await.unwrap().into_inner();
    let Some(lock_answer::Kind::Granted(lease)) = asked.answer.and_then(|answer| answer.kind) else {
        panic!("{name}: no lease")
    };
    // Whoever waits for a lease knows its token.
    scene.liar.ask_for(TOLD, 1, &name).unwrap();
    let token = scene
        .hears(|message| match message {
            Message::Reply { id: 1, reply: Reply::Held { token, .. } } => Some(token.clone()),
            _ => None,
        })
        .await;
    assert_eq!(wire::token_to_proto(&token), lease.token.clone().unwrap());
    let link = scene.liar.link(TOLD);
    for kind in [FailureKind::Shared, FailureKind::Local] {
        link.push(Message::Fail { token: token.clone(), kind }).unwrap();
    }
    link.push(Message::Release { token: token.clone() }).unwrap();
    let released = heimdall_proto::v1::ReleaseQueryLockRequest { token: lease.token.clone() };
    let mut client = scene.liar.client(&scene.cluster, TOLD).await;
    assert!(!client.release_query_lock(released).await.unwrap().into_inner().released);
    // What was said on the link was heard by then: the next question on it is answered.
    scene.liar.ask_for(TOLD, 3, &name).unwrap();
    scene.hears(|message| matches!(message, Message::Reply { id: 3, reply: Reply::Held { .. } }).then_some(())).await;
    let asked = scene.cluster.agent(2).await.unwrap().acquire_query_lock(request).await.unwrap().into_inner();
    let still = asked.answer.and_then(|answer| answer.kind);
    assert!(matches!(still, Some(lock_answer::Kind::Held(_))), "{still:?}");
    let refused = scene.counted("heimdall_agent_leases_total", &["event=\"refused\""]).await;
    assert_eq!(refused, 4, "each of its four attempts is counted");
    // The holder ends it, and all who wait have what it brings.
    let entry = unary::entry(&name, &[unary::address(&name)]);
    let publish =
        heimdall_proto::v1::SetCacheEntryRequest { key: unary::key(&name), entry, token: lease.token, level: 0 };
    assert!(holder.set_cache_entry(publish).await.unwrap().into_inner().stored);
    scene.hears(|message| matches!(message, Message::Reply { id: 1, reply: Reply::Entry(_) }).then_some(())).await;
    scene.cluster.shut_down().await.unwrap();
}

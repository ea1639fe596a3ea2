//! The upstream against the harness's own client: the instruments are calibrated before they measure.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::client::Client;

#[tokio::test]
async fn a_tcp_only_answer_is_one_resolution_and_two_packets() {
    let upstream = Upstream::start().await.unwrap();
    upstream.rule("big.example.", "A", Rule::addresses().tcp_only());
    Client::new(upstream.address()).ask_address("big.example.").await.unwrap();
    assert_eq!(upstream.journal().count("BIG.example.", "A"), Count { packets: 2, resolutions: 1 });
}

#[tokio::test]
async fn the_same_question_through_two_doors_is_two_resolutions() {
    let upstream = Upstream::start().await.unwrap();
    let gate = Gate::default();
    upstream.rule("slow.example.", "A", Rule::addresses().held_by(&gate));
    let second = upstream.new_door().await.unwrap();
    let clients = [upstream.address(), second.address(), upstream.address()].map(Client::new);
    let asked = clients.map(|client| tokio::spawn(async move { client.ask_address("slow.example.").await }));
    upstream.journal().wait_for("slow.example.", "A", 3).await;
    gate.open();
    for answer in asked {
        answer.await.unwrap().unwrap();
    }
    // The second question through the first door came while the first was open: a retransmission.
    assert_eq!(upstream.journal().count("slow.example.", "A"), Count { packets: 3, resolutions: 2 });
}

#[tokio::test]
async fn names_that_do_not_exist_say_so_with_an_soa() {
    let upstream = Upstream::start().await.unwrap();
    upstream.rule_for_name("gone.example.", Rule::nxdomain());
    let reply = Client::new(upstream.address()).ask("gone.example.", "MX").await.unwrap();
    assert_eq!((reply.rcode(), reply.authority[0].rtype), (3, 6));
}

#[tokio::test]
async fn what_is_only_counted_is_not_kept() {
    let upstream = Upstream::start().await.unwrap();
    let client = Client::new(upstream.address());
    client.ask_address("kept.example.").await.unwrap();
    upstream.journal().count_only();
    client.ask_address("counted.example.").await.unwrap();
    assert_eq!(upstream.journal().received().len(), 1);
    assert_eq!(upstream.journal().total(), Count { packets: 2, resolutions: 2 });
}

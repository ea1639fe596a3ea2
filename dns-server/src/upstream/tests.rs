//! Resolutions against scripted upstreams on real sockets.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use heimdall_shared::dns::message::HEADER;
use tokio::net::UdpSocket;

use super::scripted::*;
use super::*;

/// More than any test needs: a test that reaches it hangs for want of an answer.
const BUDGET: Duration = Duration::from_secs(20);

fn upstreams(servers: &[SocketAddr]) -> Upstreams {
    let servers = servers.iter().map(|&socket| Address { socket, transport: Transport::Udp }).collect();
    with(servers, BUDGET)
}

fn with(servers: Vec<Address>, attempt_timeout: Duration) -> Upstreams {
    let settings = Settings {
        servers,
        attempt_timeout,
        mix_case: true,
        explore: false,
        resolutions_max: RESOLUTIONS_MAX,
        avoided_ports: Vec::new(),
        limits: TtlLimits::default(),
    };
    Upstreams::new(settings, &Metrics::default(), &Tracer::off())
}

async fn resolve(upstreams: &Upstreams) -> Resolution {
    upstreams.resolve(&key(), Instant::now() + BUDGET, None, || {}).await
}

fn is_answer(resolution: &Resolution) -> bool {
    matches!(&resolution.outcome, Outcome::Answer { answer, .. } if answer.lifetime == Duration::from_secs(60))
}

#[tokio::test]
async fn an_answer_comes_in_normal_form_and_its_life_counts_from_the_query() {
    let (server, mut seen) = upstream(|_, query| vec![answer(query)]).await;
    let before = Moment::now();
    let resolution = resolve(&upstreams(&[server])).await;
    let Outcome::Answer { answer, born } = resolution.outcome else { panic!("{resolution:?}") };
    assert_eq!(&answer.packet[..2], [0, 0]);
    assert_eq!(&answer.packet[HEADER..HEADER + NAME.len()], NAME);
    assert!(born >= before && born <= Moment::now());
    assert_eq!(resolution.packets, 1);
    assert_eq!(seen.recv().await.unwrap().packet.len(), QUESTION_END + 11);
}

#[tokio::test]
async fn forged_and_broken_packets_before_the_answer_change_nothing() {
    let (server, _seen) = upstream(|_, query| {
        let good = answer(query);
        let change = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut packet = good.clone();
            *packet.last_mut().unwrap() = 66;
            change(&mut packet);
            packet
        };
        vec![
            Vec::new(),
            vec![0; 5],
            vec![0xFF; 4_096],
            change(&|packet| packet[0] ^= 1),
            change(&|packet| packet[2] &= 0x7F),
            change(&|packet| packet[2] |= 0x10),
            change(&|packet| packet[5] = 0),
            change(&|packet| packet[HEADER + 1] = b'q'),
            change(&|packet| packet[QUESTION_END - 3] = 28),
            change(&|packet| packet[QUESTION_END - 1] = 3),
            change(&|packet| packet.truncate(packet.len() - 1)),
            change(&|packet| packet[7] = 9),
            good,
        ]
    })
    .await;
    let resolution = resolve(&upstreams(&[server])).await;
    let Outcome::Answer { answer, .. } = &resolution.outcome else { panic!("{resolution:?}") };
    assert_eq!(answer.packet.last(), Some(&1));
    assert_eq!(resolution.packets, 1);
}

#[tokio::test]
async fn a_packet_from_another_address_is_not_even_read() {
    let forger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let honest = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let server = honest.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 4_096];
        let (length, from) = honest.recv_from(&mut buffer).await.unwrap();
        let mut forged = answer(&buffer[..length]);
        *forged.last_mut().unwrap() = 66;
        forger.send_to(&forged, from).await.unwrap();
        honest.send_to(&answer(&buffer[..length]), from).await.unwrap();
    });
    let resolution = resolve(&upstreams(&[server])).await;
    let Outcome::Answer { answer, .. } = &resolution.outcome else { panic!("{resolution:?}") };
    assert_eq!(answer.packet.last(), Some(&1));
}

#[tokio::test]
async fn every_query_has_a_socket_and_an_id_of_its_own() {
    const QUERIES: usize = 500;
    let (server, mut seen) = upstream(|_, query| vec![answer(query)]).await;
    let upstreams = upstreams(&[server]);
    let (mut ports, mut ids) = (HashSet::new(), HashSet::new());
    for _ in 0..QUERIES {
        assert!(is_answer(&resolve(&upstreams).await));
        let query = seen.recv().await.unwrap();
        ports.insert(query.from.port());
        ids.insert([query.packet[0], query.packet[1]]);
    }
    assert!(ports.len() >= 490, "{} ports", ports.len());
    assert!(ids.len() >= 490, "{} ids", ids.len());
}

#[tokio::test]
async fn a_truncated_answer_is_fetched_over_tcp_from_the_same_upstream() {
    let (server, _seen) = upstream(|_, query| vec![truncated(query)]).await;
    tcp_upstream(server, |query| Some(answer(query))).await;
    let resolution = resolve(&upstreams(&[server])).await;
    assert!(is_answer(&resolution), "{resolution:?}");
    assert_eq!(resolution.packets, 2);
}

#[tokio::test]
async fn a_truncated_answer_whose_tcp_fails_goes_to_the_next_upstream() {
    let (first, _) = upstream(|_, query| vec![truncated(query)]).await;
    tcp_upstream(first, |_| None).await;
    let (second, _seen) = upstream(|_, query| vec![answer(query)]).await;
    let resolution = resolve(&upstreams(&[first, second])).await;
    assert!(is_answer(&resolution), "{resolution:?}");
    assert_eq!(resolution.packets, 3);
}

#[tokio::test]
async fn an_upstream_may_be_asked_over_tcp_alone() {
    let server = nobody().await;
    tcp_upstream(server, |query| Some(answer(query))).await;
    let upstreams = with(vec![Address { socket: server, transport: Transport::Tcp }], BUDGET);
    assert!(is_answer(&resolve(&upstreams).await));
}

#[tokio::test]
async fn a_servfail_goes_to_the_next_upstream_at_once() {
    let (first, _seen_first) = upstream(|_, query| vec![error(query, SERVFAIL)]).await;
    let (second, _seen_second) = upstream(|_, query| vec![answer(query)]).await;
    let upstreams = upstreams(&[first, second]);
    let struggled = AtomicBool::new(false);
    let resolution =
        upstreams.resolve(&key(), Instant::now() + BUDGET, None, || struggled.store(true, Ordering::Relaxed)).await;
    assert!(is_answer(&resolution), "{resolution:?}");
    assert_eq!(resolution.packets, 2);
    assert!(!struggled.into_inner(), "an upstream that speaks is no sign of a broken network");
}

#[tokio::test]
async fn a_refusal_goes_to_the_next_upstream_and_is_relayed_when_all_refuse() {
    let (first, _seen_first) = upstream(|_, query| vec![error(query, REFUSED)]).await;
    let (second, _seen_second) = upstream(|_, query| vec![answer(query)]).await;
    assert!(is_answer(&resolve(&upstreams(&[first, second])).await));
    assert_eq!(resolve(&upstreams(&[first])).await.outcome, Outcome::Rcode(REFUSED));
}

#[tokio::test]
async fn a_failure_is_shared_only_when_every_upstream_said_servfail() {
    let (fails, _seen) = upstream(|_, query| vec![error(query, SERVFAIL)]).await;
    let (refuses, _also_seen) = upstream(|_, query| vec![error(query, REFUSED)]).await;
    assert_eq!(resolve(&upstreams(&[fails])).await.outcome, Outcome::ServFail);
    assert_eq!(resolve(&upstreams(&[fails, refuses])).await.outcome, Outcome::NoAnswer);
}

#[tokio::test]
async fn formerr_to_edns_is_asked_again_without_it_over_the_same_socket() {
    for headless in [false, true] {
        let (server, mut seen) = upstream(move |count, query| match count {
            0 if headless => vec![error(query, 1)[..4].iter().copied().chain([0; 8]).collect()],
            0 => vec![error(query, 1)],
            _ => vec![answer(query)],
        })
        .await;
        let resolution = resolve(&upstreams(&[server])).await;
        assert!(is_answer(&resolution), "{resolution:?}");
        let (first, second) = (seen.recv().await.unwrap(), seen.recv().await.unwrap());
        assert_eq!(first.packet.len(), QUESTION_END + 11);
        assert_eq!(second.packet.len(), QUESTION_END);
        assert_eq!(first.from, second.from);
    }
}

#[tokio::test]
async fn an_unreachable_upstream_does_not_keep_the_next_one_waiting() {
    let (second, _seen) = upstream(|_, query| vec![answer(query)]).await;
    // Nobody listens at the first: the kernel answers with ICMP. An attempt would last as long as the whole budget.
    let upstreams = upstreams(&[nobody().await, second]);
    let resolution = resolve(&upstreams).await;
    assert!(is_answer(&resolution), "{resolution:?}");
    let resolution = resolve(&upstreams).await;
    assert_eq!(resolution.packets, 1, "the next resolution asks it last: {resolution:?}");
}

#[tokio::test]
async fn an_upstream_that_changes_the_case_is_asked_over_tcp() {
    let (server, _seen) = upstream(|_, query| {
        let mut packet = answer(query);
        packet[HEADER..HEADER + NAME.len()].make_ascii_lowercase();
        packet[HEADER + 1] = b'E';
        packet[HEADER + 2] = if query[HEADER + 2] == b'x' { b'X' } else { b'x' };
        vec![packet]
    })
    .await;
    tcp_upstream(server, |query| Some(answer(query))).await;
    let resolution = resolve(&upstreams(&[server])).await;
    assert!(is_answer(&resolution), "{resolution:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_packet_costs_one_attempt_and_says_so_at_once() {
    let (server, mut seen) = upstream(|count, query| if count == 0 { Vec::new() } else { vec![answer(query)] }).await;
    let attempt = Duration::from_millis(1_200);
    let upstreams = with(vec![Address { socket: server, transport: Transport::Udp }], attempt);
    let begun = Instant::now();
    let struggled = std::sync::OnceLock::new();
    let resolution = upstreams
        .resolve(&key(), begun + BUDGET, None, || {
            struggled.set(begun.elapsed()).unwrap();
        })
        .await;
    assert!(is_answer(&resolution), "{resolution:?}");
    let struggled = struggled.into_inner().unwrap();
    assert!(struggled >= attempt && struggled < attempt + Duration::from_millis(50), "{struggled:?}");
    let (first, second) = (seen.recv().await.unwrap(), seen.recv().await.unwrap());
    assert_eq!((first.packet, first.from), (second.packet, second.from));
}

#[tokio::test(start_paused = true)]
async fn a_silent_upstream_ends_with_the_budget_as_a_local_failure() {
    let (server, mut seen) = upstream(|_, _| Vec::new()).await;
    let upstreams = with(vec![Address { socket: server, transport: Transport::Udp }], Duration::from_millis(1_200));
    let begun = Instant::now();
    let resolution = upstreams.resolve(&key(), begun + Duration::from_secs(4), None, || {}).await;
    assert_eq!(resolution.outcome, Outcome::NoAnswer);
    assert_eq!(resolution.packets, 3);
    assert!(begun.elapsed() >= Duration::from_secs(4) && begun.elapsed() < Duration::from_millis(4_050));
    for _ in 0..3 {
        seen.recv().await.unwrap();
    }
}

#[tokio::test]
async fn a_late_answer_of_the_first_upstream_is_taken_while_the_second_one_is_asked() {
    let (ask, asked) = tokio::sync::oneshot::channel::<()>();
    let slow = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let first = slow.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 4_096];
        let (length, from) = slow.recv_from(&mut buffer).await.unwrap();
        asked.await.unwrap();
        slow.send_to(&answer(&buffer[..length]), from).await.unwrap();
    });
    let (second, mut seen) = upstream(|_, _| Vec::new()).await;
    let servers = [first, second].map(|socket| Address { socket, transport: Transport::Udp });
    let upstreams = with(servers.to_vec(), Duration::from_millis(20));
    let (resolution, ()) = tokio::join!(resolve(&upstreams), async {
        seen.recv().await.unwrap();
        ask.send(()).unwrap();
    });
    assert!(is_answer(&resolution), "{resolution:?}");
}

#[tokio::test]
async fn more_resolutions_than_the_limit_fail_at_once() {
    let (server, mut seen) = upstream(|_, _| Vec::new()).await;
    let upstreams = Arc::new(upstreams(&[server]));
    let room = upstreams.room.try_acquire_many(RESOLUTIONS_MAX as u32 - 1).unwrap();
    let waiting = tokio::spawn({
        let upstreams = Arc::clone(&upstreams);
        async move { resolve(&upstreams).await }
    });
    seen.recv().await.unwrap();
    let resolution = resolve(&upstreams).await;
    assert_eq!((resolution.outcome, resolution.packets), (Outcome::Overload, 0));
    drop(room);
    waiting.abort();
}

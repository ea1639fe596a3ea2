//! Every RPC of the peer surface by every kind of caller, against the real process.
#![allow(clippy::unwrap_used, missing_docs)]

mod outsider;
mod process;

use std::collections::BTreeMap;
use std::error::Error;

use heimdall_certs::{Ca, TRUST_DOMAIN, Validity};
use heimdall_proto::v1::purge_cache_request::What;
use heimdall_proto::v1::replica_coordination_client::ReplicaCoordinationClient;
use heimdall_proto::v1::replica_coordination_server::SERVICE_NAME;
use heimdall_proto::v1::{
    AcquireQueryLockRequest, CacheEntry, CacheKey, CacheStreamRequest, FILE_DESCRIPTOR_SET, GetCacheEntryRequest,
    HandOffRequest, InjectEntryRequest, LeaseToken, ListMembersRequest, LocateKeyRequest, PurgeCacheRequest,
    ReleaseQueryLockRequest, SetCacheEntryRequest, WaitForResultRequest,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outsider::{client, connect};
use process::{Agent, PATIENCE, line_with};
use prost::Message;
use prost_types::FileDescriptorSet;
use rustls::version::TLS13;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1, v1alpha};

/// Every method of the peer service, from the descriptors that reflection serves.
fn methods() -> Vec<String> {
    let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let services = files.file.iter().flat_map(|file| file.service.iter().map(move |service| (file, service)));
    let methods = services
        .filter(|(file, service)| format!("{}.{}", file.package(), service.name()) == SERVICE_NAME)
        .flat_map(|(_, service)| &service.method);
    methods.map(|method| method.name().to_owned()).collect()
}

fn key(name: &str) -> Option<CacheKey> {
    Some(CacheKey { name: name.to_owned(), r#type: "A".to_owned(), ..CacheKey::default() })
}

/// An answer to `name` A, with a TTL of 300 s.
fn entry(name: &str) -> Option<CacheEntry> {
    let mut packet = vec![0, 0, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        packet.push(u8::try_from(label.len()).unwrap());
        packet.extend(label.as_bytes());
    }
    packet.extend([0, 0, 1, 0, 1]);
    packet.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4, 192, 0, 2, 1]);
    Some(CacheEntry { packet: packet.into(), age_ms: 0, lifetime_ms: 300_000, purges: 0 })
}

/// Calls a method with a request that makes sense. A new method fails here until somebody says what a sensible call is.
async fn call(channel: Channel, method: &str, name: &str) -> Result<(), Status> {
    let mut client = ReplicaCoordinationClient::new(channel);
    let token = Some(LeaseToken { granter: "a".to_owned(), incarnation: 1, counter: 1 });
    match method {
        "Session" => client.session(tokio_stream::empty()).await.map(drop),
        "GetCacheEntry" => client.get_cache_entry(GetCacheEntryRequest { key: key(name) }).await.map(drop),
        "SetCacheEntry" => {
            let request = SetCacheEntryRequest { key: key(name), entry: entry(name), token: None, level: 0 };
            client.set_cache_entry(request).await.map(drop)
        }
        "AcquireQueryLock" => client.acquire_query_lock(AcquireQueryLockRequest { key: key(name) }).await.map(drop),
        "WaitForResult" => client.wait_for_result(WaitForResultRequest { key: key(name), token }).await.map(drop),
        "ReleaseQueryLock" => client.release_query_lock(ReleaseQueryLockRequest { token }).await.map(drop),
        "LocateKey" => client.locate_key(LocateKeyRequest { key: key(name) }).await.map(drop),
        "ListMembers" => client.list_members(ListMembersRequest {}).await.map(drop),
        "TransferEntries" => client.transfer_entries(tokio_stream::empty()).await.map(drop),
        "HandOff" => client.hand_off(HandOffRequest { leave: false }).await.map(drop),
        "PurgeCache" => {
            let what = Some(What::Name(name.to_owned()));
            client.purge_cache(PurgeCacheRequest { what, ..PurgeCacheRequest::default() }).await.map(drop)
        }
        "InjectEntry" => {
            let data = vec!["192.0.2.1".to_owned()];
            let request = InjectEntryRequest { key: key(name), ttl: 60, data, ..InjectEntryRequest::default() };
            client.inject_entry(request).await.map(drop)
        }
        "StreamCacheUpdates" => client.stream_cache_updates(CacheStreamRequest::default()).await.map(drop),
        other => panic!("what is a sensible call of {other}?"),
    }
}

#[tokio::test]
async fn every_rpc_admits_exactly_the_identities_that_may_call_it() {
    const OPERATING: [&str; 7] =
        ["GetCacheEntry", "LocateKey", "ListMembers", "HandOff", "PurgeCache", "InjectEntry", "StreamCacheUpdates"];
    const FOR_OPERATORS_ALONE: [&str; 3] = ["PurgeCache", "InjectEntry", "StreamCacheUpdates"];
    let ca = Ca::new(TRUST_DOMAIN).unwrap();
    let agent = Agent::start(&ca).await;
    let methods = methods();
    assert!(methods.len() >= 8, "{methods:?}");

    let replica = agent.channel(&ca, Some(&ca.replica("b").unwrap())).await.unwrap();
    let mut refused = 0;
    for method in &methods {
        let result = call(replica.clone(), method, "replica.example.").await;
        if FOR_OPERATORS_ALONE.contains(&method.as_str()) {
            refused += 1;
            assert_eq!(result.expect_err(method).code(), Code::PermissionDenied, "a replica calls {method}");
        } else {
            assert!(result.is_ok(), "a replica calls {method}: {result:?}");
        }
    }

    let operator = agent.channel(&ca, Some(&ca.operator("alice").unwrap())).await.unwrap();
    for method in &methods {
        let result = call(operator.clone(), method, "operator.example.").await;
        if OPERATING.contains(&method.as_str()) {
            assert!(result.is_ok(), "an operator calls {method}: {result:?}");
            continue;
        }
        refused += 1;
        let status = result.expect_err(method);
        assert_eq!(status.code(), Code::PermissionDenied, "an operator calls {method}: {status:?}");
        assert_eq!(
            status.message(),
            format!(
                "spiffe://{TRUST_DOMAIN}/operator/alice may not call /{SERVICE_NAME}/{method}: it is for replicas only"
            )
        );
    }
    let metric = "heimdall_agent_peer_calls_refused_total{code=\"permission_denied\"}";
    assert_eq!(agent.metric(metric, refused).await, refused);

    // What the handshake refuses reaches no handler, whatever it calls.
    let now = Validity::default();
    let strangers = [
        ("no_certificate", None),
        ("unknown_issuer", Some(Ca::new(TRUST_DOMAIN).unwrap().replica("b"))),
        ("expired", Some(ca.replica_valid("b", Validity::ended()))),
        ("not_yet_valid", Some(ca.replica_valid("b", Validity::not_begun()))),
        ("no_identity", Some(ca.with_uris(&[], now))),
        ("foreign_trust_domain", Some(ca.with_uris(&["spiffe://elsewhere.test/replica/b"], now))),
        ("wrong_role", Some(ca.with_uris(&[&format!("spiffe://{TRUST_DOMAIN}/ns/x/sa/y")], now))),
    ];
    for (reason, leaf) in strangers {
        let leaf = leaf.map(Result::unwrap);
        for method in &methods {
            // A client may notice while it connects or when it calls: its half of the handshake is done first.
            if let Ok(channel) = agent.channel(&ca, leaf.as_ref()).await {
                let status = call(channel, method, "stranger.example.").await.expect_err(method);
                assert!(status.source().is_some(), "{reason} calls {method}: the server answered: {status:?}");
            }
        }
        let expected = methods.len() as u64;
        let metric = format!("heimdall_agent_peer_handshakes_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(agent.metric(&metric, expected).await, expected, "{reason}");
    }
    let metric = "heimdall_agent_peer_handshakes_accepted_total{role=\"replica\"}";
    assert_eq!(agent.metric(metric, 1).await, 1, "nobody else came in as a replica");
}

#[tokio::test]
async fn an_operators_write_changes_nothing() {
    let ca = Ca::new(TRUST_DOMAIN).unwrap();
    let agent = Agent::start(&ca).await;
    let replica = agent.channel(&ca, Some(&ca.replica("b").unwrap())).await.unwrap();
    let operator = agent.channel(&ca, Some(&ca.operator("alice").unwrap())).await.unwrap();

    call(replica, "SetCacheEntry", "replica.example.").await.unwrap();
    call(operator.clone(), "SetCacheEntry", "operator.example.").await.unwrap_err();
    let mut looking = ReplicaCoordinationClient::new(operator);
    let mut found = BTreeMap::new();
    for name in ["replica.example.", "operator.example."] {
        let answer = looking.get_cache_entry(GetCacheEntryRequest { key: key(name) }).await.unwrap().into_inner();
        found.insert(name, answer.found);
    }
    assert_eq!(found, BTreeMap::from([("replica.example.", true), ("operator.example.", false)]));
}

#[tokio::test]
async fn replicas_and_operators_may_ask_what_the_server_offers_and_how_it_is() {
    let ca = Ca::new(TRUST_DOMAIN).unwrap();
    let agent = Agent::start(&ca).await;
    for leaf in [ca.replica("b").unwrap(), ca.operator("alice").unwrap()] {
        let channel = agent.channel(&ca, Some(&leaf)).await.unwrap();
        let request = HealthCheckRequest { service: SERVICE_NAME.to_owned() };
        HealthClient::new(channel.clone()).check(request).await.unwrap();

        let list = v1::server_reflection_request::MessageRequest::ListServices(String::new());
        let request = v1::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
        let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
        let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap();
        let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(services)) =
            answer.message_response
        else {
            panic!("not a list of services: {answer:?}");
        };
        assert!(services.service.iter().any(|service| service.name == SERVICE_NAME), "{services:?}");

        let list = v1alpha::server_reflection_request::MessageRequest::ListServices(String::new());
        let request = v1alpha::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
        let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
        let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
        assert!(answers.message().await.unwrap().is_some());
    }
}

#[tokio::test]
async fn a_stranger_is_named_in_the_log_with_address_and_reason() {
    let ca = Ca::new(TRUST_DOMAIN).unwrap();
    let mut agent = Agent::start(&ca).await;
    let leaf = ca.with_uris(&["spiffe://elsewhere.test/replica/b"], Validity::default()).unwrap();
    let mut stream = connect(client(&ca, Some(&leaf), &TLS13), agent.peers).await.unwrap();
    let address = stream.get_ref().0.local_addr().unwrap();
    assert!(!matches!(stream.read(&mut [0; 1]).await, Ok(1)));
    let line = line_with(&mut agent.log, "peer connection refused").await;
    assert!(line.contains(&format!("address={address}")), "{line}");
    assert!(line.contains("foreign_trust_domain"), "{line}");
    assert!(line.contains("spiffe://elsewhere.test/replica/b is not of the trust domain heimdall.local"), "{line}");
}

#[tokio::test]
async fn a_stopped_agent_takes_its_socket_away() {
    let ca = Ca::new(TRUST_DOMAIN).unwrap();
    let mut agent = Agent::start(&ca).await;
    assert!(agent.socket.exists());
    let pid = Pid::from_raw(agent.process.id().unwrap().try_into().unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let status = tokio::time::timeout(PATIENCE, agent.process.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
    assert!(!agent.socket.exists());
}

#[tokio::test]
async fn an_agent_that_ran_out_of_files_accepts_again_when_it_has_some() {
    let ca = Ca::new(TRUST_DOMAIN).unwrap();
    let mut agent = Agent::start_with_files(&ca, 64).await;
    let mut crowd = Vec::new();
    for _ in 0..100 {
        crowd.push(TcpStream::connect(agent.peers).await.unwrap());
    }
    let line = line_with(&mut agent.log, "cannot accept peer connections now").await;
    assert!(line.contains("Too many open files"), "{line}");
    drop(crowd);
    let operator = agent.channel(&ca, Some(&ca.operator("alice").unwrap())).await.unwrap();
    call(operator, "ListMembers", "").await.unwrap();
    agent.metric("heimdall_agent_peer_accept_errors_total", 1).await;
}

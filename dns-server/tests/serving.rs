//! A server on loopback with an upstream that this test plays itself.

#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use heimdall_dns::{Config, Running};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::runtime::Runtime;

/// Longest wait for anything that must come.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers that the upstream may hold back: more than any test asks for.
const WAITING: usize = 16;

/// An upstream that answers each query as soon as the test allows it.
struct Upstream {
    address: SocketAddr,
    packets: Arc<AtomicUsize>,
    /// Names that begin with `slow` wait for a permit from here.
    permits: mpsc::SyncSender<()>,
}

impl Upstream {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let packets = Arc::new(AtomicUsize::new(0));
        let (permits, permitted) = mpsc::sync_channel::<()>(WAITING);
        let count = Arc::clone(&packets);
        let slow = socket.try_clone().unwrap();
        let (postponed, waiting) = mpsc::sync_channel::<(Vec<u8>, SocketAddr)>(WAITING);
        std::thread::spawn(move || {
            while let (Ok(()), Ok((reply, client))) = (permitted.recv(), waiting.recv()) {
                slow.send_to(&reply, client).unwrap();
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 2_048];
            while let Ok((length, client)) = socket.recv_from(&mut buffer) {
                count.fetch_add(1, Ordering::Relaxed);
                let query = Message::from_vec(&buffer[..length]).unwrap();
                let reply = answer(&query).to_vec().unwrap();
                let is_slow = query.queries[0].name().to_string().to_ascii_lowercase().starts_with("slow");
                if is_slow && postponed.send((reply.clone(), client)).is_ok() {
                    continue;
                }
                socket.send_to(&reply, client).unwrap();
            }
        });
        Self { address, packets, permits }
    }

    fn packets(&self) -> usize {
        self.packets.load(Ordering::Relaxed)
    }
}

/// `many…` has 40 addresses, `missing…` does not exist, everything else has one address.
fn answer(query: &Message) -> Message {
    let asked = query.queries[0].clone();
    let mut reply = Message::new(query.id, MessageType::Response, OpCode::Query);
    reply.metadata.recursion_desired = true;
    reply.metadata.recursion_available = true;
    reply.metadata.authoritative = true;
    let name = asked.name().to_string().to_ascii_lowercase();
    if name.starts_with("missing") {
        reply.metadata.response_code = ResponseCode::NXDomain;
        let root = Name::root();
        let soa = RData::SOA(SOA::new(root.clone(), root.clone(), 1, 2, 3, 4, 30));
        reply.add_authority(Record::from_rdata(root, 60, soa));
    } else if name.starts_with("refused") {
        reply.metadata.response_code = ResponseCode::Refused;
    } else {
        let count = if name.starts_with("many") { 40 } else { 1 };
        for last in 1..=count {
            reply.add_answer(Record::from_rdata(asked.name().clone(), 60, RData::A(A::new(10, 0, 0, last))));
        }
    }
    reply.add_query(asked);
    reply
}

struct Server {
    dns: SocketAddr,
    all: Vec<SocketAddr>,
    http: SocketAddr,
    upstream: Upstream,
    runtime: Runtime,
    running: Running,
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

impl Server {
    fn start() -> Self {
        Self::listening_on(&["127.0.0.1:0"])
    }

    fn listening_on(addresses: &[&str]) -> Self {
        let upstream = Upstream::start();
        let config = Config {
            listen: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            http_listen: "127.0.0.1:0".parse().unwrap(),
            upstreams: vec![upstream.address.to_string().parse().unwrap()],
            workers: 2,
            cache_bytes: 1 << 20,
            ..Config::default()
        };
        let runtime = runtime();
        let app = runtime.block_on(config.build()).unwrap();
        let (all, http) = (app.dns_addresses().to_vec(), app.http_address());
        let running = {
            let _inside = runtime.enter();
            app.spawn().unwrap()
        };
        Self { dns: all[0], all, http, upstream, runtime, running }
    }

    fn client(&self) -> UdpSocket {
        Self::client_of(self.dns)
    }

    /// A client that hears nobody but `server`.
    fn client_of(server: SocketAddr) -> UdpSocket {
        let any: IpAddr = if server.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    fn connection(&self) -> TcpStream {
        let stream = TcpStream::connect(self.dns).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Whether the server ends in time.
    fn drain(&self) -> bool {
        self.running.stop().cancel();
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, self.running.finish()).await.is_ok() })
    }

    fn page(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.http).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.running.stop().cancel();
    }
}

fn query(id: u16, name: &str) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message
}

fn ask(client: &UdpSocket, query: &Message) -> Message {
    client.send(&query.to_vec().unwrap()).unwrap();
    receive(client)
}

fn receive(client: &UdpSocket) -> Message {
    let mut buffer = [0; 4_096];
    let length = client.recv(&mut buffer).unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

fn write_frame(stream: &mut TcpStream, message: &Message) {
    let octets = message.to_vec().unwrap();
    let mut frame = (octets.len() as u16).to_be_bytes().to_vec();
    frame.extend(octets);
    stream.write_all(&frame).unwrap();
}

fn read_frame(stream: &mut TcpStream) -> Message {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut octets = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut octets).unwrap();
    Message::from_vec(&octets).unwrap()
}

#[test]
fn the_second_answer_comes_from_the_cache_in_the_client_s_own_words() {
    let server = Server::start();
    let client = server.client();
    let first = ask(&client, &query(1, "wWw.Example."));
    assert_eq!((first.id, first.answers.len(), first.metadata.authoritative), (1, 1, true));
    assert_eq!(first.queries[0].name().to_string(), "wWw.Example.");
    let second = ask(&client, &query(2, "WwW.eXample."));
    assert_eq!((second.id, second.answers.len(), second.metadata.authoritative), (2, 1, false));
    assert_eq!(second.queries[0].name().to_string(), "WwW.eXample.");
    assert!(second.answers[0].ttl <= first.answers[0].ttl && first.answers[0].ttl < 60);
    assert_eq!(server.upstream.packets(), 1);
}

#[test]
fn a_server_on_all_addresses_answers_from_the_one_that_was_asked() {
    let server = Server::listening_on(&["0.0.0.0:0"]);
    let clients: Vec<_> =
        (1..=4).map(|last| Server::client_of(([127, 0, 0, last], server.dns.port()).into())).collect();
    // Misses that are under way together, then hits.
    for (id, client) in (1..).zip(&clients) {
        client.send(&query(id, &format!("slow{id}.example.")).to_vec().unwrap()).unwrap();
    }
    for _ in &clients {
        server.upstream.permits.send(()).unwrap();
    }
    for (id, client) in (1..).zip(&clients) {
        assert_eq!(receive(client).id, id);
        assert_eq!(ask(client, &query(id, "slow1.example.")).answers.len(), 1);
    }
    // Not every machine has IPv6.
    if UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        let server = Server::listening_on(&["[::]:0"]);
        let client = Server::client_of((Ipv6Addr::LOCALHOST, server.dns.port()).into());
        for id in 1..3 {
            assert_eq!(ask(&client, &query(id, "a.example.")).id, id);
        }
        assert_eq!(server.upstream.packets(), 1);
    }
}

#[test]
fn negative_answers_are_cached_too() {
    let server = Server::start();
    let client = server.client();
    for id in 1..4 {
        let reply = ask(&client, &query(id, "missing.example."));
        assert_eq!((reply.id, reply.response_code), (id, ResponseCode::NXDomain));
        assert!(reply.authorities[0].ttl < 30, "by the SOA record's minimum");
    }
    assert_eq!(server.upstream.packets(), 1);
}

#[test]
fn a_query_without_rd_is_answered_from_the_cache_or_refused() {
    let server = Server::start();
    let client = server.client();
    let mut without = query(1, "a.example.");
    without.metadata.recursion_desired = false;
    let reply = ask(&client, &without);
    assert_eq!((reply.response_code, server.upstream.packets()), (ResponseCode::Refused, 0));
    ask(&client, &query(2, "a.example."));
    let reply = ask(&client, &without);
    assert_eq!((reply.response_code, reply.answers.len()), (ResponseCode::NoError, 1));
    assert_eq!(server.upstream.packets(), 1);
}

#[test]
fn an_upstream_s_other_return_code_is_relayed() {
    let server = Server::start();
    let reply = ask(&server.client(), &query(1, "refused.example."));
    assert_eq!((reply.response_code, reply.answers.len()), (ResponseCode::Refused, 0));
}

#[test]
fn what_is_too_large_for_a_datagram_comes_over_tcp() {
    let server = Server::start();
    let client = server.client();
    for id in [1, 2] {
        let reply = ask(&client, &query(id, "many.example."));
        assert!(reply.metadata.truncation && reply.answers.is_empty(), "fresh and cached alike");
    }
    let mut large = query(3, "many.example.");
    let mut edns = Edns::new();
    edns.set_max_payload(1_232);
    large.set_edns(edns);
    assert_eq!(ask(&client, &large).answers.len(), 40);
    let mut stream = server.connection();
    write_frame(&mut stream, &query(4, "many.example."));
    let reply = read_frame(&mut stream);
    assert_eq!((reply.id, reply.answers.len(), reply.metadata.truncation), (4, 40, false));
    assert_eq!(server.upstream.packets(), 1);
}

#[test]
fn a_full_batch_of_mixed_datagrams_gets_its_replies_and_silence_for_the_rest() {
    let server = Server::start();
    let client = server.client();
    ask(&client, &query(0, "cached.example."));
    let mut expected = Vec::new();
    for id in 1..=120_u16 {
        match id % 4 {
            0 => drop(client.send(&[0; 5]).unwrap()),
            1 => {
                let mut response = query(id, "cached.example.");
                response.metadata.message_type = MessageType::Response;
                client.send(&response.to_vec().unwrap()).unwrap();
            }
            2 => {
                client.send(&query(id, "cached.example.").to_vec().unwrap()).unwrap();
                expected.push(id);
            }
            _ => {
                client.send(&query(id, &format!("n{id}.example.")).to_vec().unwrap()).unwrap();
                expected.push(id);
            }
        }
    }
    let mut ids: Vec<_> = expected
        .iter()
        .map(|_| receive(&client))
        .map(|reply| {
            assert_eq!((reply.response_code, reply.answers.len()), (ResponseCode::NoError, 1));
            reply.id
        })
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, expected);
}

#[test]
fn pipelined_queries_are_answered_as_each_is_ready() {
    let server = Server::start();
    let mut stream = server.connection();
    write_frame(&mut stream, &query(1, "slow.example."));
    write_frame(&mut stream, &query(2, "fast.example."));
    assert_eq!(read_frame(&mut stream).id, 2);
    server.upstream.permits.send(()).unwrap();
    assert_eq!(read_frame(&mut stream).id, 1);
}

#[test]
fn what_was_asked_before_the_client_s_fin_is_answered_before_ours() {
    let server = Server::start();
    let mut stream = server.connection();
    write_frame(&mut stream, &query(1, "slow.example."));
    stream.shutdown(Shutdown::Write).unwrap();
    server.upstream.permits.send(()).unwrap();
    assert_eq!(read_frame(&mut stream).id, 1);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "then the end, not a reset");
}

#[test]
fn a_query_in_single_octets_and_rubbish_around_it_are_survived() {
    let server = Server::start();
    let mut stream = server.connection();
    stream.set_nodelay(true).unwrap();
    for rubbish in [&[0, 0][..], &[0, 1, 7], &[0, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
        stream.write_all(rubbish).unwrap();
    }
    let octets = query(9, "a.example.").to_vec().unwrap();
    stream.write_all(&(octets.len() as u16).to_be_bytes()[..1]).unwrap();
    stream.write_all(&(octets.len() as u16).to_be_bytes()[1..]).unwrap();
    for octet in octets {
        stream.write_all(&[octet]).unwrap();
    }
    assert_eq!(read_frame(&mut stream).id, 9);
}

#[test]
fn queries_under_way_are_answered_before_the_server_ends() {
    let server = Server::start();
    let client = server.client();
    let mut stream = server.connection();
    client.send(&query(1, "slow.udp.example.").to_vec().unwrap()).unwrap();
    write_frame(&mut stream, &query(2, "slow.tcp.example."));
    // Both have been read when the upstream has heard of both.
    while server.upstream.packets() < 2 {
        std::thread::yield_now();
    }
    let permits = server.upstream.permits.clone();
    let drained = std::thread::spawn(move || server.drain());
    for _ in 0..2 {
        permits.send(()).unwrap();
    }
    assert_eq!(receive(&client).id, 1);
    assert_eq!(read_frame(&mut stream).id, 2);
    assert!(drained.join().unwrap(), "and it ends within its deadline");
}

#[test]
fn replies_leave_from_the_address_that_was_asked() {
    let server = Server::listening_on(&["127.0.0.2:0", "127.0.0.3:0"]);
    for (id, address) in [(1, server.all[0]), (2, server.all[1])] {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        for name in ["a.example.", "a.example."] {
            client.send_to(&query(id, name).to_vec().unwrap(), address).unwrap();
            let mut buffer = [0; 512];
            assert_eq!(client.recv_from(&mut buffer).unwrap().1, address);
        }
    }
}

#[test]
fn clients_are_served_over_ipv6_too() {
    if UdpSocket::bind("[::1]:0").is_err() {
        eprintln!("this machine has no IPv6 loopback");
        return;
    }
    let server = Server::listening_on(&["[::1]:0", "127.0.0.1:0"]);
    let client = UdpSocket::bind("[::1]:0").unwrap();
    client.connect(server.dns).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    for id in 1..=40 {
        assert_eq!(ask(&client, &query(id, "a.example.")).id, id);
    }
    let mut stream = server.connection();
    write_frame(&mut stream, &query(41, "a.example."));
    assert_eq!(read_frame(&mut stream).answers.len(), 1);
    assert_eq!(server.upstream.packets(), 1);
}

#[test]
fn the_figures_of_the_server_are_those_of_what_was_asked() {
    let server = Server::start();
    let client = server.client();
    for id in 0..3 {
        ask(&client, &query(id, "a.example."));
    }
    let mut stream = server.connection();
    write_frame(&mut stream, &query(9, "b.example."));
    read_frame(&mut stream);
    let stats = server.page("/stats");
    let json: serde_json::Value = serde_json::from_str(stats.split_once("\r\n\r\n").unwrap().1).unwrap();
    for (name, count) in [("queries", 4), ("l1_hits", 2), ("l1_misses", 2), ("resolutions", 2), ("upstream_packets", 2)]
    {
        assert_eq!(json[name], count, "{name} in {json}");
    }
    let metrics = server.page("/metrics");
    assert!(metrics.contains("heimdall_queries_total{transport=\"tcp\"} 1\n"), "{metrics}");
    assert!(server.page("/readyz").starts_with("HTTP/1.1 200"));
    assert!(server.page("/livez").starts_with("HTTP/1.1 200"));
}

#[test]
fn a_long_pipeline_of_cached_queries_is_answered_to_its_end() {
    const QUERIES: u16 = 20_000;
    let server = Server::start();
    ask(&server.client(), &query(0, "a.example."));
    let mut stream = server.connection();
    let mut writer = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        for id in 0..QUERIES {
            write_frame(&mut writer, &query(id, "a.example."));
        }
        writer.shutdown(Shutdown::Write).unwrap();
    });
    for id in 0..QUERIES {
        let reply = read_frame(&mut stream);
        assert_eq!((reply.id, reply.answers.len()), (id, 1), "cached answers come in order");
    }
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    sender.join().unwrap();
    assert_eq!(server.upstream.packets(), 1);
}

//! Replicas and strangers meet: real certificates, real handshakes, real sockets on loopback.
#![allow(clippy::unwrap_used, missing_docs)]

mod outsider;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use heimdall_agent::identity::credentials::Reload;
use heimdall_agent::identity::files::LoadError;
use heimdall_agent::identity::refusal::Refusal;
use heimdall_agent::identity::{
    Acceptor, Connector, Credentials, Identity, IdentityMetrics, PeerInfo, PeerStream, Snapshot,
};
use heimdall_agent::network::Machine;
use heimdall_certs::{Ca, Leaf, TRUST_DOMAIN, Validity};
use outsider::{chain, client, connect};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ServerConfig};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// Replica `a` with its peer port open.
struct Replica {
    dir: TempDir,
    credentials: Credentials,
    identity: watch::Receiver<Arc<Snapshot>>,
    metrics: IdentityMetrics,
    address: SocketAddr,
    incoming: ReceiverStream<io::Result<PeerStream>>,
    stop: CancellationToken,
    accepting: JoinHandle<()>,
}

impl Replica {
    async fn start(ca: &Ca) -> Self {
        let dir = tempfile::tempdir().unwrap();
        ca.replica("a").unwrap().write_to(dir.path()).unwrap();
        let metrics = IdentityMetrics::new();
        let credentials = Credentials::load(dir.path(), "a", metrics.clone()).unwrap();
        let identity = credentials.subscribe();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (acceptor, incoming) = Acceptor::new(Arc::new(listener), identity.clone(), metrics.clone());
        let stop = CancellationToken::new();
        let accepting = tokio::spawn(acceptor.run(stop.clone()));
        Self { dir, credentials, identity, metrics, address, incoming, stop, accepting }
    }

    fn connector(&self) -> Connector {
        Connector::new(Arc::new(Machine), self.identity.clone(), self.metrics.clone())
    }

    /// The next connection that was let in.
    async fn next(&mut self) -> PeerStream {
        self.incoming.next().await.unwrap().unwrap()
    }

    fn refused(&self) -> Vec<(Refusal, u64)> {
        counts(|reason| self.metrics.refused(reason))
    }

    fn dial_failures(&self) -> Vec<(Refusal, u64)> {
        counts(|reason| self.metrics.dial_failures(reason))
    }
}

/// The counters that are not zero.
fn counts(of: impl Fn(Refusal) -> u64) -> Vec<(Refusal, u64)> {
    Refusal::ALL.map(|reason| (reason, of(reason))).into_iter().filter(|(_, count)| *count > 0).collect()
}

/// Connects as a client that must be refused, and comes back when it has been.
async fn be_refused(config: ClientConfig, address: SocketAddr) {
    // With TLS 1.3 a client is done before the server has judged it: the verdict comes with the first read.
    if let Ok(mut stream) = connect(config, address).await {
        let read = stream.read(&mut [0; 1]).await;
        assert!(!matches!(read, Ok(1)), "the server must not talk to this client");
    }
}

/// A server that is not ours: it shows `leaf` to one client, of whom it asks nothing.
async fn serve_once(leaf: &Leaf) -> (SocketAddr, JoinHandle<()>) {
    let (chain, key) = chain(leaf);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        // The client hangs up when it does not like the certificate.
        let _ = TlsAcceptor::from(Arc::new(config)).accept(tcp).await;
    });
    (address, serving)
}

fn uri(path: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}{path}")
}

#[tokio::test]
async fn strangers_are_refused_in_the_handshake_and_counted_by_reason() {
    let ca = Ca::new(TRUST_DOMAIN).unwrap();
    let other_ca = Ca::new(TRUST_DOMAIN).unwrap();
    let replica = uri("/replica/b");
    let now = Validity::default();
    let strangers = [
        ("no certificate", None, Refusal::NoCertificate),
        ("another authority", Some(other_ca.replica("b")), Refusal::UnknownIssuer),
        ("expired", Some(ca.replica_valid("b", Validity::ended())), Refusal::Expired),
        ("not yet valid", Some(ca.replica_valid("b", Validity::not_begun())), Refusal::NotYetValid),
        ("no URI", Some(ca.with_uris(&[], now)), Refusal::NoIdentity),
        ("two URIs", Some(ca.with_uris(&[&replica, &uri("/operator/b")], now)), Refusal::NoIdentity),
        ("a URI that is no SPIFFE ID", Some(ca.with_uris(&["https://b.example/"], now)), Refusal::NoIdentity),
        (
            "another trust domain",
            Some(ca.with_uris(&["spiffe://elsewhere.test/replica/b"], now)),
            Refusal::ForeignTrustDomain,
        ),
        ("another role", Some(ca.with_uris(&[&uri("/ns/default/sa/web")], now)), Refusal::WrongRole),
    ];
    for (who, leaf, reason) in strangers {
        let mut a = Replica::start(&ca).await;
        let leaf = leaf.map(Result::unwrap);
        be_refused(client(&ca, leaf.as_ref(), &TLS13), a.address).await;
        assert_eq!(a.refused(), [(reason, 1)], "{who}");

        // The door is still open to others, and the stranger never came through it.
        let b = ca.replica("b").unwrap();
        let _open = connect(client(&ca, Some(&b), &TLS13), a.address).await.unwrap();
        assert_eq!(a.next().await.info().identity.to_string(), replica, "{who}");
    }
}

#[tokio::test]
async fn who_is_refused_reads_why_however_much_it_has_said_already() {
    let ca = Ca::new(TRUST_DOMAIN).unwrap();
    let a = Replica::start(&ca).await;
    for _ in 0..50 {
        let mut stream = connect(client(&ca, None, &TLS13), a.address).await.unwrap();
        // With TLS 1.3 a client may write before the server has judged it; octets that nobody reads would end in a reset.
        stream.write_all(&[0; 8 << 10]).await.unwrap();
        stream.flush().await.unwrap();
        let error = stream.read(&mut [0; 1]).await.unwrap_err();
        assert!(error.to_string().contains("CertificateRequired"), "{error}");
    }
    assert_eq!(a.refused(), [(Refusal::NoCertificate, 50)]);
}

#[tokio::test]
async fn who_does_not_speak_as_we_do_is_refused() {
    let ca = Ca::new(TRUST_DOMAIN).unwrap();
    let b = ca.replica("b").unwrap();

    let a = Replica::start(&ca).await;
    be_refused(client(&ca, Some(&b), &TLS12), a.address).await;
    assert_eq!(a.refused(), [(Refusal::Protocol, 1)], "TLS 1.2");

    let a = Replica::start(&ca).await;
    let mut plain = TcpStream::connect(a.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // A reset is as good as an end.
    let _ = plain.read_to_end(&mut answer).await;
    assert_eq!(a.refused(), [(Refusal::Protocol, 1)], "no TLS");

    let a = Replica::start(&ca).await;
    let mut without_alpn = client(&ca, Some(&b), &TLS13);
    without_alpn.alpn_protocols.clear();
    be_refused(without_alpn, a.address).await;
    assert_eq!(a.refused(), [(Refusal::Protocol, 1)], "no HTTP/2");
}

#[tokio::test(start_paused = true)]
async fn who_stays_silent_loses_its_place() {
    let a = Replica::start(&Ca::new(TRUST_DOMAIN).unwrap()).await;
    let mut silent = TcpStream::connect(a.address).await.unwrap();
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0, "the server must hang up");
    assert_eq!(a.refused(), [(Refusal::Timeout, 1)]);
}

#[tokio::test]
async fn replicas_and_operators_complete_the_handshake_under_their_names() {
    let ca = Ca::new(TRUST_DOMAIN).unwrap();
    let mut a = Replica::start(&ca).await;
    for (leaf, expected) in [(ca.replica("b"), uri("/replica/b")), (ca.operator("alice"), uri("/operator/alice"))] {
        let mut far = connect(client(&ca, Some(&leaf.unwrap()), &TLS13), a.address).await.unwrap();
        let mut near = a.next().await;
        let address = far.get_ref().0.local_addr().unwrap();
        assert_eq!(near.info(), &PeerInfo { identity: Identity::parse(&expected).unwrap(), address });

        far.write_all(b"ping").await.unwrap();
        far.flush().await.unwrap();
        let mut bytes = [0; 4];
        near.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"ping");
    }
    assert_eq!(a.refused(), []);
}

#[tokio::test]
async fn a_connection_ends_when_the_certificate_behind_it_does() {
    let ca = Ca::new(TRUST_DOMAIN).unwrap();
    let mut a = Replica::start(&ca).await;
    let stream = a.connector().dial(a.address, "a").await.unwrap();
    let mut near = a.next().await;
    // Nobody says anything any more, so the clock runs to the next timer, which is the certificate's end.
    tokio::time::pause();
    let started = tokio::time::Instant::now();
    assert_eq!(near.read(&mut [0; 1]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    let days = started.elapsed().as_secs_f64() / 86_400.0;
    assert!((29.9..=30.1).contains(&days), "it ended after {days} days");
    drop(stream);
}

#[tokio::test]
async fn a_dial_reaches_the_expected_replica_and_nobody_else() {
    let ca = Ca::new(TRUST_DOMAIN).unwrap();
    let other_ca = Ca::new(TRUST_DOMAIN).unwrap();
    let now = Validity::default();
    let impostors = [
        ("another replica", ca.replica("c"), Refusal::WrongReplica),
        ("an operator of that name", ca.operator("b"), Refusal::WrongRole),
        ("another authority", other_ca.replica("b"), Refusal::UnknownIssuer),
        ("expired", ca.replica_valid("b", Validity::ended()), Refusal::Expired),
        ("not yet valid", ca.replica_valid("b", Validity::not_begun()), Refusal::NotYetValid),
        ("no URI", ca.with_uris(&[], now), Refusal::NoIdentity),
        (
            "another trust domain",
            ca.with_uris(&["spiffe://elsewhere.test/replica/b"], now),
            Refusal::ForeignTrustDomain,
        ),
    ];
    for (who, leaf, reason) in impostors {
        let a = Replica::start(&ca).await;
        let (address, serving) = serve_once(&leaf.unwrap()).await;
        let error = a.connector().dial(address, "b").await.unwrap_err();
        assert_eq!(error.reason, reason, "{who}: {error}");
        assert!(error.to_string().starts_with(&format!("dialling b at {address}: ")), "{error}");
        assert_eq!(a.dial_failures(), [(reason, 1)], "{who}");
        serving.await.unwrap();
    }

    let a = Replica::start(&ca).await;
    let (address, serving) = serve_once(&ca.replica("b").unwrap()).await;
    a.connector().dial(address, "b").await.unwrap();
    serving.await.unwrap();
    assert_eq!(a.dial_failures(), []);
}

#[tokio::test]
async fn a_dial_says_whom_it_met_and_whom_it_expected() {
    let a = Replica::start(&Ca::new(TRUST_DOMAIN).unwrap()).await;
    let error = a.connector().dial(a.address, "b").await.unwrap_err().to_string();
    assert!(error.contains("spiffe://heimdall.local/replica/a answers where the replica b was expected"), "{error}");
}

#[tokio::test]
async fn a_dial_to_a_closed_port_fails_at_once() {
    let a = Replica::start(&Ca::new(TRUST_DOMAIN).unwrap()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    assert_eq!(a.connector().dial(address, "b").await.unwrap_err().reason, Refusal::Connection);
}

#[tokio::test(start_paused = true)]
async fn a_dial_to_a_peer_that_says_nothing_ends_in_time() {
    let a = Replica::start(&Ca::new(TRUST_DOMAIN).unwrap()).await;
    let stopped = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let started = tokio::time::Instant::now();
    let error = a.connector().dial(stopped.local_addr().unwrap(), "b").await.unwrap_err();
    assert_eq!(error.reason, Refusal::Timeout);
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_renewed_certificate_serves_new_connections_and_leaves_old_ones_alone() {
    let ca = Ca::new(TRUST_DOMAIN).unwrap();
    let mut a = Replica::start(&ca).await;
    let mut old = a.connector().dial(a.address, "a").await.unwrap();
    let mut old_near = a.next().await;
    assert_eq!(a.credentials.reload().unwrap(), Reload::Unchanged);

    // Rotation of the authority as it must be done: first everybody trusts both, then the new one signs.
    let new_ca = Ca::new(TRUST_DOMAIN).unwrap();
    let renewed = new_ca.replica("a").unwrap();
    renewed.write_to(a.dir.path()).unwrap();
    fs::write(a.dir.path().join("ca.crt"), new_ca.certificate() + &ca.certificate()).unwrap();
    assert_eq!(a.credentials.reload().unwrap(), Reload::Replaced);
    assert_eq!(a.identity.borrow().generation, 2);

    let new = a.connector().dial(a.address, "a").await.unwrap();
    let shown = new.get_ref().get_ref().1.peer_certificates().unwrap()[0].clone();
    assert_eq!(shown, chain(&renewed).0[0]);
    a.next().await;
    // A peer that has not renewed yet is still welcome.
    let b = ca.replica("b").unwrap();
    let _b = connect(client(&new_ca, Some(&b), &TLS13), a.address).await.unwrap();
    assert_eq!(a.next().await.info().identity.to_string(), uri("/replica/b"));

    old.write_all(b"ping").await.unwrap();
    old.flush().await.unwrap();
    let mut bytes = [0; 4];
    old_near.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"ping");
}

#[tokio::test]
async fn files_that_do_not_work_keep_the_old_certificate_and_are_counted_once() {
    let ca = Ca::new(TRUST_DOMAIN).unwrap();
    let mut a = Replica::start(&ca).await;
    let good = ca.replica("a").unwrap();

    // The certificate of one pair with the key of another, as between two writes of one rotation.
    fs::write(a.dir.path().join("tls.crt"), &good.certificate).unwrap();
    for _ in 0..3 {
        assert!(matches!(a.credentials.reload(), Err(LoadError::Key { .. })));
    }
    assert_eq!(a.metrics.failed_reloads(), 1);
    assert_eq!(a.identity.borrow().generation, 1);
    a.connector().dial(a.address, "a").await.unwrap();
    a.next().await;

    fs::remove_file(a.dir.path().join("tls.key")).unwrap();
    assert!(matches!(a.credentials.reload(), Err(LoadError::Read { .. })));
    assert_eq!(a.metrics.failed_reloads(), 2);

    fs::write(a.dir.path().join("tls.key"), &good.key).unwrap();
    assert_eq!(a.credentials.reload().unwrap(), Reload::Replaced);
    assert_eq!(a.identity.borrow().generation, 2);
}

#[tokio::test]
async fn the_folder_is_looked_at_without_being_asked() {
    let ca = Ca::new(TRUST_DOMAIN).unwrap();
    let Replica { dir, credentials, mut identity, stop, accepting, .. } = Replica::start(&ca).await;
    let looking = tokio::spawn(credentials.run(Duration::from_millis(1), stop.clone()));
    ca.replica("a").unwrap().write_to(dir.path()).unwrap();
    identity.wait_for(|snapshot| snapshot.generation == 2).await.unwrap();
    stop.cancel();
    looking.await.unwrap();
    accepting.await.unwrap();
}

#[test]
fn a_certificate_that_peers_would_refuse_is_refused_at_home() {
    let ca = Ca::new(TRUST_DOMAIN).unwrap();
    let load = |dir: &Path| Credentials::load(dir, "a", IdentityMetrics::new()).map(|_| ()).unwrap_err();
    let load_leaf = |leaf: Leaf| {
        let dir = tempfile::tempdir().unwrap();
        leaf.write_to(dir.path()).unwrap();
        load(dir.path())
    };

    let missing = tempfile::tempdir().unwrap();
    assert!(matches!(load(missing.path()), LoadError::Read { path, .. } if path.ends_with("tls.crt")));

    let expired = load_leaf(ca.replica_valid("a", Validity::ended()).unwrap());
    assert!(matches!(&expired, LoadError::Untrusted { source, .. } if Refusal::of_tls(source) == Refusal::Expired));
    let early = load_leaf(ca.replica_valid("a", Validity::not_begun()).unwrap());
    assert!(matches!(&early, LoadError::Untrusted { source, .. } if Refusal::of_tls(source) == Refusal::NotYetValid));

    let mut foreign = ca.replica("a").unwrap();
    foreign.ca = Ca::new(TRUST_DOMAIN).unwrap().certificate();
    let foreign = load_leaf(foreign);
    assert!(
        matches!(&foreign, LoadError::Untrusted { source, .. } if Refusal::of_tls(source) == Refusal::UnknownIssuer)
    );

    assert!(matches!(load_leaf(ca.replica("b").unwrap()), LoadError::Stranger { .. }));
    assert!(matches!(load_leaf(ca.operator("a").unwrap()), LoadError::Stranger { .. }));
    let nobody = ca.with_uris(&[], Validity::default()).unwrap();
    assert!(matches!(load_leaf(nobody), LoadError::Identity { .. }));

    for (damage, file) in [("certificate", "tls.crt"), ("private key", "tls.key"), ("certificate", "ca.crt")] {
        let dir = tempfile::tempdir().unwrap();
        ca.replica("a").unwrap().write_to(dir.path()).unwrap();
        fs::write(dir.path().join(file), "not in PEM form").unwrap();
        let error = load(dir.path());
        assert!(
            matches!(&error, LoadError::Pem { path, expected } if path.ends_with(file) && *expected == damage),
            "{error}"
        );
    }

    let dir = tempfile::tempdir().unwrap();
    ca.replica("a").unwrap().write_to(dir.path()).unwrap();
    fs::write(dir.path().join("ca.crt"), vec![b'x'; 300_000]).unwrap();
    assert!(matches!(load(dir.path()), LoadError::TooLarge { .. }));
}

#[tokio::test]
async fn stopping_closes_the_port_and_gives_up_handshakes_under_way() {
    let mut a = Replica::start(&Ca::new(TRUST_DOMAIN).unwrap()).await;
    let mut silent = TcpStream::connect(a.address).await.unwrap();
    // Accepted in order: when this one is done, the silent one before it has its handshake under way.
    let _open = a.connector().dial(a.address, "a").await.unwrap();
    a.next().await;

    a.stop.cancel();
    a.accepting.await.unwrap();
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0);
    assert!(a.incoming.next().await.is_none());
    assert_eq!(TcpStream::connect(a.address).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn many_bad_handshakes_do_not_keep_good_peers_out() {
    let ca = Ca::new(TRUST_DOMAIN).unwrap();
    let mut a = Replica::start(&ca).await;
    let stranger = Ca::new(TRUST_DOMAIN).unwrap().replica("b").unwrap();
    let mut strangers = tokio::task::JoinSet::new();
    for _ in 0..200 {
        strangers.spawn(be_refused(client(&ca, Some(&stranger), &TLS13), a.address));
    }
    let _open = a.connector().dial(a.address, "a").await.unwrap();
    assert_eq!(a.next().await.info().identity.to_string(), uri("/replica/a"));
    while let Some(result) = strangers.join_next().await {
        result.unwrap();
    }
    // A stranger that the system reset before the verdict came counts as a broken connection.
    let refused: u64 = a.refused().iter().map(|(_, count)| count).sum();
    assert_eq!(refused, 200, "{:?}", a.refused());
}

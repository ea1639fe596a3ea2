//! Three replicas, an upstream, and somebody who asks.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::join_all;
use heimdall_dns::answer::Outcome;
use heimdall_integration::upstream::{Rule, Upstream, address_of};
use heimdall_integration::wire::Name;
use heimdall_proto::v1::mesh_agent_client::MeshAgentClient;
use heimdall_proto::v1::{
    ListMembersRequest, MemberState, PurgeCacheRequest, ReplicaResult, purge_cache_request::What,
};
use heimdall_shared::key::{Flags, Key};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tonic::transport::{Channel, Endpoint};

use super::network::now;
use super::replica::{Asked, Replica};

/// Replicas, and with them hosts of the simulation.
pub(crate) const REPLICAS: usize = 3;

/// Questions that a replica takes at a time: more than a run asks.
const ASKED_MAX: usize = 256;

/// How long the upstream takes for an answer: long enough for all replicas to ask for the same name meanwhile.
const UPSTREAM_TAKES: Duration = Duration::from_millis(20);

/// Shortest and longest way of a segment between two hosts.
const LATENCY: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(2));

/// A run is over by then: a wait that has no end is a failure.
const LONGEST: Duration = Duration::from_secs(120);

/// Segments that a host holds for a connection: as many as the windows of HTTP/2 allow.
const SEGMENTS_MAX: usize = 1 << 16;

/// How often something is looked at again that will come to be.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The hosts of a run, for whoever asks them.
#[derive(Clone)]
pub(crate) struct Stage {
    replicas: Arc<Vec<(Replica, mpsc::Sender<Asked>)>>,
    upstream: Arc<OnceLock<Upstream>>,
}

/// The name of the host of a replica.
pub(crate) fn host(replica: usize) -> String {
    format!("replica-{replica}")
}

/// Runs `story` on a network whose delays `seed` draws.
pub(crate) fn run<F: Future<Output = ()> + 'static>(seed: u64, story: impl FnOnce(Stage) -> F) {
    // Repeats a failure with what went before it.
    println!("HEIMDALL_TURMOIL_SEED={seed}");
    heimdall_shared::clock::simulate(now);
    let mut simulation = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(LONGEST)
        .min_message_latency(LATENCY.0)
        .max_message_latency(LATENCY.1)
        .tcp_capacity(SEGMENTS_MAX)
        .enable_tokio_io()
        .build();
    let upstream = Arc::new(OnceLock::new());
    let serving = Arc::clone(&upstream);
    simulation.host("upstream", move || {
        let serving = Arc::clone(&serving);
        async move {
            let upstream = Upstream::start().await?;
            upstream.otherwise(Rule::addresses().after(UPSTREAM_TAKES));
            assert!(serving.set(upstream).is_ok(), "the upstream starts once");
            std::future::pending().await
        }
    });

    let folder = tempfile::tempdir().unwrap();
    let authority = heimdall_certs::Ca::new(heimdall_certs::TRUST_DOMAIN).unwrap();
    let hosts: Vec<_> =
        (0..REPLICAS).map(|replica| (host(replica), simulation.lookup(host(replica)).to_string())).collect();
    let mut replicas = Vec::new();
    for (name, address) in &hosts {
        let tls = folder.path().join(name);
        authority.replica(name).unwrap().write_to(&tls).unwrap();
        let replica = Replica {
            name: name.clone(),
            peers: hosts.iter().filter(|(other, _)| other != name).cloned().collect(),
            host: address.clone(),
            tls,
            socket: folder.path().join(format!("{name}.sock")),
        };
        let (sender, asked) = mpsc::channel(ASKED_MAX);
        let asked = std::cell::Cell::new(Some(asked));
        let (starting, upstream) = (replica.clone(), Arc::clone(&upstream));
        simulation.host(name.as_str(), move || {
            let (replica, upstream) = (starting.clone(), Arc::clone(&upstream));
            let asked = asked.take().expect("a replica starts once");
            async move {
                let address = until("the upstream", async || upstream.get().map(Upstream::address)).await;
                replica.run(address, asked).await
            }
        });
        replicas.push((replica, sender));
    }
    let stage = Stage { replicas: Arc::new(replicas), upstream };
    let told = story(stage);
    simulation.client("clients", async move {
        told.await;
        Ok(())
    });
    simulation.run().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
}

/// Waits until `look` finds something.
async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < LONGEST / 2, "{what}: not within {:?}", begun.elapsed());
        sleep(LOOK_EVERY).await;
    }
}

impl Stage {
    fn upstream(&self) -> &Upstream {
        self.upstream.get().expect("replicas start after it")
    }

    /// Asks a replica for a name's address, as a client does, and checks the answer.
    pub(crate) async fn ask(&self, replica: usize, name: &str) {
        let parsed = Name::parse(name).unwrap();
        let key = Key::new(parsed.wire(), 1, 1, Flags::default(), "").unwrap();
        let (answer, answered) = oneshot::channel();
        self.replicas[replica].1.send((key, answer)).await.unwrap();
        match answered.await.unwrap() {
            Outcome::Answer { entry, .. } => {
                let address = address_of(&parsed).octets();
                assert!(entry.packet.ends_with(&address), "{name} at {replica}: not its address: {:?}", entry.packet);
            }
            other => panic!("{name} at {replica}: {other:?}"),
        }
    }

    /// All replicas are asked for all names at once; gives how many packets the upstream got for each so far.
    pub(crate) async fn ask_all(&self, names: &[String]) -> Vec<usize> {
        let questions = names.iter().flat_map(|name| (0..REPLICAS).map(move |replica| self.ask(replica, name)));
        join_all(questions).await;
        names.iter().map(|name| self.upstream().journal().count(name, "A").packets).collect()
    }

    async fn agent(&self, replica: usize) -> Option<MeshAgentClient<Channel>> {
        let socket = self.replicas[replica].0.socket.display().to_string();
        let channel = Endpoint::from_shared(format!("unix://{socket}")).unwrap().connect().await;
        channel.ok().map(MeshAgentClient::new)
    }

    /// The members that a replica can ask, itself included.
    async fn healthy(&self, replica: usize) -> usize {
        let Some(mut agent) = self.agent(replica).await else { return 0 };
        let members = agent.list_members(ListMembersRequest {}).await.unwrap().into_inner().members;
        // A machine with too much to do may say so of itself, and is asked all the same.
        let can_be_asked = |state| matches!(state, MemberState::Alive | MemberState::Degraded);
        members.iter().filter(|member| can_be_asked(member.state())).count()
    }

    /// Waits until every replica can ask every other one; gives how long that took.
    pub(crate) async fn whole(&self) -> Duration {
        let begun = Instant::now();
        for replica in 0..REPLICAS {
            let all = async || (self.healthy(replica).await == REPLICAS).then_some(());
            until(&format!("replica {replica} sees all members"), all).await;
        }
        begun.elapsed()
    }

    /// Waits until a replica can ask only so many members, itself included.
    pub(crate) async fn sees(&self, replica: usize, members: usize) {
        let as_many = async || (self.healthy(replica).await == members).then_some(());
        until(&format!("replica {replica} sees {members} members"), as_many).await;
    }

    /// Purges all names below `suffix` at a replica.
    pub(crate) async fn purge(&self, replica: usize, suffix: &str) -> Vec<ReplicaResult> {
        let request = PurgeCacheRequest { what: Some(What::Suffix(suffix.to_owned())), ..PurgeCacheRequest::default() };
        let mut agent = self.agent(replica).await.unwrap();
        agent.purge_cache(request).await.unwrap().into_inner().results
    }
}

//! What a member may write, where, and for how long: S8 to S11 of the rules for members that are not to be trusted.

use std::time::Duration;

use heimdall_integration::unary;
use heimdall_integration::upstream::address_of;
use heimdall_integration::wire::{Flags, Message as Dns, Name, Opt, Question, Record};
use heimdall_proto::v1::purge_cache_request::What;
use heimdall_proto::v1::{GetCacheEntryRequest, PurgeCacheRequest, SetCacheEntryRequest};
use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use tonic::Code;

use super::liar::{LIE, Liar, lie, packet};
use super::lies::{LIAR, key};
use super::scene::{Scene, TOLD, Way};

/// S8: the ring decides what a member may write; nothing else of what it sends is there afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn s8_a_member_writes_only_where_the_ring_lets_it() {
    let scene = Scene::set().await;
    let cases = [
        // A copy goes from one member of the key's set to another one.
        (&[TOLD, LIAR], Way::Copy, true),
        (&[LIAR, TOLD], Way::Copy, true),
        (&[TOLD, 1], Way::Copy, false),
        (&[LIAR, 1], Way::Copy, false),
        (&[1, 2], Way::Copy, false),
        // What nobody has may be published by every member, to who keeps it.
        (&[TOLD, 1], Way::Publish, true),
        (&[TOLD, 2], Way::Call, true),
        (&[1, LIAR], Way::Publish, false),
        (&[1, 2], Way::Publish, false),
        (&[1, 2], Way::Forged, false),
        (&[1, 2], Way::Call, false),
    ];
    for (number, (order, way, taken)) in cases.into_iter().enumerate() {
        let name = scene.name(order, &format!("s8-{number}"));
        let what = format!("{way:?} of a key of {order:?}");
        assert_eq!(scene.send(&way, &name, lie(&key(&name))).await, taken, "{what}");
        if taken {
            assert!(scene.tells_the_lie(&name).await, "{what}: what is taken is told");
        } else {
            scene.tells_the_truth(&name, &what).await;
        }
    }
    assert_eq!(scene.counted("heimdall_agent_refused_copies_total", &[]).await, 3);
    assert_eq!(scene.counted("heimdall_agent_refused_publishes_total", &[]).await, 4);

    // A certificate of the same authority makes nobody a member.
    let folder = scene.cluster.folder().join("stranger");
    scene.cluster.ca().replica("stranger").unwrap().write_to(&folder).unwrap();
    let stranger = Liar::with(&folder, "stranger", |_: &_, _: &_| {});
    let name = scene.name(&[TOLD, 1], "s8-stranger");
    let entry = unary::entry(&name, &[unary::address("other.example.")]);
    let request = SetCacheEntryRequest { key: unary::key(&name), entry, token: None, level: 0 };
    let mut client = stranger.client(&scene.cluster, TOLD).await;
    let refused = client.set_cache_entry(request).await;
    assert!(!refused.is_ok_and(|answer| answer.into_inner().stored));
    scene.tells_the_truth(&name, "a write of a stranger's").await;
    scene.cluster.shut_down().await.unwrap();
}

/// An answer to the question for `name`'s address with the lie in it, in normal form until it is changed.
fn answer(name: &str) -> Dns {
    let question = Question::parse(name, "A").unwrap();
    let mut answer = Dns::query(0, question).response();
    answer.flags = Flags(Flags::QR | Flags::RD | Flags::RA);
    answer.with_answer(Record::a(&Name::parse(name).unwrap(), 300, LIE.into()))
}

fn record(text: &str) -> Record {
    Record::parse(text).unwrap()
}

/// What is wrong with the octets of an entry, in words and for a name.
type Wrong = (&'static str, fn(&str) -> Vec<u8>);

/// S9: octets that are no answer.
const WRONG: [Wrong; 14] = [
    ("no octets", |_| Vec::new()),
    ("cut off", |name| answer(name).encode().split_last().unwrap().1.to_vec()),
    ("octets behind the end", |name| [answer(name).encode(), vec![0]].concat()),
    ("no message", |_| vec![0xA5; 60]),
    ("an answer to another name", |_| answer("other.example.").encode()),
    ("an answer to another type", |name| {
        Dns { questions: vec![Question::parse(name, "AAAA").unwrap()], ..answer(name) }.encode()
    }),
    ("a question", |name| Dns { flags: Flags(Flags::RD), ..answer(name) }.encode()),
    ("cut by its sender", |name| {
        Dns { flags: Flags(Flags::QR | Flags::TC | Flags::RD | Flags::RA), ..answer(name) }.encode()
    }),
    ("a failure", |name| answer(name).with_rcode(2).encode()),
    ("an option record", |name| Dns { opt: Some(Opt::default()), ..answer(name) }.encode()),
    ("a record of another name", |name| {
        answer(name).with_answer(record("bank.example. 300 IN A 203.0.113.66")).encode()
    }),
    ("the servers of another zone", |name| {
        answer(name).with_authority(record("bank.example. 300 IN NS ns.bank.example.")).encode()
    }),
    ("an address of a host that nothing names", |name| {
        Dns { additional: vec![record("bank.example. 300 IN A 203.0.113.66")], ..answer(name) }.encode()
    }),
    // S11 as well: more than any origin is allowed.
    ("a TTL of a hundred days", |name| {
        let name = Name::parse(name).unwrap();
        Dns { answers: vec![Record::a(&name, 8_640_000, LIE.into())], ..answer(&name.to_string()) }.encode()
    }),
];

/// S9: a member's octets pass the checks of an upstream's, whichever way they come.
#[tokio::test(flavor = "multi_thread")]
async fn s9_what_is_no_answer_to_its_key_is_not_taken_from_a_member() {
    let scene = Scene::set().await;
    let ways: [(Way, &[usize]); 4] =
        [(Way::Copy, &[TOLD, LIAR]), (Way::Publish, &[TOLD, 1]), (Way::Call, &[TOLD, 1]), (Way::Answer, &[LIAR, 1])];
    for (way, order) in &ways {
        // The same octets without the fault are taken: it is the fault that is found.
        let right = scene.name(order, &format!("s9-right-{way:?}").to_lowercase());
        let entry = Entry { packet: answer(&right).encode().into(), ..lie(&key(&right)) };
        assert!(scene.send(way, &right, entry).await, "{way:?}");
        for (number, (what, wrong)) in WRONG.iter().enumerate() {
            let what = format!("{what}, {way:?}");
            let name = scene.name(order, &format!("s9-{number}-{way:?}").to_lowercase());
            let refused = scene.counted("heimdall_agent_refused_entries_total", &[]).await;
            let entry = Entry { packet: wrong(&name).into(), ..lie(&key(&name)) };
            assert!(!scene.send(way, &name, entry).await, "{what}");
            if !matches!(way, Way::Call) {
                let now = scene.counted("heimdall_agent_refused_entries_total", &[]).await;
                assert!(now > refused, "{what}: it is counted");
            }
            scene.tells_the_truth(&name, &what).await;
        }
    }
    // A caller is told which of its fields is wrong.
    let name = scene.name(&[TOLD, 1], "s9-told");
    let entry = unary::entry("other.example.", &[]);
    let request = SetCacheEntryRequest { key: unary::key(&name), entry, token: None, level: 0 };
    let told = scene.liar.client(&scene.cluster, TOLD).await.set_cache_entry(request).await.unwrap_err();
    assert_eq!(told.code(), Code::InvalidArgument, "{told}");
    scene.cluster.shut_down().await.unwrap();
}

/// The address that a replica's store has for a name.
async fn stored(scene: &Scene, name: &str) -> Vec<u8> {
    let request = GetCacheEntryRequest { key: unary::key(name) };
    let got = scene.cluster.agent(TOLD).await.unwrap().get_cache_entry(request).await.unwrap().into_inner();
    let entry = got.entry.unwrap_or_else(|| panic!("{name} must be there"));
    Dns::parse(&entry.packet).unwrap().answers[0].rdata.clone()
}

/// S10: what this replica fetched itself stays for as long as it lives, whatever a member sends and however young it is.
#[tokio::test(flavor = "multi_thread")]
async fn s10_what_a_replica_fetched_itself_is_not_replaced_by_a_member_s() {
    let scene = Scene::set().await;
    let ways: [(Way, &[usize], &str); 3] = [
        // It waits until the other one is over.
        (Way::Copy, &[TOLD, LIAR], "behind"),
        (Way::Publish, &[TOLD, 1], "kept_existing"),
        (Way::Call, &[TOLD, 1], "kept_existing"),
    ];
    for (way, order, becomes) in ways {
        let name = scene.name(order, &format!("s10-{way:?}").to_lowercase());
        scene.cluster.client(TOLD).ask_address(&name).await.unwrap();
        scene.cluster.replicated(TOLD, &name, 1).await.unwrap();
        let label = format!("event=\"{becomes}\"");
        let before = scene.counted("heimdall_agent_store_events_total", &[&label]).await;
        scene.send(&way, &name, lie(&key(&name))).await;
        assert_eq!(scene.counted("heimdall_agent_store_events_total", &[&label]).await, before + 1, "{way:?}");
        let truth = address_of(&Name::parse(&name).unwrap()).octets();
        assert_eq!(stored(&scene, &name).await, truth, "{way:?}");
        // The others ask this replica, and get what it fetched.
        scene.tells_the_truth(&name, "an entry that was fetched here").await;
    }
    scene.cluster.shut_down().await.unwrap();
}

/// Milliseconds of age and of life that the replica's entry has.
async fn times(scene: &Scene, name: &str) -> (u64, u64) {
    let located = scene.cluster.locate(TOLD, name).await.unwrap();
    let told = &scene.cluster.replica(TOLD).layout.name;
    let holding = located.holdings.iter().find(|holding| holding.replica == *told && holding.found);
    holding.map_or_else(|| panic!("{name}: {located:?}"), |holding| (holding.age_ms, holding.remaining_ms))
}

/// S11: no entry lives longer than its own records say, and one that is sent again only gets older.
#[tokio::test(flavor = "multi_thread")]
async fn s11_a_member_lengthens_no_life() {
    let scene = Scene::set().await;
    let long = scene.name(&[TOLD, LIAR], "s11-long");
    // A hundred times what its record says.
    let entry = Entry { lifetime: Duration::from_secs(30_000), ..lie(&key(&long)) };
    assert!(scene.send(&Way::Copy, &long, entry).await);
    assert!(times(&scene, &long).await.1 <= 300_000);
    let told = scene.cluster.client(TOLD).ask(&long, "A").await.unwrap();
    assert!(told.answers[0].ttl <= 300, "{told:?}");

    // Sent again as if it were younger, for a fetch before the moment at which it was sent as an older one.
    let again = scene.name(&[TOLD, LIAR], "s11-again");
    let aged = |secs| Entry {
        packet: packet(&key(&again), LIE, 60),
        born: Moment::now().minus(Duration::from_secs(secs)),
        lifetime: Duration::from_secs(60),
        since: 0,
    };
    assert!(scene.send(&Way::Copy, &again, aged(20)).await);
    for age in [15, 10, 5] {
        assert!(!scene.send(&Way::Copy, &again, aged(age)).await, "as if {age} s old");
        assert!(times(&scene, &again).await.0 >= 20_000, "as if {age} s old");
    }
    assert_eq!(scene.counted("heimdall_agent_store_events_total", &["event=\"rejuvenated\""]).await, 3);

    // And what was purged does not come back by being sent again.
    let purged = scene.name(&[TOLD, LIAR], "s11-purged");
    assert!(scene.send(&Way::Copy, &purged, lie(&key(&purged))).await);
    let request = PurgeCacheRequest { what: Some(What::Name(purged.clone())), ..PurgeCacheRequest::default() };
    scene.cluster.agent(TOLD).await.unwrap().purge_cache(request).await.unwrap();
    assert!(!scene.send(&Way::Copy, &purged, lie(&key(&purged))).await, "a replay");
    assert_eq!(scene.counted("heimdall_agent_store_events_total", &["event=\"overtaken\""]).await, 1);
    scene.tells_the_truth(&purged, "a purged name that was sent again").await;
    scene.cluster.shut_down().await.unwrap();
}

//! What is written and read directly against what the generated types write and read.

use std::sync::Arc;

use proptest::prelude::*;
use prost::Message as _;

use super::super::{from_frame, to_frame};
use super::*;
use crate::key::Flags;

const NOW: Moment = Moment::from_nanos(1_000_000_000_000_000);

/// The field in which the frame is written.
const FIELD: u32 = 3;

/// Sizes on both sides of those at which a length takes another octet.
fn size() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..300, 16_200usize..16_500]
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 1u64..200, any::<u64>()]
}

prop_compose! {
    fn a_key()(label in "[a-z]{1,63}", qtype in any::<u16>(), dnssec_ok: bool, view in "[a-z]{0,8}") -> Key {
        let name = [&[label.len() as u8], label.as_bytes(), &[0]].concat();
        Key::new(&name, qtype, 1, Flags { dnssec_ok, checking_disabled: false }, &view).unwrap()
    }
}

prop_compose! {
    fn a_token()(granter in "[a-z0-9-]{1,40}", incarnation in number(), counter in number()) -> Token {
        Token { granter: granter.into(), incarnation, counter }
    }
}

prop_compose! {
    fn an_entry()(size in size(), age in 0u64..100_000_000, lifetime in 0u64..100_000_000, since in number()) -> Entry {
        let packet = (0..size).map(|octet| octet as u8).collect();
        Entry { packet, born: NOW.minus(Duration::from_millis(age)), lifetime: Duration::from_millis(lifetime), since }
    }
}

fn a_message() -> impl Strategy<Value = Message> {
    let level = prop_oneof![Just(None), Just(Some(WriteLevel::Eventual)), Just(Some(WriteLevel::Strong))];
    let lookup = (number(), a_key(), any::<u32>(), number()).prop_map(|(id, key, deadline, stream)| {
        let (deadline, skipped) = (Duration::from_millis(deadline.into()), Vec::new());
        Message::Lookup { id, lookup: Lookup { key, deadline, skipped, stream, trace: None, mode: LookupMode::Join } }
    });
    let entry = (number(), an_entry()).prop_map(|(id, entry)| Message::Reply { id, reply: Reply::Entry(entry) });
    let granted = (number(), a_token(), any::<bool>()).prop_map(|(id, token, takeover)| Message::Reply {
        id,
        reply: Reply::Granted { token, takeover, ask_first: None },
    });
    let publish = (number(), a_key(), an_entry(), proptest::option::of(a_token()), level).prop_map(
        |(id, key, entry, token, level)| Message::Publish { id, publish: Publish { key, entry, token, level } },
    );
    let copy = (a_key(), an_entry(), number()).prop_map(|(key, entry, write)| Message::Copy {
        key,
        entry,
        write: NonZeroU64::new(write),
    });
    prop_oneof![lookup, entry, granted, publish, copy]
}

fn written(message: &Message) -> Bytes {
    let mut out = Writer::with_room(0);
    assert!(write(&mut out, FIELD, message, NOW), "{message:?} is one of those");
    out.into_bytes()
}

fn read_directly(frame: &Bytes) -> Option<Message> {
    read(Fields::of(frame), NOW)
}

fn read_by_generated(frame: &Bytes) -> Option<Message> {
    pb::SessionFrame::decode(frame.clone()).ok().and_then(|frame| from_frame(frame, NOW).ok())
}

proptest! {
    #[test]
    fn each_octet_is_the_one_that_the_generated_types_write(message in a_message()) {
        let frame = to_frame(&message, NOW);
        let mut expected = Writer::with_room(0);
        expected.generated(FIELD, &frame);
        prop_assert_eq!(written(&message), expected.into_bytes());
        let frame = frame.encode_to_vec().into();
        let read = read_directly(&frame);
        prop_assert!(read.is_some());
        prop_assert_eq!(read, read_by_generated(&frame));
    }

    #[test]
    fn what_is_read_from_broken_frames_is_what_the_generated_types_read(
        message in a_message(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
        more in prop::collection::vec(any::<u8>(), 0..8),
    ) {
        let mut frame = to_frame(&message, NOW).encode_to_vec();
        for (at, octet) in changes {
            let at = at.index(frame.len());
            frame[at] = octet;
        }
        if let Some(cut) = cut {
            frame.truncate(cut.index(frame.len()));
        }
        frame.extend(more);
        let frame = frame.into();
        if let Some(read) = read_directly(&frame) {
            prop_assert_eq!(Some(read), read_by_generated(&frame));
        }
    }
}

#[test]
fn what_is_unusual_is_left_to_the_generated_types() {
    let key = Key::new(b"\x01a\x00", 1, 1, Flags::default(), "").unwrap();
    let lookup = Lookup {
        key,
        deadline: Duration::from_secs(1),
        skipped: Vec::new(),
        stream: 1,
        trace: None,
        mode: LookupMode::Join,
    };
    let token = Token { granter: "a".into(), incarnation: 1, counter: 1 };
    let unusual = [
        Message::Lookup { id: 1, lookup: Lookup { skipped: vec!["b".into()], ..lookup.clone() } },
        Message::Lookup { id: 1, lookup: Lookup { mode: LookupMode::Peek, ..lookup } },
        Message::Reply { id: 1, reply: Reply::Proceed },
        Message::Reply { id: 1, reply: Reply::Granted { token, takeover: false, ask_first: Some(Arc::from("c")) } },
    ];
    for message in unusual {
        assert!(!write(&mut Writer::with_room(0), FIELD, &message, NOW), "{message:?}");
        let frame = to_frame(&message, NOW).encode_to_vec().into();
        assert_eq!(read_directly(&frame), None);
        assert_eq!(read_by_generated(&frame), Some(message));
    }
}

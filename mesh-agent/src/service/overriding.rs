//! The calls by which an operator overrides what all replicas know: purge and inject.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use bytes::Bytes;
use heimdall_proto::v1 as pb;
use heimdall_shared::clock::Moment;
use heimdall_shared::dns::rr::{self, rtype};
use heimdall_shared::dns::{answer, name};
use heimdall_shared::key::Key;
use heimdall_shared::purge::{Applied, Injected, Scope};
use pb::purge_cache_request::What;
use tonic::Status;

use super::Operations;
use super::operations::{invalid, key};
use crate::purge::{self, EVERYTHING_EVERY, Outcome};

/// How long a call waits for the replicas when it does not say, and at most.
const WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Longest that an injected answer is served, seconds: as long as any other.
const TTL_MAX: u32 = 86_400;

/// Records of one injected answer that are given as text: more than fit into a datagram.
const RECORDS_MAX: usize = 64;

/// Longest string of a TXT record (RFC 1035 3.3), octets.
const STRING_MAX: usize = 255;

impl Operations {
    /// Purges, and says what became of it at each replica.
    pub async fn purge(&self, request: pb::PurgeCacheRequest) -> Result<pb::PurgeCacheResponse, Status> {
        self.count("PurgeCache");
        let scope = scope(&request)?;
        if scope == Scope::Everything {
            let last = self.agent().purges.look(|book| book.log().emptied());
            let since = last.map(|last| Moment::now().since(last)).filter(|since| *since < EVERYTHING_EVERY);
            if let Some(since) = since {
                return Err(Status::resource_exhausted(format!(
                    "everything was purged {} ms ago, and may be again {} s after that",
                    since.as_millis(),
                    EVERYTHING_EVERY.as_secs()
                )));
            }
        }
        let begun = purge::begin(self.agent(), scope, None).await;
        let (results, purge) = self.results(begun, request.wait_ms).await;
        Ok(pb::PurgeCacheResponse { results, purge })
    }

    /// Injects an answer, and says what became of it at each replica.
    pub async fn inject(&self, request: pb::InjectEntryRequest) -> Result<pb::InjectEntryResponse, Status> {
        self.count("InjectEntry");
        let key = key(request.key.as_ref())?;
        if !(1..=TTL_MAX).contains(&request.ttl) {
            return Err(Status::invalid_argument(format!("ttl {} is not from 1 to {TTL_MAX} seconds", request.ttl)));
        }
        let packet = match (request.packet.is_empty(), request.data.as_slice()) {
            (true, data) => packet(&key, data, request.ttl)?,
            (false, []) => request.packet,
            (false, _) => return Err(Status::invalid_argument("give either data or packet, not both")),
        };
        // As an upstream's answer would be; then it lives as long as the operator says.
        let answer = answer::normalise(&key, &packet, &self.agent().ttl_limits).map_err(invalid)?;
        let injected = Injected {
            packet: answer::with_ttl(&answer.packet, request.ttl),
            lifetime: Duration::from_secs(request.ttl.into()),
        };
        let begun = purge::begin(self.agent(), Scope::Key(key), Some(injected)).await;
        let (results, purge) = self.results(begun, request.wait_ms).await;
        Ok(pb::InjectEntryResponse { results, purge })
    }

    async fn results(
        &self,
        Applied { position, purge }: Applied,
        wait_ms: u32,
    ) -> (Vec<pb::ReplicaResult>, Option<pb::PurgeId>) {
        let within = match wait_ms {
            0 => WAIT.0,
            millis => Duration::from_millis(millis.into()).min(WAIT.1),
        };
        let results = purge::results(self.agent(), position, within).await.into_iter().map(|(replica, outcome)| {
            let outcome = match outcome {
                Outcome::Done => pb::ReplicaOutcome::Done,
                Outcome::Late => pb::ReplicaOutcome::Late,
                Outcome::NotReached => pb::ReplicaOutcome::NotReached,
            };
            pb::ReplicaResult { replica: replica.to_string(), outcome: outcome.into() }
        });
        let id = &purge.id;
        let id = pb::PurgeId { origin: id.origin.to_string(), incarnation: id.incarnation, sequence: id.sequence };
        (results.collect(), Some(id))
    }
}

fn scope(request: &pb::PurgeCacheRequest) -> Result<Scope, Status> {
    let qtype = match request.r#type.as_str() {
        "" => None,
        text => Some(rr::type_from_text(text).ok_or_else(|| {
            Status::invalid_argument(format!(
                "type {text:?} is neither a known type like \"AAAA\" nor of the form \"TYPE65333\""
            ))
        })?),
    };
    match &request.what {
        Some(What::Name(text)) => Ok(Scope::Name { name: wire_name(text)?, qtype }),
        Some(What::Suffix(text)) => Ok(Scope::Suffix { suffix: wire_name(text)?, qtype }),
        Some(What::Everything(true)) if qtype.is_none() => Ok(Scope::Everything),
        // The root is a suffix of all names.
        Some(What::Everything(true)) => Ok(Scope::Suffix { suffix: Bytes::from_static(&[0]), qtype }),
        Some(What::Everything(false)) | None => {
            Err(Status::invalid_argument("say what to purge: name, suffix, or everything: true"))
        }
    }
}

pub(super) fn wire_name(text: &str) -> Result<Bytes, Status> {
    if text.is_empty() {
        return Err(Status::invalid_argument("the name is empty; the root is \".\""));
    }
    let mut name = name::from_text(text).map_err(|error| invalid(format!("name {text:?}: {error}")))?;
    name.make_ascii_lowercase();
    Ok(Bytes::from(name))
}

/// An answer to `key` with a record for each of `data`.
fn packet(key: &Key, data: &[String], ttl: u32) -> Result<Bytes, Status> {
    if data.is_empty() || data.len() > RECORDS_MAX {
        return Err(Status::invalid_argument(format!(
            "give 1 to {RECORDS_MAX} records as data, or the whole answer as packet"
        )));
    }
    let count = data.len() as u8;
    // QR, RD and RA; one question, and the answers, whose owner is the question's name.
    let mut packet = vec![0, 0, 0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0];
    packet.extend(key.name());
    packet.extend(key.qtype().to_be_bytes());
    packet.extend(key.qclass().to_be_bytes());
    for text in data {
        let rdata = rdata(key.qtype(), text)?;
        packet.extend([0xC0, 0x0C]);
        packet.extend(key.qtype().to_be_bytes());
        packet.extend(key.qclass().to_be_bytes());
        packet.extend(ttl.to_be_bytes());
        packet.extend((rdata.len() as u16).to_be_bytes());
        packet.extend(rdata);
    }
    Ok(Bytes::from(packet))
}

fn rdata(qtype: u16, text: &str) -> Result<Vec<u8>, Status> {
    let wrong = |what: &str| Status::invalid_argument(format!("{text:?} is not {what}"));
    match qtype {
        rtype::A => text.parse::<Ipv4Addr>().map(|ip| ip.octets().to_vec()).map_err(|_| wrong("an IPv4 address")),
        rtype::AAAA => text.parse::<Ipv6Addr>().map(|ip| ip.octets().to_vec()).map_err(|_| wrong("an IPv6 address")),
        rtype::CNAME | rtype::NS | rtype::PTR => wire_name(text).map(|name| name.to_vec()),
        rtype::TXT if text.len() <= STRING_MAX => Ok([&[text.len() as u8], text.as_bytes()].concat()),
        rtype::TXT => Err(wrong("a string of at most 255 octets")),
        other => Err(Status::invalid_argument(format!(
            "data of type {} cannot be given as text: give the whole answer as packet",
            rr::TypeText(other)
        ))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use heimdall_shared::dns::answer::TtlLimits;
    use heimdall_shared::key::Flags;

    use super::*;

    fn request(what: Option<What>, r#type: &str) -> pb::PurgeCacheRequest {
        pb::PurgeCacheRequest { what, r#type: r#type.to_owned(), wait_ms: 0 }
    }

    #[test]
    fn what_is_purged_is_said_in_words_that_people_write() {
        let name = Bytes::from_static(b"\x03www\x07example\x00");
        for (what, r#type, expected) in [
            (What::Name("WWW.example".to_owned()), "", Scope::Name { name: name.clone(), qtype: None }),
            (What::Name("www.example.".to_owned()), "AAAA", Scope::Name { name: name.clone(), qtype: Some(28) }),
            (What::Suffix("www.example.".to_owned()), "", Scope::Suffix { suffix: name.clone(), qtype: None }),
            (What::Everything(true), "", Scope::Everything),
            (What::Everything(true), "TXT", Scope::Suffix { suffix: Bytes::from_static(&[0]), qtype: Some(16) }),
        ] {
            assert_eq!(scope(&request(Some(what), r#type)).unwrap(), expected);
        }
        for (what, r#type) in [
            (None, ""),
            (Some(What::Everything(false)), ""),
            (Some(What::Name(String::new())), ""),
            (Some(What::Suffix("a..b".to_owned())), ""),
            (Some(What::Name("a.".to_owned())), "NOTYPE"),
        ] {
            assert_eq!(scope(&request(what, r#type)).unwrap_err().code(), tonic::Code::InvalidArgument);
        }
    }

    #[test]
    fn an_answer_made_of_text_is_one_that_an_upstream_could_give() {
        for (qtype, data) in [
            (rtype::A, vec!["192.0.2.1", "192.0.2.2"]),
            (rtype::AAAA, vec!["2001:db8::1"]),
            (rtype::CNAME, vec!["other.example."]),
            (rtype::TXT, vec!["some text", ""]),
        ] {
            let key = Key::new(b"\x01a\x00", qtype, 1, Flags::default(), "").unwrap();
            let data: Vec<String> = data.into_iter().map(ToOwned::to_owned).collect();
            let packet = packet(&key, &data, 60).unwrap();
            let answer = answer::normalise(&key, &packet, &TtlLimits::default()).unwrap();
            assert_eq!(answer.lifetime, Duration::from_secs(60));
        }
        for (qtype, text) in [(rtype::A, "2001:db8::1"), (rtype::AAAA, "x"), (rtype::MX, "10 mail.")] {
            let key = Key::new(b"\x01a\x00", qtype, 1, Flags::default(), "").unwrap();
            assert!(packet(&key, &[text.to_owned()], 60).is_err());
        }
    }
}

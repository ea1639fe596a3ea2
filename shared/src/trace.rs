//! Where a span stands in a trace, and the two forms in which that travels.
//!
//! The text form is the `traceparent` of W3C Trace Context, used in gRPC metadata and by people. The compact form of
//! [`TraceContext::LENGTH`] bytes is used inside the stream messages between our own processes and in the DNS option
//! that traces a single query. Both are read from outside, so both parsers refuse what the recommendation refuses
//! and never panic.

use std::fmt;

/// The place of one span in a trace: what a child needs to name its parent.
///
/// A value of this type always has ids that are not all zero when it came from one of the parsers: the
/// recommendation calls such ids invalid, and a collector would drop the span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// Shared by every span of the trace.
    pub trace_id: [u8; 16],
    /// The span that a child names as its parent.
    pub span_id: [u8; 8],
    /// Whether the trace is recorded. A child of an unsampled parent is not even created.
    pub sampled: bool,
}

impl TraceContext {
    /// Bytes of the compact form: trace id, span id, flags.
    pub const LENGTH: usize = 25;

    /// The compact form: trace id ‖ span id ‖ flags (bit 0 = sampled, the others 0).
    pub fn to_bytes(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..16].copy_from_slice(&self.trace_id);
        bytes[16..24].copy_from_slice(&self.span_id);
        bytes[24] = u8::from(self.sampled);
        bytes
    }

    /// Reads the compact form. `None` for any other length and for ids of zeros; unknown flags are ignored, as the
    /// recommendation asks ("The behavior of other flags … is not defined and is reserved for future use").
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LENGTH] = bytes.try_into().ok()?;
        let (trace_id, rest) = bytes.split_first_chunk::<16>()?;
        let (span_id, flags) = rest.split_first_chunk::<8>()?;
        Self::valid(*trace_id, *span_id, flags[0])
    }

    /// The `traceparent` header of this context, version 00.
    pub fn traceparent(&self) -> String {
        self.to_string()
    }

    /// Reads a `traceparent` header.
    ///
    /// W3C Trace Context 2.3: "Vendors MUST ignore the traceparent when the … is invalid (for example if it contains
    /// non-allowed characters)"; a version above 00 is read as far as it looks like 00, version ff is invalid.
    pub fn parse_traceparent(text: &str) -> Option<Self> {
        let bytes = text.trim_matches([' ', '\t']).as_bytes();
        let (parent, rest) = bytes.split_at_checked(TRACEPARENT_LENGTH)?;
        let version = hex_byte(parent[0], parent[1])?;
        let end_is_right = match version {
            0 => rest.is_empty(),
            0xff => false,
            // "If a higher version is detected … the remaining part … either the end of the string or a dash."
            _ => rest.first().is_none_or(|&byte| byte == b'-'),
        };
        let dashes = parent[2] == b'-' && parent[35] == b'-' && parent[52] == b'-';
        if !end_is_right || !dashes {
            return None;
        }
        let flags = hex_byte(parent[53], parent[54])?;
        Self::valid(hex(&parent[3..35])?, hex(&parent[36..52])?, flags)
    }

    fn valid(trace_id: [u8; 16], span_id: [u8; 8], flags: u8) -> Option<Self> {
        // "All bytes as zero is considered an invalid value", for the trace id and for the parent id alike.
        let valid = trace_id != [0; 16] && span_id != [0; 8];
        valid.then_some(Self { trace_id, span_id, sampled: flags & SAMPLED != 0 })
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            u128::from_be_bytes(self.trace_id),
            u64::from_be_bytes(self.span_id),
            u8::from(self.sampled)
        )
    }
}

/// Characters of a version 00 header: 2 + 1 + 32 + 1 + 16 + 1 + 2.
const TRACEPARENT_LENGTH: usize = 55;

/// The one flag that has a meaning today.
const SAMPLED: u8 = 0x01;

fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let (pairs, rest) = digits.as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (byte, &[high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = hex_byte(high, low)?;
    }
    Some(bytes)
}

fn hex_byte(high: u8, low: u8) -> Option<u8> {
    Some(hex_digit(high)? << 4 | hex_digit(low)?)
}

/// Lower case only: the recommendation's grammar has no upper-case digits.
fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_recommendation_s_example_is_read_and_written() {
        let context = TraceContext::parse_traceparent(EXAMPLE).expect("the example must be valid");
        assert!(context.sampled);
        assert_eq!(context.span_id, [0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
        assert_eq!(context.traceparent(), EXAMPLE);
    }

    #[test]
    fn what_the_recommendation_calls_invalid_is_refused() {
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-é1",
        ] {
            assert_eq!(TraceContext::parse_traceparent(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-what-comes";
        let context = TraceContext::parse_traceparent(later).expect("a later version must be read");
        assert!(!context.sampled);
    }

    #[test]
    fn zero_ids_and_other_lengths_are_refused_in_the_compact_form() {
        assert_eq!(TraceContext::from_bytes(&[0; 25]), None);
        assert_eq!(TraceContext::from_bytes(&[1; 24]), None);
        assert_eq!(TraceContext::from_bytes(&[1; 26]), None);
        assert!(TraceContext::from_bytes(&[1; 25]).is_some());
    }

    proptest! {
        #[test]
        fn both_forms_carry_every_context(trace_id in 1u128.., span_id in 1u64.., sampled: bool) {
            let context = TraceContext {
                trace_id: trace_id.to_be_bytes(),
                span_id: span_id.to_be_bytes(),
                sampled,
            };
            prop_assert_eq!(TraceContext::from_bytes(&context.to_bytes()), Some(context));
            prop_assert_eq!(TraceContext::parse_traceparent(&context.traceparent()), Some(context));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,60}", tail in "[0-9a-f-]{0,60}") {
            TraceContext::parse_traceparent(&text);
            TraceContext::parse_traceparent(&format!("00-{tail}"));
        }
    }
}

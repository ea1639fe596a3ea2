//! From when and until when a certificate holds.

#![allow(clippy::disallowed_methods)] // certificates hold by the wall clock

use std::time::{Duration, SystemTime};

/// How long development certificates hold, in days. Short, so that nobody comes to depend on a forgotten file.
const DEFAULT_DAYS: u32 = 30;

/// How far in the past a new certificate begins: the clocks of the machines that will check it need not agree.
const SKEW: Duration = Duration::from_secs(5 * 60);

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// From when and until when a certificate holds. X.509 counts whole seconds: fractions are cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// First instant at which the certificate holds.
    pub not_before: SystemTime,
    /// Last instant at which it does.
    pub not_after: SystemTime,
}

impl Validity {
    /// From five minutes ago until `days` days from now.
    pub fn days(days: u32) -> Self {
        let now = SystemTime::now();
        Self { not_before: now - SKEW, not_after: now + DAY * days }
    }

    /// Held for an hour and ended an hour ago.
    pub fn ended() -> Self {
        let now = SystemTime::now();
        Self { not_before: now - 2 * 12 * SKEW, not_after: now - 12 * SKEW }
    }

    /// Begins in an hour.
    pub fn not_begun() -> Self {
        let now = SystemTime::now();
        Self { not_before: now + 12 * SKEW, not_after: now + DAY }
    }
}

impl Default for Validity {
    fn default() -> Self {
        Self::days(DEFAULT_DAYS)
    }
}

//! How many files the process may have open, and what share of them upstream exchanges get.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

use crate::upstream::RESOLUTIONS_MAX;

/// One in this many descriptors may carry a resolution: one may hold two or three sockets at a time, and listeners,
/// clients' connections and the agent need the rest.
const SHARE: u64 = 4;

/// Raises the limit of open files to the highest that the machine allows, and gives the resolutions that may be under way
/// at the same time within it.
pub fn resolutions() -> usize {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            warn!(%error, "cannot read the limit of open files");
            return RESOLUTIONS_MAX;
        }
    };
    let open = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            warn!(%error, soft, hard, "cannot raise the limit of open files");
            soft
        }
    };
    let within = within(open);
    if within < RESOLUTIONS_MAX {
        warn!(
            open,
            resolutions = within,
            "the limit of open files bounds upstream queries; raise it (ulimit -n) for more"
        );
    }
    within
}

fn within(open: u64) -> usize {
    usize::try_from(open / SHARE).unwrap_or(usize::MAX).clamp(1, RESOLUTIONS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_descriptors_bound_the_resolutions_and_never_forbid_them() {
        assert_eq!(within(1_024), 256);
        assert_eq!(within(1_048_576), RESOLUTIONS_MAX);
        assert_eq!(within(u64::MAX), RESOLUTIONS_MAX);
        assert_eq!(within(2), 1);
    }

    #[test]
    fn the_limit_is_raised_as_far_as_the_machine_allows() {
        let resolutions = resolutions();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(soft, hard);
        assert_eq!(resolutions, within(hard));
    }
}

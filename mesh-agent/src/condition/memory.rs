//! How much of its memory this process uses.

use std::fs::read_to_string;

/// Where the kernel says how much this process may use, by version of its control groups.
const LIMITS: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// A limit above this is none: version 1 of the control groups says so with a number close to 2^63.
const NO_LIMIT: u64 = 1 << 50;

/// The part of its limit that this process uses; none without a limit.
pub(super) fn part_used() -> Option<f64> {
    let limit = LIMITS.iter().find_map(|path| read_to_string(path).ok()?.trim().parse::<u64>().ok());
    let limit = limit.filter(|&limit| limit > 0 && limit < NO_LIMIT)?;
    Some(resident(&read_to_string("/proc/self/status").ok()?)? as f64 / limit as f64)
}

/// Resident bytes, from the text of `/proc/self/status`.
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1_024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_resident_part_is_read_from_the_kernel_s_own_words() {
        assert_eq!(resident("Name:\tx\nVmRSS:\t    2048 kB\nThreads:\t1\n"), Some(2 << 20));
        assert_eq!(resident("Name:\tx\n"), None);
        assert!(resident(&read_to_string("/proc/self/status").unwrap()).unwrap() > 0);
    }
}

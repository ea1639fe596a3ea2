//! The places where things run: a network of the benchmark's own, one CPU for the server, another for the load.

use std::fs;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::unistd::Pid;

use super::accounting;

/// Two CPUs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cpus {
    /// Where candidates serve.
    pub(super) server: usize,
    /// Where everything else runs.
    pub(super) load: usize,
}

impl Cpus {
    /// The first two that this process may use.
    ///
    /// # Errors
    /// There is only one: server and load would push each other out, and no figure would mean anything.
    pub(super) fn choose() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("asking for the CPUs that may be used")?;
        let mut cpus = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false));
        match (cpus.next(), cpus.next()) {
            (Some(server), Some(load)) => Ok(Self { server, load }),
            _ => bail!("server and load need a CPU each, and this process may use one only"),
        }
    }

    /// Binds the calling thread, and those that it will start, to the load's CPU.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn bind_load(self) -> Result<()> {
        bind(0, self.load)
    }

    /// Lets the calling thread run on both.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn bind_anywhere(self) -> Result<()> {
        bind_to(0, &[self.server, self.load])
    }

    /// Binds every thread of a process to the server's CPU.
    ///
    /// # Errors
    /// The process is gone.
    pub(super) fn bind_server(self, pid: i32) -> Result<()> {
        accounting::threads(pid)?.into_iter().try_for_each(|thread| bind(thread, self.server))
    }

    /// Binds the workers of a process to both CPUs in turn.
    ///
    /// # Errors
    /// The process is gone.
    pub(super) fn bind_workers_apart(self, pid: i32) -> Result<()> {
        let workers = accounting::workers(pid)?;
        let cpus = [self.server, self.load].into_iter().cycle();
        workers.into_iter().zip(cpus).try_for_each(|((thread, _), cpu)| bind(thread, cpu))
    }
}

fn bind(thread: i32, cpu: usize) -> Result<()> {
    bind_to(thread, &[cpu])
}

fn bind_to(thread: i32, cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu).with_context(|| format!("there is no CPU {cpu}"))?;
    }
    sched_setaffinity(Pid::from_raw(thread), &set).with_context(|| format!("binding thread {thread} to CPUs {cpus:?}"))
}

/// Moves this thread, and those that it will start, into a network that nobody else uses.
///
/// # Errors
/// It may not, which leaves everything as it was; or the new network's loopback cannot be brought up.
pub(super) fn leave_shared_network() -> Result<()> {
    let ip = |arguments: &[&str]| {
        let status = Command::new("ip").args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).status();
        ensure!(status.context("starting ip")?.success(), "ip {arguments:?} failed");
        Ok(())
    };
    ip(&["-Version"])?;
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
    ip(&["link", "set", "lo", "up"])
}

/// What the figures were measured on: processor and kernel.
pub(super) fn description() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("unknown processor", |(_, model)| model.trim());
    let count = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    format!("{model}, {count} CPUs, Linux {}", read("/proc/sys/kernel/osrelease").trim())
}

/// The day, as year, month and day of UTC.
pub(super) fn today() -> String {
    #[expect(clippy::disallowed_methods, reason = "a report says on which day it was made, and nothing depends on it")]
    let now = SystemTime::now();
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    date(seconds / 86_400)
}

/// The date so many days after 1 January 1970. Counted from the first of March, so that a leap day ends a year.
fn date(days: u64) -> String {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = 400 * era + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Runnable processes, averaged over the last minute: how much else the machine had to do.
pub(super) fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|figure| figure.parse().ok()).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_dates() {
        for (days, expected) in [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (11_017, "2000-03-01"),
            (20_453, "2025-12-31"),
            (20_454, "2026-01-01"),
        ] {
            assert_eq!(date(days), expected, "{days}");
        }
    }
}

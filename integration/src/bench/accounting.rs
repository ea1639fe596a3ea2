//! What the kernel says that processes used.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// CPU time of all threads of a process. Threads that have ended are not in it: candidates keep theirs while they serve.
///
/// # Errors
/// The process is gone.
pub(super) fn process(pid: i32) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for thread in threads(pid)? {
        let path = format!("/proc/{pid}/task/{thread}/schedstat");
        match cpu_of(Path::new(&path)) {
            Ok(used) => sum += used,
            // It ended after it was listed.
            Err(_) if !Path::new(&path).exists() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sum)
}

/// CPU time of each thread of some processes at one time.
#[derive(Debug)]
pub(super) struct Usage(BTreeMap<i32, Duration>);

impl Usage {
    /// What the threads of these processes have used so far.
    ///
    /// # Errors
    /// One of the processes is gone.
    pub(super) fn of(pids: &[i32]) -> Result<Self> {
        let mut used = BTreeMap::new();
        for &pid in pids {
            for thread in threads(pid)? {
                let path = format!("/proc/{pid}/task/{thread}/schedstat");
                match cpu_of(Path::new(&path)) {
                    Ok(cpu) => _ = used.insert(thread, cpu),
                    // It ended after it was listed.
                    Err(_) if !Path::new(&path).exists() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Self(used))
    }

    /// What was used since then, by threads that started since then too. What a thread used that has ended is lost: servers
    /// keep theirs.
    pub(super) fn since(&self, before: &Self) -> Duration {
        let used = |(thread, used): (&i32, &Duration)| match before.0.get(thread) {
            Some(before) => used.saturating_sub(*before),
            None => *used,
        };
        self.0.iter().map(used).sum()
    }
}

/// A process, and all that it started directly or through others.
///
/// # Errors
/// The kernel does not list processes.
pub(super) fn family(pid: i32) -> Result<Vec<i32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").context("reading /proc")? {
        let name = entry.context("reading /proc")?.file_name();
        let Some(process) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // One that ended meanwhile has no file and no part in it.
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        if let Some(parent) = parent(&stat) {
            parents.push((process, parent));
        }
    }
    let mut family = BTreeSet::from([pid]);
    // Until no more are found: a child may have a lower number than its parent.
    loop {
        let known = family.len();
        family.extend(
            parents.iter().filter(|(_, parent)| family.contains(parent)).map(|(child, _)| *child).collect::<Vec<_>>(),
        );
        if family.len() == known {
            return Ok(family.into_iter().collect());
        }
    }
}

/// The parent in a line of `/proc/PID/stat`: the second field behind the name, which may hold spaces and parentheses itself.
fn parent(stat: &str) -> Option<i32> {
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// CPU time of the calling thread.
///
/// # Errors
/// The kernel keeps no such figures.
pub(super) fn own_thread() -> Result<Duration> {
    cpu_of(Path::new("/proc/thread-self/schedstat"))
}

/// The threads of a process.
///
/// # Errors
/// The process is gone.
pub(super) fn threads(pid: i32) -> Result<Vec<i32>> {
    let folder = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&folder).with_context(|| format!("reading {folder}"))?;
    entries
        .map(|entry| {
            let name = entry.with_context(|| format!("reading {folder}"))?.file_name();
            name.to_string_lossy().parse().with_context(|| format!("a thread's id in {folder}"))
        })
        .collect()
}

/// Bytes of memory that a process has resident.
///
/// # Errors
/// The process is gone.
pub(super) fn resident(pid: i32) -> Result<u64> {
    status(&format!("/proc/{pid}/status"), "VmRSS:").map(|kilobytes| kilobytes * 1024)
}

/// Bytes of memory that a process has resident and that is its own: pages of its program, which are there when they were read and
/// shared with others of its kind, are not.
///
/// # Errors
/// The process is gone.
pub(super) fn own(pid: i32) -> Result<u64> {
    status(&format!("/proc/{pid}/status"), "RssAnon:").map(|kilobytes| kilobytes * 1024)
}

/// The most that a process has had resident, bytes.
///
/// # Errors
/// The process is gone.
pub(super) fn peak(pid: i32) -> Result<u64> {
    status(&format!("/proc/{pid}/status"), "VmHWM:").map(|kilobytes| kilobytes * 1024)
}

/// How often the threads of a process gave their CPU away because they had to wait: for a packet, or for one another.
///
/// # Errors
/// The process is gone.
pub(super) fn waits(pid: i32) -> Result<u64> {
    let of = |thread| status(&format!("/proc/{pid}/task/{thread}/status"), "voluntary_ctxt_switches:");
    threads(pid)?.into_iter().map(of).sum()
}

/// CPU time of each thread of a process that serves, by their order.
///
/// # Errors
/// The process is gone.
pub(super) fn workers(pid: i32) -> Result<Vec<(i32, Duration)>> {
    let mut workers = Vec::new();
    for thread in threads(pid)? {
        let folder = format!("/proc/{pid}/task/{thread}");
        let name = fs::read_to_string(format!("{folder}/comm")).with_context(|| format!("reading {folder}/comm"))?;
        if name.starts_with("dns-") {
            workers.push((thread, cpu_of(Path::new(&format!("{folder}/schedstat")))?));
        }
    }
    Ok(workers)
}

/// A number from a file of lines that begin with what they are about.
fn status(path: &str, what: &str) -> Result<u64> {
    let status = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    let figure = status.lines().find_map(|line| line.strip_prefix(what)?.split_whitespace().next()?.parse().ok());
    figure.with_context(|| format!("no {what} in {path}"))
}

fn cpu_of(path: &Path) -> Result<Duration> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    // The first of three figures: nanoseconds on a CPU.
    let nanos = text.split_whitespace().next().and_then(|figure| figure.parse().ok());
    Ok(Duration::from_nanos(nanos.with_context(|| format!("no figure in {}", path.display()))?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn work_shows_in_the_figures_of_a_thread() {
        let before = own_thread().unwrap();
        // Until the kernel has counted something: it does so at least once per tick.
        while own_thread().unwrap() == before {
            std::hint::black_box(before);
        }
    }

    #[test]
    fn work_shows_in_the_figures_of_a_process() {
        // A process of its own: the threads of this one come and go with other tests, and take their figures along.
        let mut worker = std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let pid = i32::try_from(worker.id()).unwrap();
        let before = process(pid).unwrap();
        while process(pid).unwrap() == before {
            std::hint::black_box(before);
        }
        assert!(own(pid).unwrap() > 0 && resident(pid).unwrap() > own(pid).unwrap());
        assert!(peak(pid).unwrap() >= resident(pid).unwrap());
        assert_eq!(workers(pid).unwrap(), [], "a shell has none");
        waits(pid).unwrap();
        worker.kill().unwrap();
        worker.wait().unwrap();
    }

    #[test]
    fn the_work_of_children_is_counted_and_that_before_a_turn_is_not() {
        let script = "(while :; do :; done) & echo $!; wait";
        let mut shell = std::process::Command::new("sh");
        let mut shell = shell.args(["-c", script]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(shell.stdout.take().unwrap()), &mut line).unwrap();
        let child: i32 = line.trim().parse().unwrap();
        let family = family(i32::try_from(shell.id()).unwrap()).unwrap();
        assert!(family.contains(&child) && family.len() == 2, "{family:?}");
        let before = Usage::of(&family).unwrap();
        assert_eq!(before.since(&before), Duration::ZERO);
        while Usage::of(&family).unwrap().since(&before).is_zero() {
            std::hint::black_box(&before);
        }
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::Signal::SIGKILL).unwrap();
        shell.wait().unwrap();
    }

    #[test]
    fn a_name_with_spaces_and_parentheses_hides_no_parent() {
        assert_eq!(parent("42 (a) b (c)) S 7 42 42 0"), Some(7));
        assert_eq!(parent("42 (sh"), None);
    }
}

//! Other caching servers, with the settings that their documentation recommends for speed, where they are installed.

mod bind;
mod dnsdist;
mod dnsmasq;
mod install;
mod knot;
mod recursor;
mod unbound;

pub(super) use install::install;

use std::fs;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::process::Process;

/// Folders with programs, beyond those that a shell of root has.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];

/// Answers for which every peer's cache has room, where a number of them can be set: as many names as the benchmark can ask for.
const CACHED_MAX: u32 = 1_000_000;

/// Bytes for which every peer's cache has room, where those can be set.
const CACHE_MIB: u32 = 1_024;

/// Bytes of every peer's receive buffer, where it can be set.
const RECEIVE_BUFFER: u32 = 4 << 20;

/// A server that is known here.
#[derive(Debug)]
pub(super) struct Peer {
    /// Its name as a candidate.
    pub(super) name: &'static str,
    /// Its program.
    program: &'static str,
    /// Its package in Debian.
    package: &'static str,
    /// The services that Debian would start at the next boot.
    services: &'static [&'static str],
    /// The name of its configuration file.
    file: &'static str,
    /// What stands in it.
    configuration: fn(&Place) -> String,
    /// How the program is called.
    arguments: fn(&Place, &Path) -> Vec<String>,
}

/// All that are known.
pub(super) static PEERS: [Peer; 6] =
    [unbound::PEER, dnsdist::PEER, recursor::PEER, knot::PEER, bind::PEER, dnsmasq::PEER];

/// Where a candidate listens, whom it asks, and where its files are.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) listen: SocketAddrV4,
    pub(super) upstream: SocketAddrV4,
    /// A folder of its own.
    pub(super) folder: PathBuf,
}

impl Peer {
    /// Whether its program is there.
    pub(super) fn is_installed(&self) -> bool {
        self.path().is_some()
    }

    /// Starts it with one thread. `None` when it is not installed.
    ///
    /// # Errors
    /// It is installed and cannot be started.
    pub(super) fn start(&self, place: &Place) -> Result<Option<Process>> {
        let Some(program) = self.path() else { return Ok(None) };
        let file = place.folder.join(self.file);
        fs::write(&file, (self.configuration)(place)).with_context(|| format!("writing {}", file.display()))?;
        let arguments = (self.arguments)(place, &file);
        Process::start(self.name, &program, &arguments, &[], &place.folder.join("output")).map(Some)
    }

    /// Its version, as far as Debian knows it, without what Debian adds: an epoch and a revision.
    pub(super) fn version(&self) -> Option<String> {
        let mut command = Command::new("dpkg-query");
        command.args(["--show", "--showformat=${Version}", self.package]).stdin(Stdio::null()).stderr(Stdio::null());
        let output = command.output().ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout)
            .ok()
            .filter(|version| !version.is_empty())
            .map(|version| upstream(&version).to_owned())
    }

    fn path(&self) -> Option<PathBuf> {
        FOLDERS.iter().map(|folder| Path::new(folder).join(self.program)).find(|path| path.is_file())
    }
}

fn upstream(version: &str) -> &str {
    let version = version.split_once(':').map_or(version, |(_, version)| version);
    version.rsplit_once('-').map_or(version, |(version, _)| version)
}

fn words<const N: usize>(words: [&str; N], file: &Path) -> Vec<String> {
    words.into_iter().map(str::to_owned).chain([file.display().to_string()]).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_that_of_the_program() {
        for (version, expected) in [("1:9.18.49-1~deb12u3", "9.18.49"), ("2.90-4~deb12u2", "2.90"), ("3", "3")] {
            assert_eq!(upstream(version), expected);
        }
    }

    #[test]
    fn every_peer_listens_where_it_is_asked_and_asks_the_upstream() {
        let place = Place {
            listen: "127.0.0.3:5301".parse().unwrap(),
            upstream: "127.0.0.4:5302".parse().unwrap(),
            folder: "/tmp/bench/peer".into(),
        };
        for peer in &PEERS {
            let text = (peer.configuration)(&place);
            for part in ["127.0.0.3", "5301", "127.0.0.4", "5302"] {
                assert!(text.contains(part), "{}: no {part} in {text}", peer.name);
            }
            let arguments = (peer.arguments)(&place, &place.folder.join(peer.file));
            assert!(arguments.iter().any(|argument| argument.contains("/tmp/bench/peer")), "{}", peer.name);
        }
    }
}

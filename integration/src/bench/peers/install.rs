//! Brings missing peers onto the machine, as Debian packages.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::{FOLDERS, Peer};

/// What root does.
const SCRIPT: &str = include_str!("install.sh");

/// Installs those that are missing. None of their services is started, neither now nor at the next boot.
///
/// # Errors
/// This is no Debian, there is no way to become root, or a package cannot be installed.
pub(in crate::bench) fn install<'p>(peers: impl Iterator<Item = &'p Peer>) -> Result<()> {
    let missing: Vec<&Peer> = peers.filter(|peer| !peer.is_installed()).collect();
    if missing.is_empty() {
        eprintln!("all peers are installed");
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|peer| peer.package).collect();
    let by_hand = format!("apt-get install {}", packages.join(" "));
    ensure!(
        program("apt-get").is_some(),
        "--install-peers installs Debian packages, and there is no apt-get: install the programs of {} by other means",
        packages.join(", ")
    );
    let mut command = if is_root()? {
        Command::new("sh")
    } else if let Some(sudo) = program("sudo") {
        let mut command = Command::new(sudo);
        command.arg("sh");
        command
    } else {
        bail!("--install-peers needs root or sudo, and there is neither: run `{by_hand}` as root, then this again")
    };
    eprintln!("installing with apt-get, without starting their services: {}", packages.join(", "));
    command.args(["-c", SCRIPT, "sh"]).args(&packages).arg("--");
    command.args(missing.iter().flat_map(|peer| peer.services));
    // What apt says belongs to the messages: the output is what was measured.
    let status = command.stdin(Stdio::inherit()).stdout(std::io::stderr()).status();
    let status = status.with_context(|| format!("starting {:?}", command.get_program()))?;
    ensure!(status.success(), "installing {} failed with {status}; try `{by_hand}` as root", packages.join(", "));
    match missing.iter().find(|peer| !peer.is_installed()) {
        Some(peer) => {
            bail!("the package {} is installed, but there is no {} in {FOLDERS:?}", peer.package, peer.program)
        }
        None => Ok(()),
    }
}

/// A process's folder belongs to the user as whom it acts.
fn is_root() -> Result<bool> {
    Ok(fs::metadata("/proc/self").context("asking who runs this")?.uid() == 0)
}

fn program(name: &str) -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.is_file())
}

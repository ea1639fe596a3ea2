//! The cluster's folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use heimdall_certs::{CA_FILE, CERTIFICATE_FILE, KEY_FILE};
use serde_json::json;
use tempfile::TempDir;

use super::processes::Processes;
use crate::cluster::Part;
use crate::replica::{Layout, write_certificates};

/// Describes the cluster to programs; there once all replicas are ready.
const DESCRIPTION: &str = "cluster.json";

/// Name of the operator whose certificate is made.
const OPERATOR: &str = "developer";

pub(super) struct Files {
    path: PathBuf,
    temporary: Option<TempDir>,
}

impl Files {
    /// Uses the given folder, or makes one that goes away.
    pub(super) fn create(wanted: Option<&Path>) -> Result<Self> {
        let Some(wanted) = wanted else {
            let temporary =
                tempfile::Builder::new().prefix("heimdall-").tempdir().context("making a temporary folder")?;
            return Ok(Self { path: temporary.path().to_owned(), temporary: Some(temporary) });
        };
        std::fs::create_dir_all(wanted).with_context(|| format!("making {}", wanted.display()))?;
        let path = wanted.canonicalize().with_context(|| format!("finding {}", wanted.display()))?;
        // Who waits for the description must not find an earlier cluster's.
        match std::fs::remove_file(path.join(DESCRIPTION)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                bail!("removing the old {DESCRIPTION} in {}: {error}", path.display())
            }
            _ => {}
        }
        Ok(Self { path, temporary: None })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes an authority, the replicas' certificates and an operator's; gives the operator's folder.
    pub(super) fn write_certificates(&self, layouts: &[Layout]) -> Result<PathBuf> {
        let ca = write_certificates(layouts)?;
        let folder = self.path.join("tls").join("operator");
        ca.operator(OPERATOR).and_then(|leaf| leaf.write_to(&folder)).context("making the operator's certificate")?;
        Ok(folder)
    }

    /// Writes the description, whole or not at all.
    pub(super) fn write_description(
        &self,
        layouts: &[Layout],
        processes: &Processes,
        operator: Option<&Path>,
    ) -> Result<()> {
        let agents = operator.is_some();
        let replicas: Vec<_> = layouts
            .iter()
            .enumerate()
            .map(|(index, layout)| {
                json!({
                    "name": layout.name,
                    "dns": layout.dns,
                    "dns_http": layout.dns_http,
                    "dns_pid": processes.pid(index, Part::Dns),
                    "agent_http": agents.then_some(layout.agent_http),
                    "agent_pid": processes.pid(index, Part::Agent),
                    "peer": agents.then_some(layout.peer),
                    "socket": agents.then_some(&layout.socket),
                    "peer_cert": agents.then(|| layout.tls.join(CERTIFICATE_FILE)),
                    "peer_key": agents.then(|| layout.tls.join(KEY_FILE)),
                })
            })
            .collect();
        let first = layouts.first().filter(|_| agents).map(|layout| layout.tls.clone());
        let description = json!({
            "replicas": replicas,
            "ca": operator.map(|folder| folder.join(CA_FILE)),
            "peer_cert": first.as_ref().map(|folder| folder.join(CERTIFICATE_FILE)),
            "peer_key": first.as_ref().map(|folder| folder.join(KEY_FILE)),
            "operator_cert": operator.map(|folder| folder.join(CERTIFICATE_FILE)),
            "operator_key": operator.map(|folder| folder.join(KEY_FILE)),
        });
        let (path, new) = (self.path.join(DESCRIPTION), self.path.join("cluster.json.new"));
        std::fs::write(&new, format!("{description:#}\n"))
            .and_then(|()| std::fs::rename(&new, &path))
            .with_context(|| format!("writing {}", path.display()))
    }

    /// Removes the sockets, and the folder if it was ours. What fails is said: nobody else will clean up.
    pub(super) fn clean_up(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            if let Err(error) = temporary.close() {
                eprintln!("cannot remove {}: {error}", self.path.display());
            }
            return;
        }
        for entry in std::fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let path = entry.path();
            if (path.extension().is_some_and(|extension| extension == "sock") || path.ends_with(DESCRIPTION))
                && let Err(error) = std::fs::remove_file(&path)
            {
                eprintln!("cannot remove {}: {error}", path.display());
            }
        }
    }
}

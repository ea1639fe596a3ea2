//! `heimdall-certs`: makes a development authority and the certificates of replicas and operators.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use clap::Parser;
use heimdall_certs::{CA_FILE, CERTIFICATE_FILE, Ca, KEY_FILE, TRUST_DOMAIN, Validity, write_ca};

/// Makes a development certificate authority and certificates for replicas and operators.
///
/// Writes DIR/ca.crt and, for each name, DIR/NAME/{tls.crt,tls.key,ca.crt}. The authority's key is not kept: a later run
/// makes a new authority, and certificates of two runs do not trust each other.
#[derive(Debug, Parser)]
#[command(name = "heimdall-certs", version)]
struct Options {
    /// Folder to write to
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Trust domain of the identities
    #[arg(long, value_name = "DOMAIN", default_value = TRUST_DOMAIN)]
    trust_domain: String,
    /// Name of a replica, its HEIMDALL_NODE (repeatable)
    #[arg(long = "replica", value_name = "NAME")]
    replicas: Vec<String>,
    /// Name of an operator (repeatable)
    #[arg(long = "operator", value_name = "NAME")]
    operators: Vec<String>,
    /// Days for which the certificates hold
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Overwrite certificates that are there already
    #[arg(long)]
    force: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    check_names(&options)?;
    if !options.force {
        check_absent(&options)?;
    }
    let ca = Ca::valid(&options.trust_domain, Validity::days(options.days))?;
    // Everything is made before anything is written: a bad name must not leave half a set of files.
    let mut leaves = Vec::new();
    for name in &options.replicas {
        leaves.push((name, "replica", ca.replica(name)?));
    }
    for name in &options.operators {
        leaves.push((name, "operator", ca.operator(name)?));
    }
    write_ca(&ca, &options.dir)?;
    println!("{}", options.dir.join(CA_FILE).display());
    for (name, role, leaf) in leaves {
        let dir = options.dir.join(name);
        leaf.write_to(&dir)?;
        println!("{}  spiffe://{}/{role}/{name}", dir.display(), ca.trust_domain());
    }
    Ok(())
}

fn check_names(options: &Options) -> Result<()> {
    let names = || options.replicas.iter().chain(&options.operators);
    ensure!(names().next().is_some(), "nothing to make: name at least one --replica or --operator");
    let mut seen = BTreeSet::new();
    for name in names() {
        ensure!(seen.insert(name), "{name:?} is given twice: each name has a folder of its own");
        // On a file system a name and the authority's file share one folder.
        ensure!(name != CA_FILE, "{name:?} cannot be a name: it is the authority's file");
    }
    Ok(())
}

fn check_absent(options: &Options) -> Result<()> {
    let mut paths = vec![options.dir.join(CA_FILE)];
    for name in options.replicas.iter().chain(&options.operators) {
        for file in [CERTIFICATE_FILE, KEY_FILE, CA_FILE] {
            paths.push(options.dir.join(name).join(file));
        }
    }
    if let Some(path) = paths.iter().find(|path| exists(path)) {
        bail!(
            "{} exists: a new authority would not be trusted by those who hold the old files; give --force to overwrite them, or another --dir",
            path.display()
        );
    }
    Ok(())
}

/// Whether there is anything at `path`, be it a link to nothing.
fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

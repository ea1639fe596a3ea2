//! Finds `heimdall-dns` and `heimdall-agent` beside the running program, and has cargo bring them up to date.
//!
//! `cargo run` and `cargo test` build the binaries of one package only, so its siblings may be missing or stale.
//! A nested cargo must see the same environment as the outer one would: cargo tells a program which package it
//! belongs to through variables, and build scripts that watch those would all run again.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};

/// Paths of the two servers.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `heimdall-dns`.
    pub dns: PathBuf,
    /// `heimdall-agent`.
    pub agent: PathBuf,
}

/// The two servers, built once per process.
///
/// # Errors
/// They are missing and cannot be built.
pub fn binaries() -> Result<Binaries> {
    static FOUND: OnceLock<Result<Binaries, String>> = OnceLock::new();
    FOUND.get_or_init(|| find().map_err(|error| format!("{error:#}"))).clone().map_err(anyhow::Error::msg)
}

fn find() -> Result<Binaries> {
    let program = env::current_exe().context("finding the running program")?;
    let mut folder = program.parent().context("the program must lie in a folder")?;
    if folder.file_name().is_some_and(|name| name == "deps") {
        folder = folder.parent().context("a deps folder must have a parent")?;
    }
    let found = Binaries { dns: folder.join("heimdall-dns"), agent: folder.join("heimdall-agent") };
    // Only a program that lies where cargo puts it can be rebuilt there. The tag is missing where somebody else made the folder.
    let is_cargos = |target: &Path| ["CACHEDIR.TAG", ".rustc_info.json"].iter().any(|file| target.join(file).is_file());
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().filter(|root| root.join("Cargo.toml").is_file());
    match (workspace, folder.parent(), folder.file_name().and_then(|name| name.to_str())) {
        (Some(root), Some(target), Some(profile)) if is_cargos(target) => {
            build(root, target, profile)?;
        }
        _ => {}
    }
    for path in [&found.dns, &found.agent] {
        ensure!(path.is_file(), "{} does not exist; build it with `cargo build --bins`", path.display());
    }
    Ok(found)
}

fn build(root: &Path, target: &Path, profile: &str) -> Result<()> {
    #[expect(
        clippy::disallowed_methods,
        reason = "cargo names itself to the programs that it runs; this is no option of ours"
    )]
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // No `-p`: it would choose features for those packages alone and build their dependencies anew.
    command.args(["build", "--quiet", "--bin", "heimdall-dns", "--bin", "heimdall-agent"]);
    match profile {
        "debug" => {}
        "release" => {
            command.arg("--release");
        }
        other => {
            command.args(["--profile", other]);
        }
    }
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if ["CARGO_MANIFEST", "CARGO_PKG", "CARGO_BIN", "CARGO_CRATE", "CARGO_PRIMARY"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        {
            command.env_remove(name);
        }
    }
    let output = command
        .current_dir(root)
        .env("CARGO_TARGET_DIR", target)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("cargo could not build the servers ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

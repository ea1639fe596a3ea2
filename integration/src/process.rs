//! One child process: its output in a file, its end certain.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
pub use nix::sys::signal::Signal;
use nix::sys::signal::{kill, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// How long a process that was told to end may take before it is killed: its drain of 6 s and some more.
pub const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of a log that a failing test shows.
const SHOWN_LOG: usize = 6_000;

/// A running child. Dropping it kills the process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pid: Pid,
    log: PathBuf,
}

impl Process {
    /// Starts `program` with its output appended to `log`.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(
        name: &str,
        program: &Path,
        arguments: &[String],
        environment: &[(String, String)],
        log: &Path,
    ) -> Result<Self> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        let mut command = Command::new(program);
        for (variable, _) in std::env::vars_os() {
            let inherited = variable.to_string_lossy();
            if inherited.starts_with("HEIMDALL_") || inherited.starts_with("OTEL_") {
                command.env_remove(&variable);
            }
        }
        let child = command
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("sharing the log file")?)
            .stderr(output)
            // A group of its own: Ctrl-C goes to the whole group of a terminal, and a second signal means "abort".
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).context("a child must have an id")?;
        Ok(Self { name: name.to_owned(), child, pid: Pid::from_raw(pid), log: log.to_owned() })
    }

    /// The process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Sends a signal; a process that is gone does not mind.
    pub fn signal(&self, signal: Signal) {
        // Not reaped yet as long as `child` was not waited for, so the id cannot be another process's.
        if self.child.id().is_some() {
            let _ = kill(self.pid, signal);
        }
    }

    /// Sends a signal to it and to what it started, unless it was waited for.
    pub fn signal_group(&self, signal: Signal) {
        // It leads a group of its own. Not reaped yet, so the id cannot be another group's.
        if self.child.id().is_some() {
            let _ = killpg(self.pid, signal);
        }
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// The system cannot say.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        self.child.wait().await.with_context(|| format!("waiting for {}", self.name))
    }

    /// Ends it: SIGTERM, and SIGKILL when it has not ended in time. A stopped process only acts on the second.
    ///
    /// # Errors
    /// The system cannot say how it ended.
    pub async fn stop(&mut self, patience: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM);
        self.ended_within(patience).await
    }

    /// Waits for the end of a process that was told to end: a second SIGTERM would abort it. SIGKILL when it has not ended
    /// in time.
    ///
    /// # Errors
    /// The system cannot say how it ended.
    pub async fn ended_within(&mut self, patience: Duration) -> Result<ExitStatus> {
        if let Ok(status) = tokio::time::timeout(patience, self.child.wait()).await {
            return status.with_context(|| format!("waiting for {}", self.name));
        }
        self.signal(Signal::SIGKILL);
        self.ended().await
    }

    /// Kills it and waits until it is gone.
    ///
    /// # Errors
    /// The system cannot say how it ended.
    pub async fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL);
        self.ended().await
    }

    /// Its output so far.
    pub fn output(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The last part of its output, under its name.
    pub fn shown_output(&self) -> String {
        let output = self.output();
        let mut start = output.len().saturating_sub(SHOWN_LOG);
        while !output.is_char_boundary(start) {
            start += 1;
        }
        format!("--- {} (pid {}):\n{}\n", self.name, self.pid, &output[start..])
    }
}

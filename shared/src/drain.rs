//! From the first signal to the end: stop, let what is under way finish, and give up after a deadline.

use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Exit code of a process that a second signal ended: 128 + SIGTERM, as a shell would report it.
pub const EXIT_ABORTED: u8 = 143;

/// The signals that end a process, and the one that makes it read its configuration again.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// End (SIGTERM, SIGINT).
    Stop,
    /// Read the configuration again (SIGHUP).
    Reload,
}

impl Signals {
    /// Takes the signals over from the system's default, which would end the process at once.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn take() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next signal.
    pub async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.terminate.recv() => Request::Stop,
            _ = self.interrupt.recv() => Request::Stop,
            _ = self.hangup.recv() => Request::Reload,
        }
    }
}

/// Runs `work` to its end once `stop` is cancelled, for at most `deadline`; a second request to stop ends the wait at once.
///
/// Gives the exit code: success when everything finished, also when the deadline had to cut it off.
pub async fn drain(
    work: impl Future<Output = ()>,
    second: impl Future<Output = ()>,
    stop: &CancellationToken,
    deadline: Duration,
) -> ExitCode {
    stop.cancel();
    tokio::select! {
        biased;
        () = second => {
            warn!("a second signal: ending at once, what was under way is lost");
            ExitCode::from(EXIT_ABORTED)
        }
        finished = tokio::time::timeout(deadline, work) => {
            match finished {
                Ok(()) => info!("drained"),
                Err(_) => warn!(deadline = ?deadline, "not drained within the deadline: ending all the same"),
            }
            ExitCode::SUCCESS
        }
    }
}

/// The next request to stop; requests to reload in between are answered in the log.
pub async fn stop_requested(signals: &mut Signals, reload: &str) {
    while signals.next().await == Request::Reload {
        info!("SIGHUP: {reload}");
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_finishes_before_the_end() {
        let stop = CancellationToken::new();
        let work = async {
            stop.cancelled().await;
            // On the paused clock: work that takes half of the time there is.
            tokio::time::sleep(Duration::from_secs(3)).await;
        };
        let begun = tokio::time::Instant::now();
        let code = drain(work, pending(), &stop, Duration::from_secs(6)).await;
        assert_eq!((code, begun.elapsed()), (ExitCode::SUCCESS, Duration::from_secs(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_cuts_off_what_never_finishes() {
        let stop = CancellationToken::new();
        let begun = tokio::time::Instant::now();
        let code = drain(pending(), pending(), &stop, Duration::from_secs(6)).await;
        assert_eq!((code, begun.elapsed()), (ExitCode::SUCCESS, Duration::from_secs(6)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_ends_it_at_once() {
        let stop = CancellationToken::new();
        let begun = tokio::time::Instant::now();
        let code = drain(pending(), async {}, &stop, Duration::from_secs(6)).await;
        assert_eq!((code, begun.elapsed()), (ExitCode::from(EXIT_ABORTED), Duration::ZERO));
    }
}

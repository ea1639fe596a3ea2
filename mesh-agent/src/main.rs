//! `heimdall-agent`: configuration, build, spawn, signal, drain.

use std::process::ExitCode;

use anyhow::Context as _;
use heimdall_agent::config::Config;
use heimdall_shared::config::{EXIT_USAGE, Mode};
use heimdall_shared::drain::{Request, Signals, drain, stop_requested};
use heimdall_shared::telemetry::{Tracer, init_logs};
use mimalloc::MiMalloc;
use tracing::{error, info, warn};

/// With glibc's allocator, allocations took a fifth of a dns-server's instructions per miss and a tenth of an agent's.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let (config, mode, warnings) = match Config::from_process() {
        Ok(read) => read,
        Err(code) => return code,
    };
    let tracing = init_logs(&config.log, false).and_then(|()| Tracer::from_environment("heimdall-agent", &config.node));
    let (tracer, exporter) = match tracing {
        Ok(tracing) => tracing,
        Err(wrong) => {
            eprintln!("{wrong}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    for warning in warnings {
        warn!("{warning}");
    }
    if mode == Mode::Check {
        println!("the configuration is good");
        return ExitCode::SUCCESS;
    }
    // One crypto provider for the process; the only other caller of this would be ourselves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let code = run(config, tracer).unwrap_or_else(|error| {
        error!("{error:#}");
        ExitCode::FAILURE
    });
    drop(exporter);
    code
}

fn run(config: Config, tracer: Tracer) -> anyhow::Result<ExitCode> {
    let mut threads = match config.workers {
        // Everything on this thread: no message is handed from one thread to another.
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = threads.worker_threads(config.workers).enable_all().build().context("cannot start the threads")?;
    runtime.block_on(async {
        let mut signals = Signals::take().context("cannot take over signals")?;
        let deadline = config.drain;
        let socket = config.socket.display().to_string();
        let node = config.node.clone();
        let app = config.build().await?;
        info!(%node, peers = %app.peer_address(), %socket, http = %app.http_address()?, "listening");
        let running = app.spawn(tracer);
        while signals.next().await == Request::Reload {
            // The mistakes were printed, and what is known stays.
            match Config::from_process() {
                Ok((config, ..)) => {
                    info!(
                        members = config.peers.len() + 1,
                        "SIGHUP: the members are read anew; restart to change the rest"
                    );
                    running.discovered(config.peers).await;
                }
                Err(_) => error!("SIGHUP: the configuration cannot be read; going on with the one before"),
            }
        }
        info!("leaving: nothing new is granted, what is under way is finished");
        let stop = running.stop().clone();
        let second = stop_requested(&mut signals, "ignored, the agent is stopping");
        Ok(drain(running.finish(), second, &stop, deadline).await)
    })
}

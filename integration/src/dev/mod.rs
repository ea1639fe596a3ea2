//! The local cluster: real processes with real certificates on loopback, watched and then ended without a trace.

mod figures;
mod files;
mod greeting;
mod options;
mod processes;
mod resolvers;

pub use options::Options;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::binaries::binaries;
use crate::net::is_free;
use crate::replica::{AgentSocket, Layout, Settings};

use figures::Figures;
use files::Files;
use processes::Processes;
use resolvers::Upstreams;

/// How often the figures are asked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Runs the cluster until a signal ends it.
///
/// # Errors
/// What kept it from starting, or a process that had to be killed.
pub async fn run(options: Options) -> Result<()> {
    let mut signals = Signals::listen()?;
    let mut files = Files::create(options.dir.as_deref())?;
    let mut processes = Processes::default();
    // A signal while things start ends them too: dropping what has started kills it.
    let started = tokio::select! {
        started = start(&options, &files, &mut processes) => started,
        () = signals.next() => Err(anyhow::anyhow!("stopped before the cluster was ready")),
    };
    let watched = match started {
        Ok(cluster) => {
            greeting::print(&options, &cluster);
            watch(&mut processes, &cluster, &mut signals).await;
            println!("\nstopping; a second signal kills what is left");
            // A second signal must not have to wait for the first one's drain.
            tokio::select! {
                ended = processes.drain() => ended,
                () = signals.next() => Err(anyhow::anyhow!("killed while draining")),
            }
        }
        Err(error) => Err(error),
    };
    processes.kill().await;
    files.clean_up();
    watched
}

/// What was started, beside the processes themselves.
struct Cluster {
    layouts: Vec<Layout>,
    upstreams: Upstreams,
    operator: Option<std::path::PathBuf>,
}

async fn start(options: &Options, files: &Files, processes: &mut Processes) -> Result<Cluster> {
    let layouts = layouts(options, files)?;
    for layout in &layouts {
        let agents = (!options.standalone).then_some([layout.agent_http, layout.peer]);
        for address in [layout.dns, layout.dns_http].into_iter().chain(agents.into_iter().flatten()) {
            if !is_free(address) {
                bail!(
                    "{address} is in use, perhaps by an earlier heimdall-dev; end it or shift all ports with --offset"
                );
            }
        }
    }
    let upstreams = Upstreams::choose(&options.upstream).await?;
    println!("upstream: {upstreams}");
    // The first run builds the servers, and cargo says nothing meanwhile.
    println!("making sure that heimdall-dns and heimdall-agent are built");
    let binaries = tokio::task::spawn_blocking(binaries).await.context("building the servers")??;
    let mut settings = Settings {
        upstreams: upstreams.addresses(),
        peers: layouts.iter().map(|layout| (layout.name.clone(), layout.peer)).collect(),
        agent_socket: if options.standalone { AgentSocket::Off } else { AgentSocket::Own },
        ..Settings::default()
    };
    if let Some(url) = &options.otlp {
        settings.environment.push(("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), url.clone()));
        settings.environment.push(("OTEL_TRACES_SAMPLER".to_owned(), "parentbased_always_on".to_owned()));
    }
    let operator = if options.standalone { None } else { Some(files.write_certificates(&layouts)?) };
    processes.start(&binaries, &layouts, &settings, options.standalone).await?;
    files.write_description(&layouts, processes, operator.as_deref())?;
    Ok(Cluster { layouts, upstreams, operator })
}

fn layouts(options: &Options, files: &Files) -> Result<Vec<Layout>> {
    (0..options.replicas)
        .map(|index| Layout::new(&format!("heimdall-{index}"), options::HOST, options.ports(index)?, files.path()))
        .collect()
}

async fn watch(processes: &mut Processes, cluster: &Cluster, signals: &mut Signals) {
    let mut figures = Figures::default();
    loop {
        for gone in processes.ended() {
            figures.interrupt(&format!("{gone}; it is not started again"));
        }
        figures.show(&cluster.layouts).await;
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = signals.next() => return,
        }
    }
}

/// The signals that end the cluster.
struct Signals([Signal; 3]);

impl Signals {
    fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("listening for signals");
        Ok(Self([listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

//! What a cached answer costs over TCP connections on which many queries are on their way.

use std::sync::Arc;

use anyhow::Result;

use super::super::figures::{Figures, Target};
use super::super::streams::Streams;
use super::served::Served;
use super::{Bench, Cost, keep, named, turns};

/// CPU per answer, ours ÷ the peer's of the same round.
const TARGET: Target = Target::AtMost(1.0);

/// Who it is compared with.
const PEER: &str = "unbound";

pub(super) async fn measure(bench: &Bench<'_>, figures: &mut Figures) -> Result<()> {
    let mut servers = vec![Served::heimdall(bench, "heimdall-dns", &[("--workers", "1".to_owned())]).await?];
    match Served::peer(bench, PEER).await? {
        Some(peer) => servers.push(peer),
        None => eprintln!("{PEER} is not installed and not measured; --install-peers installs it"),
    }
    for server in &servers {
        server.warm(bench).await?;
    }
    for round in 0..bench.rounds() {
        let mut costs = vec![None; servers.len()];
        for at in turns(servers.len(), round) {
            costs[at] = Some((servers[at].candidate.name.as_str(), turn(bench, &servers[at], round).await?));
        }
        let costs: Vec<_> = costs.into_iter().flatten().collect();
        let mut of_round = named(&costs);
        if let [(_, ours), (name, theirs)] = costs.as_slice() {
            let ratio = ours.per_answer() / theirs.per_answer();
            of_round.push((format!("CPU per answer, heimdall-dns ÷ {name}"), TARGET, ratio));
        }
        keep(figures, "tcp", round, &of_round);
    }
    Ok(())
}

async fn turn(bench: &Bench<'_>, server: &Served, round: u32) -> Result<Cost> {
    let (span, outstanding, workload) = (bench.span(), bench.options.outstanding, Arc::clone(&bench.workload));
    let before = server.candidate.usage()?;
    let load = server.load(move |address| Streams::open(&workload, address, outstanding)?.ask_for(span, round));
    let tally = load.await?;
    Ok(Cost { tally, server: server.candidate.usage()?.since(&before) })
}

//! How many upstream queries a cluster sends for each that it needs.
//!
//! The workload is played in real time. What it needs is counted from the moments at which the questions were sent: one
//! query for each lifetime of a key in which somebody asks for it.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result};
use heimdall_shared::clock::Moment;

use super::super::figures::{Figures, Target};
use super::super::workload::{Kind, Lives, Subject, Terms, Truth, Windows, events, rule};
use super::player::{Player, Sent};
use super::system::System;
use super::{Build, Run, upstream};
use crate::cluster::{Cluster, Part};
use crate::process::Signal;

/// Upstream queries for each that is needed.
const RATIO: Target = Target::AtMost(1.005);

/// The same when a replica is killed and another one joins.
const RATIO_CHANGED: Target = Target::AtMost(1.03);

/// What the upstream takes for an answer.
const UPSTREAM_TAKES: Duration = Duration::from_millis(20);

/// Keys that were asked for too often and are shown.
const SHOWN: usize = 8;

/// A workload and how fast it is played.
#[derive(Clone, Copy, Debug)]
pub(super) struct Play {
    pub(super) kind: Kind,
    pub(super) name: &'static str,
    /// Divides the model's lifetimes: as many of them in a minute as usual in a quarter of an hour or so.
    pub(super) compressed: u32,
    /// Arrivals per second.
    pub(super) rate: f64,
}

/// The workloads of the targets.
pub(super) const PLAYS: [Play; 2] = [
    Play { kind: Kind::Edge, name: "edge", compressed: 20, rate: 1_000.0 },
    Play { kind: Kind::K8s, name: "k8s", compressed: 2, rate: 150.0 },
];

/// Plays a workload on a new cluster of so many replicas. With `change` one of them is killed half-way and another one joins.
///
/// # Errors
/// A wrong or lost answer.
pub(super) async fn play(
    build: &Build,
    replicas: u32,
    play: Play,
    change: bool,
    run: &Run,
    figures: &mut Figures,
) -> Result<()> {
    let upstream = upstream().await?;
    upstream.otherwise(rule().after(UPSTREAM_TAKES));
    // Neither attempts nor silence may end while a machine that is busy lets somebody wait: the count is what counts.
    let mut builder = Cluster::builder().replicas(replicas as usize).long_budgets().binaries(build.binaries.clone());
    // Nor is anybody given what is over because it waited too long: that is no answer to count.
    builder = builder.dns_option("--stale-limit", "0s");
    if change {
        builder = builder.spares(1);
    }
    let mut system = System::start(builder, &upstream).await?;
    let (lives, rate) = (Lives::Compressed(play.compressed), play.rate);
    let terms = Terms { seed: run.seed, replicas, rate, lives, names: 1, exponent: 1.0 };
    let mut shares = vec![Vec::new(); replicas as usize];
    for event in events(play.kind, &terms).take_while(|event| event.at < run.span) {
        shares[event.replica as usize].push(event);
    }

    let begun = Moment::now();
    let servers = system.cluster.replicas().iter().map(|replica| replica.layout.dns);
    let players: Vec<Player> =
        servers.zip(shares).map(|(server, share)| Player::begin(server, share, begun)).collect::<Result<_>>()?;
    if change {
        tokio::time::sleep(run.span / 2).await;
        exchange(&mut system, &players).await.with_context(|| system.shown_output())?;
    }
    let (mut sent, mut again) = (Vec::new(), 0);
    for player in players {
        let (asked, sent_again) = player.end().await.with_context(|| system.shown_output())?;
        sent.extend(asked);
        again += sent_again;
    }
    sent.sort_by_key(|sent| sent.at);
    let (ideal, windows) = ideal(&sent, begun);
    let resolutions = upstream.journal().total().resolutions as u64;
    let excess = excess(&system, &windows);
    let changed = if change { ", one killed and another joins" } else { "" };
    let id = format!("{}, {replicas} replicas{changed}", play.name);
    for line in excess.iter().take(SHOWN) {
        eprintln!("{id}: {line}");
    }
    figures.round(
        &id,
        0,
        &[
            ("upstream queries ÷ ideal", if change { RATIO_CHANGED } else { RATIO }, resolutions as f64 / ideal as f64),
            ("upstream queries", Target::None, resolutions as f64),
            ("ideal", Target::None, ideal as f64),
            ("questions", Target::None, sent.len() as f64),
            ("questions that were sent again", Target::None, again.into()),
            ("keys with more queries than windows", Target::None, excess.len() as f64),
        ],
    );
    Ok(())
}

/// Kills the last of the replicas that run and has the spare one join, as a deployment replaces what died. Clients are where a
/// Service would send them: those of the killed one ask another replica until the new one is ready, and then that one.
async fn exchange(system: &mut System, players: &[Player]) -> Result<()> {
    let dead = players.len() - 1;
    let new = players.len();
    for part in [Part::Agent, Part::Dns] {
        system.cluster.signal(dead, part, Signal::SIGKILL);
    }
    players[dead].turn_to(system.cluster.replica(0).layout.dns);
    for part in [Part::Agent, Part::Dns] {
        system.cluster.kill(dead, part).await?;
    }
    let members: Vec<usize> = (0..=new).filter(|&replica| replica != dead).collect();
    system.cluster.set_members(&members)?;
    system.cluster.start_replica(new).await?;
    players[dead].turn_to(system.cluster.replica(new).layout.dns);
    Ok(())
}

/// The windows in what was sent: all of them, and those of each subject.
fn ideal(sent: &[Sent], begun: Moment) -> (u64, HashMap<Subject, u64>) {
    let (mut windows, mut of) = (Windows::new(), HashMap::<Subject, u64>::new());
    for Sent { subject, at } in sent {
        let life = Truth::of(&subject.question()).life();
        if windows.asked(at.since(begun), *subject, life) {
            *of.entry(*subject).or_default() += 1;
        }
    }
    (windows.count(), of)
}

/// Keys for which there were more queries than windows, the worst first.
fn excess(system: &System, windows: &HashMap<Subject, u64>) -> Vec<String> {
    let mut worst = Vec::new();
    for (subject, &windows) in windows {
        let question = subject.question();
        let count = system.upstream.journal().count_of(&question).resolutions as u64;
        if count > windows {
            worst.push((count - windows, format!("{:?}: {count} queries in {windows} windows", question)));
        }
    }
    worst.sort_by_key(|(excess, _)| std::cmp::Reverse(*excess));
    worst.into_iter().map(|(_, line)| line).collect()
}

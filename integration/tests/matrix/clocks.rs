//! Clocks that step and clocks that run wrong.

use std::path::{Path, PathBuf};
use std::time::Duration;

use heimdall_integration::cluster::Builder;
use heimdall_integration::history::Bounds;

use super::stage::{NAMES, Stage, cell};

/// How long each wrong time lasts.
const LASTS: Duration = Duration::from_secs(3);

/// The library that changes what a process reads from its clocks.
fn library() -> PathBuf {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib"];
    let files = folders.map(|folder| Path::new(folder).join("faketime/libfaketimeMT.so.1"));
    files.into_iter().find(|file| file.exists()).expect("libfaketime must be installed: apt-get install faketime")
}

fn with_clock(builder: Builder, replica: usize, variables: &[(&str, &str)]) -> Builder {
    let library = library().display().to_string();
    let all = [("LD_PRELOAD", library.as_str())].into_iter().chain(variables.iter().copied());
    all.fold(builder, |builder, (name, value)| builder.environment_of(replica, name, value))
}

/// Cell 23: the wall clock of one replica steps by an hour to and fro, and saws. No answer's life changes by it.
#[test]
fn cell_23_the_wall_clock_of_one_replica_steps() {
    cell("clocks::cell_23_the_wall_clock_of_one_replica_steps", || async {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("time");
        let set = |time: &str| {
            // In one step: half a file would be no time at all.
            let next = folder.path().join("next");
            std::fs::write(&next, format!("{time}\n")).unwrap();
            std::fs::rename(next, &file).unwrap();
        };
        set("+0");
        let path = file.display().to_string();
        let variables =
            [("FAKETIME_TIMESTAMP_FILE", path.as_str()), ("FAKETIME_NO_CACHE", "1"), ("DONT_FAKE_MONOTONIC", "1")];
        let mut stage = Stage::set_with(|builder| with_clock(builder, 0, &variables)).await;
        stage.begin().await;
        for time in ["+3600", "-3600", "+10", "-10", "+10", "+0"] {
            set(time);
            tokio::time::sleep(LASTS).await;
        }
        let fallbacks = stage.fallbacks().await;
        stage.end("cell 23", &Bounds { lost: 0, extra: NAMES / 10 + fallbacks, clock_error: 0.0 }).await;
    });
}

async fn a_clock_runs_wrong(rate: &str) {
    let time = format!("+0 {rate}");
    let mut stage = Stage::set_with(|builder| with_clock(builder, 0, &[("FAKETIME", &time)])).await;
    stage.begin().await;
    tokio::time::sleep(4 * LASTS).await;
    let fallbacks = stage.fallbacks().await;
    // A fast clock sees answers end earlier, and asks that much earlier again.
    let bounds = Bounds { lost: 0, extra: NAMES + fallbacks, clock_error: 0.12 };
    stage.end(&format!("cell 24, {rate}"), &bounds).await;
}

/// Cell 24: all clocks of one replica run ten percent fast. A life may be wrong by that much and no more.
#[test]
fn cell_24_the_clocks_of_one_replica_run_fast() {
    cell("clocks::cell_24_the_clocks_of_one_replica_run_fast", || a_clock_runs_wrong("x1.1"));
}

/// Cell 24: all clocks of one replica run ten percent slow.
#[test]
fn cell_24_the_clocks_of_one_replica_run_slow() {
    cell("clocks::cell_24_the_clocks_of_one_replica_run_slow", || a_clock_runs_wrong("x0.9"));
}

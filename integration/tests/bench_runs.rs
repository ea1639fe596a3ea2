//! The kinds of run of `heimdall-bench`: each ends well and says in JSON what it counted.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use heimdall_integration::binaries::binaries;
use heimdall_integration::process::Process;
use serde_json::Value;

/// How long a run may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// The lines of JSON that one short run prints.
async fn rounds(arguments: &[&str]) -> Vec<Value> {
    // Before any patience begins: building them may take long on a busy machine.
    binaries().unwrap();
    let short = ["--rounds", "1", "--seconds", "1", "--names", "200", "--outstanding", "32", "--rate", "300"];
    let folder = tempfile::tempdir().unwrap();
    let plot = folder.path().join("plot.svg").display().to_string();
    let plotted = ["--plot", plot.as_str()];
    let arguments = short.iter().chain(&plotted).chain(arguments);
    let arguments: Vec<String> = arguments.map(|argument| (*argument).to_owned()).collect();
    let program = Path::new(env!("CARGO_BIN_EXE_heimdall-bench"));
    let mut bench = Process::start("bench", program, &arguments, &[], &folder.path().join("output")).unwrap();
    let ended = tokio::time::timeout(PATIENCE, bench.ended()).await;
    let output = bench.output();
    assert!(ended.is_ok_and(|ended| ended.unwrap().success()), "{arguments:?}:\n{output}");
    output.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The figures of a kind of run with one round.
async fn figures(run: &str, more: &[&str]) -> Value {
    let rounds = rounds(&[&["--run", run], more].concat()).await;
    let [round] = rounds.as_slice() else { panic!("one round of {run} is one line: {rounds:?}") };
    assert_eq!((&round["run"], &round["round"]), (&run.into(), &1.into()));
    assert!(round["load_average"].is_number());
    let figures = round["figures"].clone();
    assert!(figures.as_object().unwrap().values().all(Value::is_number), "{figures}");
    figures
}

#[tokio::test]
async fn every_workload_is_answered_right_from_the_cache() {
    for workload in ["zipf", "edge", "k8s", "storm"] {
        let rounds = rounds(&["--workload", workload, "--only", "heimdall-dns"]).await;
        let ours = &rounds[0]["candidates"]["heimdall-dns"];
        assert!(ours["answers"].as_u64().unwrap() > 0 && ours["lost_or_wrong"] == 0, "{workload}: {ours}");
    }
}

#[tokio::test]
async fn pipelined_queries_over_tcp_are_all_answered() {
    let figures = figures("tcp", &[]).await;
    assert!(figures["heimdall-dns: verified answers"].as_f64().unwrap() > 0.0, "{figures}");
}

#[tokio::test]
async fn two_workers_answer_beside_one() {
    let figures = figures("workers", &[]).await;
    for workers in ["one", "two"] {
        assert!(figures[format!("{workers}: verified answers")].as_f64().unwrap() > 0.0, "{figures}");
    }
    assert!(figures["two: the busier worker's share"].as_f64().unwrap() <= 1.0, "{figures}");
}

#[tokio::test]
async fn every_query_at_a_given_rate_is_answered_with_and_without_misses() {
    let figures = figures("mixed", &[]).await;
    for kind in ["hits alone", "among misses"] {
        assert_eq!(figures[format!("{kind}: verified answers")], 300.0, "{figures}");
    }
    let miss = figures["among misses: p50 µs of a miss"].as_f64().unwrap();
    assert!(miss >= 20_000.0, "the upstream takes 20 ms, and a miss took {miss} µs");
}

#[tokio::test]
async fn overload_is_answered_in_part_and_memory_stays_within_its_limit() {
    let figures = figures("overload", &[]).await;
    assert!(figures["verified answers"].as_f64().unwrap() > 0.0, "{figures}");
    for share in ["share of hits answered", "share of misses answered"] {
        assert!((0.0..=1.0).contains(&figures[share].as_f64().unwrap()), "{figures}");
    }
}

#[tokio::test]
async fn every_name_of_a_flood_is_answered_refused_or_lost() {
    let figures = figures("flood", &["--unique", "300"]).await;
    let of = |what: &str| figures[what].as_f64().unwrap();
    assert_eq!(of("names"), 300.0);
    assert_eq!(of("verified answers") + of("refused") + of("lost"), 300.0, "{figures}");
    assert!(of("verified answers") > 0.0, "{figures}");
}

#[tokio::test]
async fn a_replica_that_is_killed_and_another_that_joins_lose_no_question_of_a_workload() {
    let rounds = rounds(&["--mesh", "change", "--replicas", "3", "--play", "8"]).await;
    let named: Vec<_> = rounds.iter().map(|round| round["mesh"].as_str().unwrap()).collect();
    let expected = ["edge", "k8s"].map(|play| format!("{play}, 3 replicas, one killed and another joins"));
    assert_eq!(named, expected);
    for round in &rounds {
        let of = |what: &str| round["figures"][what].as_f64().unwrap();
        assert!(of("questions") > 0.0 && of("ideal") > 0.0, "{round}");
        // Eight seconds are too short for the promised ratio: each question that is under way when the replica is killed weighs
        // more.
        assert!(of("upstream queries ÷ ideal") <= 1.25, "{round}");
    }
}

//! `heimdall-bench` as a person uses it: rounds as JSON, a table and a plot when all answers are right, a failure that says
//! whose answer was wrong when one is not. What things cost is for a quiet machine to say.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use heimdall_integration::binaries::binaries;
use heimdall_integration::process::Process;
use heimdall_integration::upstream::{Rule, Upstream};
use heimdall_integration::wire::Record;
use serde_json::Value;

/// How long a run may take, the building of the servers included.
const PATIENCE: Duration = Duration::from_secs(300);

const BENCH: &str = env!("CARGO_BIN_EXE_heimdall-bench");

/// Few names, and few of them on their way: a server that is starved meanwhile still answers in time.
const SMALL: [&str; 8] = ["--rounds", "1", "--seconds", "1", "--names", "40", "--outstanding", "16"];

/// Runs the benchmark to its end, and gives its exit code and what it said.
async fn bench(arguments: &[&str], folder: &Path) -> (Option<i32>, String) {
    // Nothing that it builds may count as time that it hangs.
    tokio::task::spawn_blocking(binaries).await.unwrap().unwrap();
    let plot = folder.join("plot.svg").display().to_string();
    let own: &[&str] = if arguments.contains(&"--plot") { &[] } else { &["--plot", &plot] };
    let arguments = SMALL.iter().chain(own).chain(arguments);
    let arguments: Vec<String> = arguments.map(|argument| (*argument).to_owned()).collect();
    let quiet = [("RUST_BACKTRACE".to_owned(), "0".to_owned())];
    let mut process =
        Process::start("heimdall-bench", Path::new(BENCH), &arguments, &quiet, &folder.join("output")).unwrap();
    let status = process.ended_within(PATIENCE).await.unwrap();
    (status.code(), process.output())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_gives_rounds_a_table_and_a_plot() {
    let folder = tempfile::tempdir().unwrap();
    let dns = binaries().unwrap().dns;
    let mine = format!(
        "mine={} --listen {{listen}} --http-listen {{host}}:0 --upstreams {{upstream_host}}:{{upstream_port}} \
         --agent-socket off --workers 1 & wait",
        dns.display()
    );
    let (code, output) = bench(&["--only", "heimdall-dns,mine", "--candidate", &mine], folder.path()).await;
    assert_eq!(code, Some(0), "{output}");

    let rounds: Vec<Value> =
        output.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rounds.len(), 1, "{output}");
    let candidates = rounds[0]["candidates"].as_object().unwrap();
    assert_eq!(candidates.keys().collect::<Vec<_>>(), ["echo", "heimdall-dns", "mine"]);
    for (name, figures) in candidates {
        assert!(figures["answers"].as_u64().unwrap() > 0, "{name}: {output}");
        // The work of the server that a shell started is counted, too.
        assert!(figures["cpu_us_per_answer"].as_f64().unwrap() > 0.0, "{name}: {output}");
        assert!(output.contains(&format!("\n| {name} | ")), "no row of {name}: {output}");
    }
    let plot = std::fs::read_to_string(folder.path().join("plot.svg")).unwrap();
    assert!(plot.starts_with("<svg ") && plot.contains(">heimdall-dns</text>") && plot.contains(">mine</text>"));
    assert!(output.contains("plot.svg"), "it says where the plot is: {output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_sends_queries_back_makes_a_run_fail() {
    let folder = tempfile::tempdir().unwrap();
    let candidate = format!("parrot=exec {BENCH} --echo {{listen}}");
    let (code, output) = bench(&["--only", "parrot", "--candidate", &candidate], folder.path()).await;
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("parrot") && output.contains("the flags are not those"), "{output}");
    assert!(!folder.path().join("plot.svg").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_answers_with_other_data_makes_a_run_fail() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await.unwrap();
    upstream.otherwise(Rule::message(|received| {
        let (name, rtype) = (received.question.name.clone(), received.question.qtype);
        received.query.response().with_answer(Record { name, rtype, class: 1, ttl: 60, rdata: vec![192, 0, 2, 1] })
    }));
    let candidate = format!(
        "liar=exec {} --listen {{listen}} --http-listen {{host}}:0 --upstreams {} --agent-socket off --workers 1",
        binaries().unwrap().dns.display(),
        upstream.address()
    );
    let arguments = ["--shared-network", "--only", "liar", "--candidate", &candidate];
    let (code, output) = bench(&arguments, folder.path()).await;
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("liar") && output.contains("the data are another name's"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_names_and_commands_are_told_before_anything_is_started() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, code, told) in [
        (["--only", "unbond"], 1, "unbound"),
        (["--without", "echo"], 1, "nothing to compare with"),
        (["--candidate", "mine=serve -p 53"], 2, "{listen}"),
        (["--plot", "/no/such/folder/plot.svg"], 1, "no folder"),
    ] {
        let (ended, output) = bench(&arguments, folder.path()).await;
        assert_eq!(ended, Some(code), "{arguments:?}: {output}");
        assert!(output.contains(told), "{arguments:?}: {output}");
    }
}

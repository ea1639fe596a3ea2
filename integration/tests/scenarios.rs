//! Every scripted conversation against a real dns-server: without an agent, with a missing one, with one that dies.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use futures_util::{StreamExt, stream};
use heimdall_integration::scenario::{AgentState, Script, run, scripts};

/// Scripts that run at the same time: each has processes of its own, and some mostly wait for TTLs.
const AT_ONCE: usize = 4;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

async fn all_scripts_hold(state: AgentState) {
    let scripts: Vec<PathBuf> = scripts(&folder()).unwrap().into_keys().collect();
    assert!(!scripts.is_empty());
    // One script can be chosen by a part of its name.
    #[expect(clippy::disallowed_methods, reason = "a choice for people at work on one script, not an option")]
    let chosen = std::env::var("SCENARIO").unwrap_or_default();
    let results: Vec<_> = stream::iter(scripts.iter().filter(|path| path.to_string_lossy().contains(&chosen)))
        .map(|path| async move {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let script = Script::parse(&name, &std::fs::read_to_string(path).unwrap())?;
            run(&script, state).await
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let failures: Vec<String> =
        results.into_iter().filter_map(|result| result.err().map(|error| format!("{error:#}"))).collect();
    assert!(failures.is_empty(), "{} scripts do not hold:\n\n{}", failures.len(), failures.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_hold_without_an_agent() {
    all_scripts_hold(AgentState::Off).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_hold_with_the_agents_socket_missing() {
    all_scripts_hold(AgentState::Missing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_hold_when_the_agent_is_killed_in_mid_run() {
    all_scripts_hold(AgentState::KilledMidway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_expects_something_else_fails() {
    for wrong in [
        "ask udp www.example. A\n    answer www.example. 300 IN A 192.0.2.1\n",
        "ask udp www.example. A\n    rcode NXDOMAIN\n",
        "send udp 0a0b 0100 0000 0000 0000 0000\n    silence\n",
        "ask udp www.example. A\n    address\n    at-most 20\n",
        "ask udp www.example. A\n    flags qr,aa,ra\n    address\n",
        "ask udp www.example. A\ncount www.example. A packets=2\n",
        "ask tcp www.example. A edns=1232\nreceived www.example. A\n    opt do\n",
        "repeat 3 ask udp n{i}.example. A\nports distinct=4 spread=0\n",
    ] {
        let script = Script::parse("wrong", wrong).unwrap();
        assert!(run(&script, AgentState::Off).await.is_err(), "this must not hold:\n{wrong}");
    }
}

#[test]
fn every_rule_has_a_script_and_every_script_a_rule() {
    let text = std::fs::read_to_string(folder().join("RULES")).unwrap();
    let rules: BTreeSet<&str> =
        text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_whitespace().next()).collect();
    let scripts = scripts(&folder()).unwrap();
    let scripted: BTreeSet<&str> = scripts.values().map(String::as_str).collect();
    assert_eq!(rules.difference(&scripted).collect::<Vec<_>>(), Vec::<&&str>::new(), "rules without a script");
    assert_eq!(scripted.difference(&rules).collect::<Vec<_>>(), Vec::<&&str>::new(), "scripts without a rule");
    for (path, rule) in &scripts {
        let name = path.file_stem().unwrap().to_string_lossy();
        assert!(!rule.is_empty(), "{name}");
        if let Err(error) = Script::parse(&name, &std::fs::read_to_string(path).unwrap()) {
            panic!("{error:#}");
        }
    }
}

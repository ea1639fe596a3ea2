//! The command line of `heimdall-dns`: what it says about itself and about mistakes, and how it ends.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output, Stdio};

/// Runs the binary with nothing of this process's environment.
fn heimdall(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_heimdall-dns"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(octets: &[u8]) -> &str {
    std::str::from_utf8(octets).unwrap()
}

#[test]
fn help_names_every_option_with_its_variable_and_default() {
    let output = heimdall(&["--help"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    for words in [
        "--listen",
        "HEIMDALL_LISTEN, default 0.0.0.0:1053",
        "HEIMDALL_UPSTREAMS",
        "HEIMDALL_AGENT_SOCKET, default /run/heimdall/agent.sock",
        "HEIMDALL_HTTP_LISTEN, default 0.0.0.0:8081",
        "HEIMDALL_QUERY_BUDGET, default 4s",
        "HEIMDALL_SILENCE, default 100ms",
        "HEIMDALL_DRAIN, default 6s",
        "--check",
        "--config",
    ] {
        assert!(help.contains(words), "{words} is missing in\n{help}");
    }
}

#[test]
fn check_reports_every_mistake_and_exits_with_64() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("heimdall.toml");
    std::fs::write(&file, "upstreems = [\"1.1.1.1\"]\ncache_bytes = \"12\"\n").unwrap();
    let output = heimdall(
        &["--check", "--config", file.to_str().unwrap(), "--workers", "none", "--listen", "1053"],
        &[("HEIMDALL_TICK", "often"), ("HEIMDALL_SILENCE", "0s")],
    );
    assert_eq!(output.status.code(), Some(64));
    let report = text(&output.stderr);
    for words in [
        "7 mistakes",
        "upstreems in ",
        "did you mean upstreams?",
        "cache_bytes in ",
        "--workers: \"none\"",
        "--listen: \"1053\"",
        "HEIMDALL_TICK: \"often\"",
        "HEIMDALL_SILENCE: must be longer than 0",
        "HEIMDALL_UPSTREAMS): at least one server to ask is needed",
    ] {
        assert!(report.contains(words), "{words} is missing in\n{report}");
    }
}

#[test]
fn check_of_a_good_configuration_binds_nothing_and_exits_with_0() {
    // Port 1 could not be bound by everybody.
    let output = heimdall(&["--check", "--listen", "127.0.0.1:1", "--upstreams", "1.1.1.1"], &[]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "the configuration is good\n"));
}

#[test]
fn an_unknown_variable_of_ours_is_a_warning() {
    let environment = [("HEIMDALL_PORT", "tcp://10.0.0.1:53"), ("HEIMDALL_UPSTREAMS", "1.1.1.1")];
    let output = heimdall(&["--check"], &environment);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("HEIMDALL_PORT is no option"), "{}", text(&output.stderr));
}

#[test]
fn an_unknown_flag_and_a_broken_log_filter_exit_with_64() {
    assert_eq!(heimdall(&["--lisen", "x"], &[]).status.code(), Some(64));
    let output = heimdall(&["--check", "--upstreams", "1.1.1.1", "--log", "a=b=c"], &[]);
    assert_eq!(output.status.code(), Some(64));
}

#[test]
fn an_address_that_is_taken_is_named_and_exits_with_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = heimdall(&["--listen", &address, "--upstreams", "127.0.0.1:5300", "--agent-socket", "off"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(&address), "{}", text(&output.stderr));
}

//! `heimdall-dev` as a person uses it: started, asked, looked into, and gone without a trace.

#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use heimdall_integration::client::Client;
use heimdall_integration::net::is_free;
use heimdall_integration::process::{Process, Signal};
use heimdall_integration::upstream::Upstream;
use heimdall_shared::clock::Moment;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

/// How long a cluster may take to start, the building of its programs included.
const START_PATIENCE: Duration = Duration::from_secs(300);

const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// An offset at which all ports of three replicas are free.
fn free_offset() -> u16 {
    (0..1000)
        .map(|_| 10_000 + rand::random::<u16>() % 10_000)
        .find(|offset| {
            let ports = [1053, 8080, 8081, 8443].into_iter().flat_map(|base| [base, base + 100, base + 200]);
            ports.map(|port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port + offset))).all(is_free)
        })
        .unwrap()
}

fn heimdall_dev(arguments: &[&str], folder: &Path) -> Process {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let temporary = [("TMPDIR".to_owned(), folder.display().to_string())];
    let program = Path::new(env!("CARGO_BIN_EXE_heimdall-dev"));
    Process::start("heimdall-dev", program, &arguments, &temporary, &folder.join("output")).unwrap()
}

async fn wait_for(process: &mut Process, what: &str, condition: impl Fn(&Process) -> bool) {
    let begun = Moment::now();
    while !condition(process) {
        assert!(process.has_ended().is_none(), "it ended while waiting for {what}:\n{}", process.shown_output());
        assert!(Moment::now().since(begun) < START_PATIENCE, "no {what}:\n{}", process.shown_output());
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn runs(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_local_cluster_describes_itself_and_leaves_nothing_running_or_listening() {
    let upstream = Upstream::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cluster");
    let (offset, address) = (free_offset().to_string(), upstream.address().to_string());
    let arguments = ["--offset", &offset, "--upstream", &address, "--dir", dir.to_str().unwrap()];
    let mut dev = heimdall_dev(&arguments, folder.path());
    let description = dir.join("cluster.json");
    wait_for(&mut dev, "cluster.json", |_| description.is_file()).await;

    let cluster: Value = serde_json::from_str(&std::fs::read_to_string(&description).unwrap()).unwrap();
    for file in ["ca", "peer_cert", "peer_key", "operator_cert", "operator_key"] {
        assert!(Path::new(cluster[file].as_str().unwrap()).is_file(), "{file} in {cluster:#}");
    }
    let replicas = cluster["replicas"].as_array().unwrap();
    assert_eq!(replicas.len(), 3);
    let mut pids = Vec::new();
    let mut sockets = Vec::new();
    for replica in replicas {
        let dns: SocketAddr = replica["dns"].as_str().unwrap().parse().unwrap();
        Client::new(dns).ask_address("dev.example.").await.unwrap();
        for part in ["dns_pid", "agent_pid"] {
            pids.push(i32::try_from(replica[part].as_i64().unwrap()).unwrap());
        }
        sockets.push(replica["socket"].as_str().unwrap().to_owned());
        for address in ["agent_http", "dns_http", "peer"] {
            assert!(replica[address].as_str().unwrap().parse::<SocketAddr>().is_ok(), "{address} of {replica:#}");
        }
    }
    assert!(pids.iter().all(|&pid| runs(pid)), "{pids:?}");
    assert!(sockets.iter().all(|socket| Path::new(socket).exists()), "{sockets:?}");
    let lines = [format!("dig @127.0.0.1 -p {} ", 1053 + offset.parse::<u16>().unwrap()), "grpcurl ".to_owned()];
    for line in lines {
        wait_for(&mut dev, &line, |dev| dev.output().contains(&line)).await;
    }
    wait_for(&mut dev, "figures", |dev| dev.output().contains("heimdall-2   queries")).await;
    // What dies is reported and not started again.
    kill(Pid::from_raw(pids[5]), Signal::SIGKILL).unwrap();
    wait_for(&mut dev, "the report of a death", |dev| dev.output().contains("heimdall-agent of heimdall-2")).await;

    dev.signal(Signal::SIGTERM);
    let status = dev.ended().await.unwrap();
    assert!(status.success(), "{status}:\n{}", dev.shown_output());
    assert!(!pids.iter().any(|&pid| runs(pid)), "{pids:?} must be gone");
    assert!(!sockets.iter().any(|socket| Path::new(socket).exists()), "{sockets:?} must be gone");
    assert!(!description.exists(), "a description of what is gone");
    assert!(dir.join("heimdall-0-dns.log").is_file(), "logs are kept in a folder that was asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standalone_cluster_in_a_temporary_folder_removes_it() {
    let folder = tempfile::tempdir().unwrap();
    let offset = free_offset();
    let mut dev = heimdall_dev(&["--standalone", "--replicas", "1", "--offset", &offset.to_string()], folder.path());
    wait_for(&mut dev, "the greeting", |dev| dev.output().contains("1 replica(s) ready")).await;
    // Which upstream it uses hangs on the machine; it says so.
    assert!(dev.output().contains("upstream: "), "{}", dev.shown_output());
    dev.signal(Signal::SIGINT);
    let status = dev.ended().await.unwrap();
    assert!(status.success(), "{status}:\n{}", dev.shown_output());
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["output"]);
    assert!(is_free(SocketAddr::from((Ipv4Addr::LOCALHOST, 1053 + offset))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let offset = free_offset();
    let taken = SocketAddr::from((Ipv4Addr::LOCALHOST, 8081 + offset));
    let _taken = std::net::TcpListener::bind(taken).unwrap();
    let mut dev = heimdall_dev(&["--replicas", "1", "--offset", &offset.to_string()], folder.path());
    assert!(!dev.ended().await.unwrap().success());
    assert!(dev.output().contains(&format!("{taken} is in use")), "{}", dev.shown_output());
}

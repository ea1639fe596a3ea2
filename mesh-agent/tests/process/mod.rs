//! The agent in a process of its own.

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use heimdall_certs::{Ca, Leaf};
use hyper_util::rt::TokioIo;
use rustls::version::TLS13;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, Command};
use tonic::transport::{Channel, Endpoint};

use crate::outsider::{client, connect};

/// No step of these tests takes seconds; a step that never ends must not hold the whole run.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The agent of replica `a` in a process of its own. Replica `b` is a member and not running.
pub(crate) struct Agent {
    pub(crate) process: Child,
    pub(crate) log: Lines<BufReader<ChildStderr>>,
    pub(crate) peers: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) socket: PathBuf,
    _dir: TempDir,
}

impl Agent {
    pub(crate) async fn start(ca: &Ca) -> Self {
        Self::run(ca, Command::new(env!("CARGO_BIN_EXE_heimdall-agent"))).await
    }

    /// Starts an agent that may have `files` files open and not one more.
    pub(crate) async fn start_with_files(ca: &Ca, files: u32) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n $0 && exec \"$@\"", &files.to_string()]);
        command.arg(env!("CARGO_BIN_EXE_heimdall-agent"));
        Self::run(ca, command).await
    }

    async fn run(ca: &Ca, mut command: Command) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (tls, socket) = (dir.path().join("tls"), dir.path().join("agent.sock"));
        ca.replica("a").unwrap().write_to(&tls).unwrap();
        let mut process = command
            // The machine's own settings are not this agent's.
            .env_clear()
            .args(["--node", "a", "--peers", "b=127.0.0.1:1"])
            .args(["--peer-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"])
            .arg("--tls-dir")
            .arg(&tls)
            .arg("--socket")
            .arg(&socket)
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let listening = line_with(&mut log, "listening").await;
        let (peers, http) = (field(&listening, "peers="), field(&listening, "http="));
        Self { process, log, peers, http, socket, _dir: dir }
    }

    /// A channel over one connection that shows `leaf`, as an operator's tool does: it checks the name of the address.
    pub(crate) async fn channel(&self, ca: &Ca, leaf: Option<&Leaf>) -> Result<Channel, Box<dyn Error>> {
        let stream = connect(client(ca, leaf, &TLS13), self.peers).await?;
        let mut stream = Some(TokioIo::new(stream));
        // Only once: a channel that is refused would try again by itself, and the counts would say nothing.
        let connector = tower::service_fn(move |_: http::Uri| {
            let stream = stream.take().ok_or("the connection has ended");
            async move { stream }
        });
        let endpoint = Endpoint::from_shared(format!("http://{}", self.peers))?;
        Ok(endpoint.timeout(PATIENCE).connect_with_connector(connector).await?)
    }

    /// The metric `name` with its labels, once it has reached `least`.
    pub(crate) async fn metric(&self, name: &str, least: u64) -> u64 {
        let reached = async {
            loop {
                let text = self.metrics().await;
                let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
                match value {
                    Some(value) if value >= least => return value,
                    // The process counts right after it refuses: a moment after its caller has seen it.
                    Some(_) => tokio::task::yield_now().await,
                    None => panic!("there is no metric {name} in:\n{text}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("{name} never reached {least}"))
    }

    async fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }
}

/// The next line of the log that contains `word`.
pub(crate) async fn line_with(log: &mut Lines<BufReader<ChildStderr>>, word: &str) -> String {
    let mut before = Vec::new();
    while let Ok(line) = tokio::time::timeout(PATIENCE, log.next_line()).await {
        match line.unwrap() {
            Some(line) if line.contains(word) => return line,
            Some(line) => before.push(line),
            None => break,
        }
    }
    panic!("no line with {word:?} in the log:\n{}", before.join("\n"))
}

fn field(line: &str, name: &str) -> SocketAddr {
    let value = line.split(name).nth(1).and_then(|rest| rest.split_whitespace().next());
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name}ADDRESS in {line:?}"))
}

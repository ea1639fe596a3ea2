//! One HTTP request, as much as the admin pages need, and metrics as a map.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long one request may take; a stopped process accepts connections and never answers.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// Status and body of `GET path`.
///
/// # Errors
/// No connection, no answer in time, not HTTP.
pub async fn get(server: SocketAddr, path: &str) -> Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = tokio::time::timeout(REQUEST_LIMIT, exchange)
        .await
        .with_context(|| format!("http://{server}{path} did not answer within {REQUEST_LIMIT:?}"))?
        .with_context(|| format!("asking http://{server}{path}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("{server} does not speak HTTP"))?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("a status must be a number")?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok((status, if chunked { unchunked(body) } else { body.to_owned() }))
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let Some(size) = usize::from_str_radix(size.trim(), 16).ok().filter(|size| *size > 0) else { break };
        let Some(chunk) = rest.get(..size) else { break };
        whole.push_str(chunk);
        body = rest.get(size + 2..).unwrap_or_default();
    }
    whole
}

/// Samples of an OpenMetrics text: `name{labels}` → value.
#[derive(Clone, Debug, Default)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Reads the text; lines that are not samples are skipped.
    pub fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let end = line.rfind('}').map_or_else(|| line.find(' '), |brace| Some(brace + 1))?;
            let (series, rest) = line.split_at(end);
            Some((series.to_owned(), rest.split_whitespace().next()?.parse().ok()?))
        });
        Self(samples.collect())
    }

    /// Asks a process for its metrics.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn of(server: SocketAddr) -> Result<Self> {
        Ok(Self::parse(&get(server, "/metrics").await?.1))
    }

    /// The sum over all series of `name` whose labels contain each of `labels` (such as `outcome="entry"`).
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.0
            .iter()
            .filter(|(series, _)| {
                let (base, braces) = series.split_once('{').unwrap_or((series, ""));
                base == name && labels.iter().all(|label| braces.contains(label))
            })
            .map(|(_, value)| value)
            .sum()
    }

    /// All series, for printing.
    pub fn series(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(series, value)| (series.as_str(), *value))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sums_count_the_series_with_the_labels() {
        let text = "# TYPE x counter\nx_total{a=\"1\",b=\"p q\"} 2\nx_total{a=\"2\",b=\"p q\"} 3\ny 1.5\n# EOF\n";
        let metrics = Metrics::parse(text);
        assert!((metrics.sum("x_total", &[]) - 5.0).abs() < 1e-9);
        assert!((metrics.sum("x_total", &["a=\"2\""]) - 3.0).abs() < 1e-9);
        assert!((metrics.sum("y", &[]) - 1.5).abs() < 1e-9);
    }

    #[test]
    fn a_chunked_body_is_put_together() {
        assert_eq!(unchunked("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), "abcde");
    }
}

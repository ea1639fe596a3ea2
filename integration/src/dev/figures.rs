//! One line of figures per replica: redrawn on a terminal, printed anew now and then elsewhere.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use heimdall_shared::clock::Moment;
use serde::Deserialize;

use crate::http;
use crate::replica::Layout;

/// How often a replica's line is printed where it cannot be redrawn, and only if it changed.
const PRINT_EVERY: Duration = Duration::from_secs(5);

/// `/stats` of a dns-server, as far as it is shown.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
struct Stats {
    queries: u64,
    l1_hits: u64,
    mesh_hits: u64,
    upstream_packets: u64,
    saved: u64,
}

/// What is on the screen.
#[derive(Default)]
pub(super) struct Figures {
    drawn: usize,
    printed: Vec<Option<Stats>>,
    printed_at: Option<Moment>,
}

impl Figures {
    /// Shows the present figures.
    pub(super) async fn show(&mut self, layouts: &[Layout]) {
        let terminal = std::io::stdout().is_terminal();
        if !terminal && self.printed_at.is_some_and(|at| Moment::now().since(at) < PRINT_EVERY) {
            return;
        }
        let mut stats = Vec::new();
        for layout in layouts {
            stats.push(of(layout).await);
        }
        if !terminal {
            self.printed_at = Some(Moment::now());
            self.printed.resize(stats.len(), None);
            for ((layout, now), before) in layouts.iter().zip(&stats).zip(&mut self.printed) {
                if before.is_none() || *before != *now {
                    println!("{}", line(&layout.name, now.as_ref()));
                    *before = *now;
                }
            }
            return;
        }
        let mut text = String::new();
        if self.drawn > 0 {
            // Up over the lines of the last time.
            text.push_str(&format!("\x1b[{}A", self.drawn));
        }
        // A line that wraps would take two, and the next redrawing would begin in the middle: rows are narrower than 80.
        text.push_str(&format!("\x1b[2K{HEADER}\n"));
        for (layout, stats) in layouts.iter().zip(&stats) {
            text.push_str(&format!("\x1b[2K{}\n", row(&layout.name, stats.as_ref())));
        }
        self.drawn = layouts.len() + 1;
        print!("{text}");
        // A terminal that is gone is no reason to end the cluster.
        let _ = std::io::stdout().flush();
    }

    /// Prints a line of text above the figures.
    pub(super) fn interrupt(&mut self, text: &str) {
        if self.drawn > 0 {
            print!("\x1b[{}A\x1b[0J", self.drawn);
            self.drawn = 0;
        }
        println!("{text}");
    }
}

async fn of(layout: &Layout) -> Option<Stats> {
    let (_, body) = http::get(layout.dns_http, "/stats").await.ok()?;
    serde_json::from_str(&body).ok()
}

/// Above the rows of a terminal.
const HEADER: &str = "replica         queries     L1 hits   mesh hits  upstream queries       saved";

fn row(name: &str, stats: Option<&Stats>) -> String {
    let Some(Stats { queries, l1_hits, mesh_hits, upstream_packets, saved }) = stats else {
        return format!("{name:<12} does not answer");
    };
    format!("{name:<12}{queries:>11} {l1_hits:>11} {mesh_hits:>11} {upstream_packets:>17} {saved:>11}")
}

fn line(name: &str, stats: Option<&Stats>) -> String {
    let Some(Stats { queries, l1_hits, mesh_hits, upstream_packets, saved }) = stats else {
        return format!("{name:<12} does not answer");
    };
    format!(
        "{name:<12} queries {queries:>8}   L1 hits {l1_hits:>8}   mesh hits {mesh_hits:>6}   upstream queries \
         {upstream_packets:>6}   saved {saved:>8}"
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn figures_that_a_server_does_not_know_are_shown_as_zero() {
        let stats: Stats = serde_json::from_str(r#"{"queries":7,"l1_hits":3,"something":{}}"#).unwrap();
        assert_eq!((stats.queries, stats.l1_hits, stats.saved), (7, 3, 0));
        assert!(line("heimdall-0", Some(&stats)).contains("queries        7"));
        assert_eq!(row("heimdall-0", Some(&stats)).len(), HEADER.len());
    }
}

//! What was measured, as lines of JSON while it runs, as a table and as a plot at the end.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::machine;
use super::plot::{self, Row};
use super::spread::Spread;

/// What CPU time per answer should be, in multiples of the echo's and of the best peer's.
const TARGET_TO_ECHO: f64 = 1.10;
const TARGET_TO_PEER: f64 = 0.80;

/// What a candidate is to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The kernel's price: all are compared with it.
    Limit,
    /// Heimdall: it is compared with the best peer, too.
    Ours,
    /// A caching server with settings that are known here.
    Peer,
    /// Somebody's own.
    Other,
}

/// One turn of one candidate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    /// Verified answers.
    pub(super) answers: u64,
    /// Seconds.
    pub(super) wall: f64,
    /// CPU seconds of the candidate.
    pub(super) server_cpu: f64,
    /// CPU seconds of the load.
    pub(super) load_cpu: f64,
    /// Bytes resident per cached name, beyond those before there was one.
    pub(super) bytes_per_name: f64,
    /// Bytes by which each name but the first tenth let it grow while they were asked for first.
    pub(super) bytes_per_further_name: f64,
}

impl Turn {
    /// CPU microseconds of the candidate per answer.
    fn cost(self) -> f64 {
        self.server_cpu * 1e6 / self.answers as f64
    }

    fn json(self, ratio: f64) -> serde_json::Map<String, Value> {
        [
            ("answers", json!(self.answers)),
            ("lost_or_wrong", json!(0)),
            ("seconds", json!(rounded(self.wall))),
            ("cpu_us_per_answer", json!(rounded(self.cost()))),
            ("ratio_to_echo", json!(rounded(ratio))),
            ("answers_per_second", json!((self.answers as f64 / self.wall).round())),
            ("server_cpu_share", json!(rounded(self.server_cpu / self.wall))),
            ("load_cpu_share", json!(rounded(self.load_cpu / self.wall))),
            ("resident_bytes_per_name", json!(self.bytes_per_name.round())),
            ("resident_bytes_per_further_name", json!(self.bytes_per_further_name.round())),
        ]
        .map(|(name, figure)| (name.to_owned(), figure))
        .into_iter()
        .collect()
    }
}

/// All rounds so far: one turn of each candidate, in the order of `candidates`.
#[derive(Debug)]
pub(super) struct Report {
    candidates: Vec<(String, Role)>,
    rounds: Vec<Vec<Turn>>,
}

impl Report {
    /// A report about these candidates. The echo must be one of them.
    pub(super) fn new(candidates: Vec<(String, Role)>) -> Self {
        Self { candidates, rounds: Vec::new() }
    }

    /// Takes a round, and gives it as a line.
    pub(super) fn add(&mut self, turns: Vec<Turn>) -> String {
        let echo = self.echo(&turns);
        let best = self.best_peer(&turns);
        let of = |((name, role), turn): (&(String, Role), &Turn)| {
            let mut figures = turn.json(turn.cost() / echo);
            if let (Role::Ours, Some((_, best))) = (role, best) {
                figures.insert("ratio_to_best_peer".to_owned(), json!(rounded(turn.cost() / best)));
            }
            (name.clone(), Value::Object(figures))
        };
        let candidates: serde_json::Map<String, Value> = self.candidates.iter().zip(&turns).map(of).collect();
        let line = json!({
            "round": self.rounds.len() + 1,
            "load_average": machine::load_average(),
            "best_peer": best.map(|(name, _)| name),
            "candidates": candidates,
        });
        self.rounds.push(turns);
        line.to_string()
    }

    fn echo(&self, turns: &[Turn]) -> f64 {
        let echo = self.candidates.iter().zip(turns).find(|((_, role), _)| *role == Role::Limit);
        echo.map_or(f64::NAN, |(_, turn)| turn.cost())
    }

    /// The peer that used the least CPU time per answer in a round, and how much.
    fn best_peer(&self, turns: &[Turn]) -> Option<(&str, f64)> {
        let peers = self.candidates.iter().zip(turns).filter(|((_, role), _)| *role == Role::Peer);
        peers.map(|((name, _), turn)| (name.as_str(), turn.cost())).min_by(|one, other| one.1.total_cmp(&other.1))
    }

    /// A figure of every round.
    fn spread(&self, figure: impl Fn(&[Turn]) -> f64) -> Spread {
        Spread::of(self.rounds.iter().map(|turns| figure(turns)))
    }

    fn ratio_to_echo(&self, at: usize) -> Spread {
        self.spread(|turns| turns[at].cost() / self.echo(turns))
    }

    /// Medians and ranges over all rounds, in Markdown.
    pub(super) fn table(&self) -> String {
        let mut text = String::from(
            "| candidate | CPU µs per answer | ÷ echo of the round | answers per second | server's CPU | load's CPU | \
             bytes per name | per further name |\n|---|---|---|---|---|---|---|---|\n",
        );
        for (at, (name, role)) in self.candidates.iter().enumerate() {
            let bytes = |figure: &dyn Fn(Turn) -> f64| match role {
                Role::Limit => "-".to_owned(),
                _ => format!("{:.0}", self.spread(|turns| figure(turns[at])).median),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "| {name} | {} | {} | {:.0} | {:.0} % | {:.0} % | {} | {} |",
                self.spread(|turns| turns[at].cost()),
                self.ratio_to_echo(at),
                self.spread(|turns| turns[at].answers as f64 / turns[at].wall).median,
                self.spread(|turns| 100.0 * turns[at].server_cpu / turns[at].wall).median,
                self.spread(|turns| 100.0 * turns[at].load_cpu / turns[at].wall).median,
                bytes(&|turn| turn.bytes_per_name),
                bytes(&|turn| turn.bytes_per_further_name),
            );
        }
        text
    }

    /// Heimdall beside the echo and beside the best peer of the same round, a line each.
    pub(super) fn comparison(&self) -> String {
        let mut text = String::new();
        for (at, (name, _)) in self.candidates.iter().enumerate().filter(|(_, (_, role))| *role == Role::Ours) {
            let echo = self.ratio_to_echo(at);
            // Writing to a string cannot fail.
            let _ = writeln!(text, "- {name} ÷ echo: {echo}; aimed at ≤ {TARGET_TO_ECHO:.2}");
            let mut won: Vec<(&str, usize)> = Vec::new();
            let mut ratios = Vec::new();
            for turns in &self.rounds {
                let Some((peer, cost)) = self.best_peer(turns) else { continue };
                ratios.push(turns[at].cost() / cost);
                match won.iter_mut().find(|(name, _)| *name == peer) {
                    Some((_, rounds)) => *rounds += 1,
                    None => won.push((peer, 1)),
                }
            }
            if ratios.is_empty() {
                let _ = writeln!(text, "- {name} ÷ the best peer: no peer was measured");
                continue;
            }
            won.sort_by_key(|(_, rounds)| std::cmp::Reverse(*rounds));
            let won: Vec<String> = won.iter().map(|(name, rounds)| format!("{name} {rounds}")).collect();
            let _ = writeln!(
                text,
                "- {name} ÷ the best peer of the round: {}; aimed at ≤ {TARGET_TO_PEER:.2}; rounds in which a peer was best: {}",
                Spread::of(ratios),
                won.join(", ")
            );
        }
        text
    }

    /// The ratios to the echo as SVG.
    pub(super) fn plot(&self, lines: &[String]) -> String {
        let rows = self.candidates.iter().enumerate();
        let rows: Vec<Row> = rows
            .map(|(at, (name, role))| Row { name: name.clone(), role: *role, ratio: self.ratio_to_echo(at) })
            .collect();
        plot::svg("What a cached DNS answer over UDP costs, in multiples of a bare echo", lines, &rows)
    }
}

fn rounded(figure: f64) -> f64 {
    (figure * 1e3).round() / 1e3
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ECHO: (&str, Role) = ("echo", Role::Limit);
    const OURS: (&str, Role) = ("heimdall-dns", Role::Ours);

    fn report(candidates: &[(&str, Role)]) -> Report {
        Report::new(candidates.iter().map(|(name, role)| ((*name).to_owned(), *role)).collect())
    }

    fn turn(server_cpu: f64) -> Turn {
        let (answers, wall, load_cpu) = (1_000_000, 4.0, 2.0);
        Turn { answers, wall, server_cpu, load_cpu, bytes_per_name: 250.4, bytes_per_further_name: 200.0 }
    }

    #[test]
    fn ratios_are_those_of_a_round_and_their_median_is_shown() {
        let mut report = report(&[OURS, ECHO]);
        // The second round's machine is twice as slow for both: that must not show in a ratio.
        for (ours, echo) in [(3.3, 3.0), (6.6, 6.0), (3.6, 3.0)] {
            report.add(vec![turn(ours), turn(echo)]);
        }
        let table = report.table();
        let line = "| heimdall-dns | 3.60 (3.30-6.60) | 1.10 (1.10-1.20) | 250000 | 90 % | 50 % | 250 | 200 |\n";
        assert!(table.contains(line), "{table}");
        assert!(table.contains("| echo | 3.00 (3.00-6.00) | 1.00 (1.00-1.00) |"), "{table}");
        assert!(report.comparison().contains("no peer was measured"));
        assert!(report.plot(&[]).contains("1.10 (1.10-1.20)"));
    }

    #[test]
    fn the_best_peer_is_that_of_the_round() {
        let mut report = report(&[ECHO, OURS, ("one", Role::Peer), ("two", Role::Peer), ("mine", Role::Other)]);
        for (ours, one, two) in [(3.0, 4.0, 6.0), (6.0, 10.0, 8.0), (3.6, 4.0, 5.0)] {
            // Somebody's own is cheaper than all, and no peer.
            report.add([1.0, ours, one, two, 0.5].map(turn).to_vec());
        }
        let comparison = report.comparison();
        let line = "- heimdall-dns ÷ the best peer of the round: 0.75 (0.75-0.90); aimed at ≤ 0.80; rounds in which a peer \
                    was best: one 2, two 1\n";
        assert!(comparison.contains(line), "{comparison}");
        assert!(comparison.contains("- heimdall-dns ÷ echo: 3.60 (3.00-6.00); aimed at ≤ 1.10\n"), "{comparison}");
    }

    #[test]
    fn a_round_is_one_line_of_json() {
        let mut report = report(&[ECHO, OURS, ("unbound", Role::Peer)]);
        let line = report.add(vec![turn(3.0), turn(3.3), turn(6.6)]);
        assert!(!line.contains('\n'));
        let round: Value = serde_json::from_str(&line).unwrap();
        let ours = &round["candidates"]["heimdall-dns"];
        assert_eq!((&ours["cpu_us_per_answer"], &ours["ratio_to_echo"]), (&json!(3.3), &json!(1.1)));
        assert_eq!((&ours["ratio_to_best_peer"], &round["best_peer"]), (&json!(0.5), &json!("unbound")));
        assert_eq!(round["candidates"]["unbound"].get("ratio_to_best_peer"), None);
        assert_eq!(round["round"], 1);
    }
}
